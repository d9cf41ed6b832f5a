"""The latency that a search aims at: what is known of the space's networks, and the controller on lambda."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

DerivedLatency = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""The problem's logits -> ms of the networks that would be derived now, by output such as ``8_32``."""


@dataclass(frozen=True, kw_only=True)
class LatencyGoal:
    """What a search knows of derived networks, all in ms and as means over the outputs (combinations of branches).

    ``architecture`` is the one whose latency counts. ``target_ms`` is None for a fixed lambda. ``fastest_ms`` and
    ``slowest_ms`` are the bounds of the space; ``derived`` prices what the logits would give.
    """

    architecture: str
    target_ms: float | None
    fastest_ms: float
    slowest_ms: float
    derived: DerivedLatency

    def derived_ms(self, logits: Mapping[str, Tensor]) -> float:
        """The mean latency of the networks that would be derived now."""
        found = self.derived(logits)
        return sum(found.values()) / len(found)


class LatencyController:
    """Sets lambda so that derived networks come to have ``target_ms``.

    What is controlled is the expected latency, which follows the logits smoothly. What counts is the derived network's,
    which jumps; the ratio of the two is followed as a slow mean, so that the expectation is led to where the derived
    network is right. The relative (logarithmic) error goes through a proportional and an integral term, both in units
    of the ratio of the loss's gradient to the latency's, so that the same gains fit any table and any loss.

    Lambda may become negative: the target is met from both sides. A search that accuracy alone would leave too fast
    is pulled to slower networks, because in a shared network, early, accuracy has little to say for the larger ones.
    """

    PROPORTIONAL = 5.0  # an error of 20 % weighs latency as much as loss
    LIMIT = 10.0  # the most that the latency's gradient may outweigh the loss's
    FOLLOW = 0.1  # share of a step's value in the slow means
    MOST_CORRECTION = math.log(4.0)

    def __init__(self, target_ms: float, *, initial_weight: float, steps: int) -> None:
        """``initial_weight``: lambda (per ms) to begin with. ``steps``: of the whole search; they set the pace."""
        self.target_ms = target_ms
        self._initial_weight = initial_weight
        self._integral_gain = self.PROPORTIONAL / max(10.0, steps / 10)
        self._integral: float | None = None
        self._correction: float | None = None
        self._loss_norm: float | None = None
        self._latency_norm: float | None = None

    def update(self, expected_ms: float, derived_ms: float, loss_norm: float, latency_norm: float) -> float:
        """Lambda, per ms, for a step with these latencies and gradients (norms; the latency's is that at lambda 1)."""
        self._loss_norm = self._mean(self._loss_norm, loss_norm)
        self._latency_norm = self._mean(self._latency_norm, latency_norm)
        ratio = math.log(derived_ms / expected_ms)
        ratio = max(-self.MOST_CORRECTION, min(self.MOST_CORRECTION, ratio))
        self._correction = self._mean(self._correction, ratio)
        unit = self._loss_norm / max(self._latency_norm, 1e-12)
        if self._integral is None:
            self._integral = self._limited(self._initial_weight / unit) if unit > 0 else 0.0
        error = math.log(expected_ms / self.target_ms) + self._correction
        proportional = self.PROPORTIONAL * error
        if abs(proportional + self._integral) < self.LIMIT or proportional * self._integral < 0:
            self._integral = self._limited(self._integral + self._integral_gain * error)
        return self._limited(proportional + self._integral) * unit

    def state(self) -> dict[str, float | None]:
        """All that the next step needs."""
        return {
            "integral": self._integral,
            "correction": self._correction,
            "loss_norm": self._loss_norm,
            "latency_norm": self._latency_norm,
        }

    def load_state(self, state: Mapping[str, float | None]) -> None:
        """Go on from :meth:`state`; a missing value is a KeyError."""
        self._integral, self._correction = state["integral"], state["correction"]
        self._loss_norm, self._latency_norm = state["loss_norm"], state["latency_norm"]

    def _mean(self, before: float | None, value: float) -> float:
        return value if before is None else before + self.FOLLOW * (value - before)

    def _limited(self, value: float) -> float:
        return max(-self.LIMIT, min(self.LIMIT, value))
