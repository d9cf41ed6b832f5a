"""What all runtimes share: a module that PyTorch leaves alone, and work queued beside PyTorch's own stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

# Runs once on inputs and outputs that were bound before, and returns the outputs, the same tensors at every call.
BoundRun = Callable[[], tuple[torch.Tensor, ...]]


class OpaqueModule(nn.Module):
    """A module around something that PyTorch cannot copy, move or switch to eval mode."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def beside_current_stream(enqueue: Callable[[], object], side: torch.cuda.Stream) -> None:
    """Queue work on the stream ``side``: after what the current stream holds, and before what it is given next.

    Runtimes want a stream that is not the default one, on which some of them synchronise with the host at every call.
    Events on the current stream around this call still enclose the work.
    """
    current = torch.cuda.current_stream(side.device)
    side.wait_stream(current)
    enqueue()
    current.wait_stream(side)
