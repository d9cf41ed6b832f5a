"""Weights that a training begins with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.training.initial_weights import read_weights, take_weights


def _network(classes, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1))


def test_layers_of_other_shapes_keep_their_values_and_are_reported():
    ours, theirs = _network(3, 0), _network(5, 1)
    weights = {**theirs.state_dict(), "auxiliary.weight": torch.zeros(2)}
    del weights["1.bias"]
    before = ours[2].weight.clone()
    found = take_weights(ours, weights, "FILE")
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert torch.equal(ours[2].weight, before)
    assert found.reshaped == (("2.weight", (5, 4, 1, 1), (3, 4, 1, 1)), ("2.bias", (5,), (3,)))
    assert found.missing == ("1.bias",)
    assert found.unused == ("auxiliary.weight",)
    lines = "\n".join(found.lines())
    assert "from FILE: 6 of 9 tensors taken" in lines
    assert "2.weight (5x4x1x1 there, 3x4x1x1 here)" in lines
    assert set(found.to_mapping()) == {"source", "taken", "reshaped", "missing", "unused"}
    with pytest.raises(UserError, match="none of its weights fits"):
        take_weights(ours, {"other": torch.zeros(1)}, "FILE")


@pytest.mark.parametrize("form", ["plain", "nested", "parallel"])
def test_files_of_training_programs_are_read(tmp_path, form):
    weights = dict(_network(3, 0).state_dict())
    stored = {
        "plain": weights,
        "nested": {"epoch": 3, "model": {"state_dict": weights}},
        "parallel": {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    }[form]
    torch.save(stored, tmp_path / "weights.pth")
    found = read_weights(tmp_path / "weights.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_files_without_weights_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path / "a.pt")
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "b.pt")  # a pickle that would execute code
    with pytest.raises(UserError, match="can be read safely"):
        read_weights(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can be read safely"):
        read_weights(tmp_path / "c.pt")
