"""Decisions that all processes take together, with a stand-in for the other process."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dnas.errors import UserError
from dnas.runs import Interrupted
from dnas.search.bilevel import BilevelSearch


def session(*other):
    """A search in two processes, the other of which has the values ``other``."""
    found = object.__new__(BilevelSearch)
    found.world, found.device, found.run = 2, torch.device("cpu"), SimpleNamespace(path=Path("run"))
    found.config = SimpleNamespace(epochs=9)
    values = torch.tensor(other, dtype=torch.float64)
    found.accelerator = SimpleNamespace(reduce=lambda mine, reduction: (mine + values) / 2)
    return found


def test_an_interrupt_of_another_process_stops_this_one():
    with pytest.raises(Interrupted, match="stopped in epoch 3"):
        session(1.0)._stop_if(SimpleNamespace(requested=False), 2)
    with pytest.raises(Interrupted):
        session(0.0)._stop_if(SimpleNamespace(requested=True), 2)
    session(0.0)._stop_if(SimpleNamespace(requested=False), 2)


def test_a_loss_of_another_process_that_is_not_finite_stops_this_one():
    assert session(3.0)._finite(torch.tensor(1.0), "weights") == 2.0
    with pytest.raises(UserError, match="the loss of the weights is nan"):
        session(float("nan"))._finite(torch.tensor(1.0), "weights")


def test_gradients_of_loss_and_latency_are_averaged_together():
    gradients = [torch.tensor([1.0, 2.0]), None, torch.tensor([[4.0]])]
    session(3.0, 2.0, 0.0)._average(gradients)
    assert gradients[0].tolist() == [2.0, 2.0]
    assert gradients[2].tolist() == [[2.0]]
