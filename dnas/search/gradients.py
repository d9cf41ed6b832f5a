"""How strongly loss and latency pull at each kind of architecture parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GradientMonitor:
    """Collects, over an epoch's steps, the norms of both gradients by architecture and kind (alpha, beta, gamma)."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` of the parameters, as ``ARCHITECTURE.KIND.ANYTHING``, in the order of the gradients."""
        for name in names:
            if "." not in name:
                raise ValueError(f"architecture parameter {name!r}: expected a name such as ARCHITECTURE.KIND")
        self._groups = [".".join(name.split(".")[:2]) for name in names]
        self._sums: dict[str, tuple[float, float]] = {}
        self._steps = 0

    def add(self, loss: Sequence[Tensor], latency: Sequence[Tensor], weight: float) -> None:
        """Note a step's gradients; that of the latency counts ``weight`` times."""
        squares: dict[str, tuple[float, float]] = {}
        for group, of_loss, of_latency in zip(self._groups, _norms(loss), _norms(latency), strict=True):
            before = squares.get(group, (0.0, 0.0))
            squares[group] = (before[0] + of_loss**2, before[1] + of_latency**2)
        for group, (of_loss, of_latency) in squares.items():
            before = self._sums.get(group, (0.0, 0.0))
            self._sums[group] = (before[0] + of_loss**0.5, before[1] + abs(weight) * of_latency**0.5)
        self._steps += 1

    def record(self) -> dict[str, dict[str, dict[str, float]]]:
        """By architecture and kind the mean norms ``latency`` and ``loss`` and the latency's ``share`` of their sum.

        Architectures that no latency reaches are left out.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        for group, (of_loss, of_latency) in self._sums.items():
            if of_latency > 0:
                architecture, kind = group.split(".")
                found.setdefault(architecture, {})[kind] = {
                    "latency": of_latency / self._steps,
                    "loss": of_loss / self._steps,
                    "share": of_latency / (of_latency + of_loss),
                }
        return found


def reached_norms(loss: Sequence[Tensor], latency: Sequence[Tensor]) -> tuple[float, float]:
    """The norms of both gradients over those parameters that the latency reaches."""
    pairs = [(a, b) for a, b in zip(_norms(loss), _norms(latency), strict=True) if b > 0]
    return sum(a**2 for a, _ in pairs) ** 0.5, sum(b**2 for _, b in pairs) ** 0.5


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    norms: list[float] = torch.stack([tensor.detach().double().norm() for tensor in tensors]).tolist()
    return norms
