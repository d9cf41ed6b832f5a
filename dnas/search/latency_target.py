"""The latency target of a search: what is known of the space's networks, and the controller of lambda."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dnas.search.gradients import reached_norms

DerivedLatency = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""The problem's logits -> ms of the networks that would be derived now, by output such as ``8_32``."""


@dataclass(frozen=True, kw_only=True)
class LatencyTarget:
    """What a search knows of the latencies of derived networks, in ms and as means over a problem's outputs.

    ``architecture``: the one whose latency counts. ``target_ms``: None for a fixed lambda. ``fastest_ms``,
    ``slowest_ms``: the bounds of the space. ``derived``: the latencies of the networks that the logits would give.
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
    """A PI controller that sets lambda so that derived networks reach ``target_ms``.

    The controlled quantity is the expected latency, which follows the logits smoothly. The latency of the derived
    network is what counts, but it jumps: a moving average of the ratio of the two corrects the set point. The control
    error is logarithmic. Both gains are in units of the ratio of the loss's gradient to the latency's, so that they fit
    any table and any loss.

    Lambda may become negative: the target is approached from both sides. Accuracy alone may prefer networks that are
    too fast, because early in a search the wider choices of shared weights are trained least.
    """

    PROPORTIONAL = 5.0  # an error of 20 % weighs latency as much as loss
    LIMIT = 10.0  # the most that the latency's gradient may outweigh the loss's
    FOLLOW = 0.1  # weight of a new value in the moving averages
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


class LatencyControl:
    """The weight of the latency in every step of a search: the configured one, or the controller's."""

    def __init__(self, target: LatencyTarget | None, *, weight: float, steps: int) -> None:
        """``target``: what is known of latencies, if anything. ``weight``: lambda, per ms. ``steps``: of the search."""
        self.target, self._weight = target, weight
        self.controller: LatencyController | None = None
        if target is not None and target.target_ms is not None:
            self.controller = LatencyController(target.target_ms, initial_weight=weight, steps=steps)

    def weight(
        self,
        expected_ms: float,
        of_loss: Sequence[Tensor],
        of_latency: Sequence[Tensor],
        logits: Callable[[], Mapping[str, Tensor]],
    ) -> float:
        """Lambda, per ms, from the expected latency and the gradients of loss and latency."""
        if self.controller is None or self.target is None:
            return self._weight
        derived_ms = self.target.derived_ms(logits())
        return self.controller.update(expected_ms, derived_ms, *reached_norms(of_loss, of_latency))

    def record(self, logits: Mapping[str, Tensor]) -> dict[str, Any]:
        """For the log of an epoch: the latency in ms of the networks that would be derived now."""
        if self.target is None:
            return {}
        outputs = dict(self.target.derived(logits))
        return {
            "derived": {
                "latency_ms": sum(outputs.values()) / len(outputs),
                "outputs": outputs,
                "target_ms": self.target.target_ms,
            }
        }

    def state(self) -> dict[str, Any]:
        """All that the next step needs."""
        return {} if self.controller is None else {"latency_controller": self.controller.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; a missing value is a KeyError."""
        if self.controller is not None:
            self.controller.load_state(state["latency_controller"])
