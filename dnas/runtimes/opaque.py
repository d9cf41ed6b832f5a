"""Shared by all runtimes: a module that PyTorch does not copy or move, and work on a second CUDA stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

# Runs once on inputs and outputs that were bound before and returns the outputs, the same tensors in every call.
BoundRun = Callable[[], tuple[torch.Tensor, ...]]


class OpaqueModule(nn.Module):
    """A module that wraps something PyTorch cannot copy, move or set to eval mode."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def beside_current_stream(enqueue: Callable[[], object], side: torch.cuda.Stream) -> None:
    """Queue work on the stream ``side``, after the work on the current stream and before what is queued there next.

    On the default stream some runtimes synchronise with the host in every call, so they get another one. Events on the
    current stream around this call still enclose the work.
    """
    current = torch.cuda.current_stream(side.device)
    side.wait_stream(current)
    enqueue()
    current.wait_stream(side)
