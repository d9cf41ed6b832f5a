"""Run folders: what a search or a retraining leaves on disk, and how it goes on after an interruption."""

from __future__ import annotations

from dnas.runs.checkpoint import load_into
from dnas.runs.environment import describe_device, describe_environment, process_rank
from dnas.runs.folder import RunFolder
from dnas.runs.interrupt import Interrupt, Interrupted
from dnas.runs.randomness import rng_state, seed_everything, set_rng_state

__all__ = [
    "Interrupt",
    "Interrupted",
    "RunFolder",
    "describe_device",
    "describe_environment",
    "load_into",
    "process_rank",
    "rng_state",
    "seed_everything",
    "set_rng_state",
]
