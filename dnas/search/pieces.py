"""What processes that share the passes of a step send to each other, as few plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Packed = tuple[list[torch.Size | None], np.ndarray[Any, Any] | None]


@dataclass(frozen=True)
class StepRequest:
    """A batch, what its passes are drawn from, and the phase whose weights they train; None is the architecture.

    learning_rate: of the weights.
    """

    images: Tensor
    labels: Tensor
    generator: torch.Generator
    phase: str | None = None
    learning_rate: float = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.generator.get_state().numpy()
        return _request, (self.images.numpy(), self.labels.numpy(), state, self.phase, self.learning_rate)


@dataclass(frozen=True)
class PassResult:
    """The loss of a pass and its gradients; the expected latency, where it has a part in it, and its gradients."""

    loss: Tensor
    gradients: Sequence[Tensor | None] = ()
    latency: Tensor | None = None
    slopes: Sequence[Tensor | None] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _result, tuple(_packed(one) for one in ([self.loss, self.latency], self.gradients, self.slopes))


def _request(
    images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], state: np.ndarray[Any, Any], *others: Any
) -> StepRequest:
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state))
    return StepRequest(torch.from_numpy(images), torch.from_numpy(labels), generator, *others)


def _result(scalars: Packed, gradients: Packed, slopes: Packed) -> PassResult:
    loss, latency = _unpacked(scalars)
    assert loss is not None
    return PassResult(loss, _unpacked(gradients), latency, _unpacked(slopes))


def _packed(tensors: Sequence[Tensor | None]) -> Packed:
    """Shapes, and all values of tensors of one type as one array."""
    present = [tensor.detach().flatten() for tensor in tensors if tensor is not None]
    shapes = [None if tensor is None else tensor.shape for tensor in tensors]
    return shapes, torch.cat(present).numpy() if present else None


def _unpacked(packed: Packed) -> list[Tensor | None]:
    shapes, values = packed
    if values is None:
        return [None] * len(shapes)
    sizes = [shape.numel() for shape in shapes if shape is not None]
    parts = iter(torch.from_numpy(values).split_with_sizes(sizes))
    return [None if shape is None else next(parts).view(shape) for shape in shapes]
