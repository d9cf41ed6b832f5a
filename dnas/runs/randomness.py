"""The state of the global random generators, as plain containers and tensors for a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The states of the generators of Python, numpy, torch and, once CUDA is in use, every GPU."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is meant
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if in_use else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore the generators to a state from :func:`rng_state`; states of absent GPUs are ignored."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state.cpu(), index)


def seed_everything(*entropy: int) -> None:
    """Seed the generators of Python, numpy and torch from several integers, such as (seed, epoch, rank).

    Neighbouring numbers give unrelated streams (numpy's SeedSequence mixes them).
    """
    words = np.random.SeedSequence([abs(number) for number in entropy]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - the global one is meant
    torch.manual_seed(int(words[2]))
