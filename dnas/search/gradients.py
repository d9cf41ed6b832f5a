"""Gradient norms of loss and latency for each kind of architecture parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GradientMonitor:
    """Averages the norms of both gradients over an epoch, by architecture and kind (alpha, beta, gamma)."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names``: parameter names, ``ARCHITECTURE.KIND`` or longer, in the order of the gradients."""
        for name in names:
            if "." not in name:
                raise ValueError(f"architecture parameter {name!r}: expected a name such as ARCHITECTURE.KIND")
        self._groups = [".".join(name.split(".")[:2]) for name in names]
        self._sums: dict[str, tuple[float, float]] = {}
        self._steps = 0

    def add(self, loss: Sequence[Tensor], latency: Sequence[Tensor], weight: float) -> None:
        """Add the gradients of a step; that of the latency is multiplied by ``weight``."""
        squares: dict[str, tuple[float, float]] = {}
        norms = _norms([*loss, *latency])
        pairs = zip(norms[: len(loss)], norms[len(loss) :], strict=True)
        for group, (loss_norm, latency_norm) in zip(self._groups, pairs, strict=True):
            before = squares.get(group, (0.0, 0.0))
            squares[group] = (before[0] + loss_norm**2, before[1] + latency_norm**2)
        for group, (loss_norm, latency_norm) in squares.items():
            before = self._sums.get(group, (0.0, 0.0))
            self._sums[group] = (before[0] + loss_norm**0.5, before[1] + abs(weight) * latency_norm**0.5)
        self._steps += 1

    def record(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean norms ``latency`` and ``loss`` and the latency's ``share`` of their sum, by architecture and kind.

        Kinds without a gradient of the latency are left out.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        for group, (loss_norm, latency_norm) in self._sums.items():
            if latency_norm > 0:
                architecture, kind = group.split(".")
                found.setdefault(architecture, {})[kind] = {
                    "latency": latency_norm / self._steps,
                    "loss": loss_norm / self._steps,
                    "share": latency_norm / (latency_norm + loss_norm),
                }
        return found


def reached_norms(loss: Sequence[Tensor], latency: Sequence[Tensor]) -> tuple[float, float]:
    """The norms of both gradients over the parameters with a nonzero gradient of the latency."""
    norms = _norms([*loss, *latency])
    pairs = [(a, b) for a, b in zip(norms[: len(loss)], norms[len(loss) :], strict=True) if b > 0]
    return sum(a**2 for a, _ in pairs) ** 0.5, sum(b**2 for _, b in pairs) ** 0.5


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    detached = [tensor.detach() for tensor in tensors]
    if detached[0].is_cuda:  # by one kernel
        return torch.stack(torch._foreach_norm(detached)).tolist()
    norms: list[float] = torch.stack([tensor.double().norm() for tensor in detached]).tolist()
    return norms
