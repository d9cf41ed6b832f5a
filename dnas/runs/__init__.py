"""Run folders: what a search or a retraining writes to disk, and how it resumes after an interruption."""

from __future__ import annotations

from dnas.errors import Interrupted
from dnas.runs.checkpoint import load_into
from dnas.runs.folder import RunFolder
from dnas.runs.interrupt import Interrupt
from dnas.runs.randomness import rng_state, seed_everything, set_rng_state

__all__ = [
    "Interrupt",
    "Interrupted",
    "RunFolder",
    "load_into",
    "rng_state",
    "seed_everything",
    "set_rng_state",
]
