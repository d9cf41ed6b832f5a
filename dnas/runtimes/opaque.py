"""Base classes of modules around other runtimes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
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


class BindableModule(OpaqueModule):
    """A module around a runtime that can run on bound inputs and outputs.

    stream: the CUDA stream that bound runs are enqueued on, None on a CPU. It is the runtime's own: some runtimes
        synchronise with the host in every call on the default stream. It is not ordered with other streams, so that a
        run costs no more than the runtime's work; whoever writes the inputs or reads the outputs has to synchronise.
    """

    stream: torch.cuda.Stream | None

    @abstractmethod
    def bind(self, inputs: Sequence[torch.Tensor]) -> BoundRun:
        """A function that runs the model once on these inputs, which have its types and are on its device."""


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream of a CUDA device, None for other devices."""
    new_stream: Any = torch.cuda.Stream
    return new_stream(device) if device.type == "cuda" else None
