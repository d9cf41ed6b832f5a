from __future__ import annotations

import random

import numpy as np
import torch

from dnas.runs import RunFolder, rng_state, seed_everything, set_rng_state


def _draw():
    return random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_generators_go_on_where_they_were(tmp_path):
    random.gauss(0, 1)  # keeps a second value in the generator
    with RunFolder.create(tmp_path, "search", {}, 0, device="cpu") as run:
        run.save_state({"rng": rng_state()}, 1)
        expected = _draw()
        _draw()
        state = run.load_state()
    assert state is not None
    set_rng_state(state["rng"])
    assert _draw() == expected


def test_seeding_tells_every_number_apart():
    draws = set()
    for entropy in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2, 3)]:
        seed_everything(*entropy)
        draws.add(_draw())
    assert len(draws) == 4
