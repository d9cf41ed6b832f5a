"""The latency target of a search, and the controller of lambda that reaches it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dnas.search.gradients import reached_norms

DerivedLatency = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""A function from a problem's logits to latencies in ms of the derived networks, by output such as ``8_32``."""


@dataclass(frozen=True, kw_only=True)
class LatencyTarget:
    """Target and lower bound for the latency of derived networks, in ms and averaged over a problem's outputs.

    ``architecture``: the architecture that they apply to. ``target_ms``: None: fixed lambda. ``fastest_ms``: latency of
    the space's fastest network. ``derived``: latencies of the networks derived from given logits.
    """

    architecture: str
    target_ms: float | None
    fastest_ms: float
    derived: DerivedLatency

    def derived_ms(self, logits: Mapping[str, Tensor]) -> float:
        """Mean latency in ms of the networks derived from ``logits``."""
        found = self.derived(logits)
        return sum(found.values()) / len(found)


class LatencyController:
    """A PI controller of lambda that drives derived networks to ``target_ms``.

    The controlled variable is the expected latency, a smooth function of the logits. The latency of the derived network
    is discontinuous, so its ratio to the expected latency, as a moving average, only corrects the set point. The
    control error is logarithmic. Gains are relative to the ratio of the gradient norms of loss and latency, so they do
    not depend on the scale of table or loss.

    Lambda may become negative, so the target is approached from both sides. The loss alone may prefer networks that are
    too fast, because early in a search the wider choices of shared weights are trained least.
    """

    PROPORTIONAL = 5.0  # at an error of 20 % the latency's gradient has the norm of the loss's
    LIMIT = 10.0  # maximum norm of the latency's gradient relative to the loss's
    FOLLOW = 0.1  # weight of a new value in the moving averages
    MAX_CORRECTION = math.log(4.0)

    def __init__(self, target_ms: float, *, initial_weight: float, steps: int) -> None:
        """``initial_weight``: initial lambda, per ms. ``steps``: steps of the search; they set the integral gain."""
        self.target_ms = target_ms
        self._initial_weight = initial_weight
        self._integral_gain = self.PROPORTIONAL / max(10.0, steps / 10)
        self._integral: float | None = None
        self._correction: float | None = None
        self._loss_norm: float | None = None
        self._latency_norm: float | None = None

    def update(self, expected_ms: float, derived_ms: float, loss_norm: float, latency_norm: float) -> float:
        """Lambda, per ms, for a step with these latencies and gradient norms (that of the latency at lambda 1)."""
        self._loss_norm = self._mean(self._loss_norm, loss_norm)
        self._latency_norm = self._mean(self._latency_norm, latency_norm)
        ratio = math.log(derived_ms / expected_ms)
        ratio = max(-self.MAX_CORRECTION, min(self.MAX_CORRECTION, ratio))
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
        """The state to save in a checkpoint."""
        return {
            "integral": self._integral,
            "correction": self._correction,
            "loss_norm": self._loss_norm,
            "latency_norm": self._latency_norm,
        }

    def load_state(self, state: Mapping[str, float | None]) -> None:
        """Restore :meth:`state`; raises ``KeyError`` for a missing value."""
        self._integral, self._correction = state["integral"], state["correction"]
        self._loss_norm, self._latency_norm = state["loss_norm"], state["latency_norm"]

    def _mean(self, before: float | None, value: float) -> float:
        return value if before is None else before + self.FOLLOW * (value - before)

    def _limited(self, value: float) -> float:
        return max(-self.LIMIT, min(self.LIMIT, value))


class LatencyControl:
    """The weight of the latency in every step of a search: fixed, or set by a controller if there is a target."""

    def __init__(self, target: LatencyTarget | None, *, weight: float, steps: int) -> None:
        """``weight``: (initial) lambda, per ms. ``steps``: steps of the search."""
        self.target, self._weight = target, weight
        self.controller: LatencyController | None = None
        if target is not None and target.target_ms is not None:
            self.controller = LatencyController(target.target_ms, initial_weight=weight, steps=steps)

    def weight(
        self,
        expected_ms: float,
        loss_gradients: Sequence[Tensor],
        latency_gradients: Sequence[Tensor],
        logits: Callable[[], Mapping[str, Tensor]],
    ) -> float:
        """Lambda, per ms, from the expected latency and the gradients of loss and latency."""
        if self.controller is None or self.target is None:
            return self._weight
        derived_ms = self.target.derived_ms(logits())
        return self.controller.update(expected_ms, derived_ms, *reached_norms(loss_gradients, latency_gradients))

    def record(self, logits: Mapping[str, Tensor]) -> dict[str, Any]:
        """Log entries of an epoch: latencies in ms of the networks derived from ``logits``."""
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
        """The state to save in a checkpoint."""
        return {} if self.controller is None else {"latency_controller": self.controller.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`; raises ``KeyError`` for a missing value."""
        if self.controller is not None:
            self.controller.load_state(state["latency_controller"])
