"""Base class of runtime modules, and work on a second CUDA stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

# Runs once on bound inputs and outputs; returns the outputs, the same tensors in every call.
BoundRun = Callable[[], tuple[torch.Tensor, ...]]


class OpaqueModule(nn.Module):
    """A module around a runtime, which PyTorch cannot copy, move or set to eval mode."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def beside_current_stream(enqueue: Callable[[], object], side: torch.cuda.Stream) -> None:
    """Enqueue work on the stream ``side``, ordered between earlier and later work on the current stream.

    Some runtimes synchronise with the host in every call on the default stream, so they need another one. Events on the
    current stream before and after this call enclose the work.
    """
    current = torch.cuda.current_stream(side.device)
    side.wait_stream(current)
    enqueue()
    current.wait_stream(side)
