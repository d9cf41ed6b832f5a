"""Learning rate schedules: pure functions from a position to a factor on the initial learning rate.

A position is a number of finished steps (or epochs), so a schedule has no state that a resumed run would restore. Each
fits ``torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly_decay(step, total))`` too.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol


class Schedule(Protocol):
    """The fields of a configuration that define a schedule; see :class:`~dnas.training.RetrainConfig`."""

    @property
    def epochs(self) -> int:
        """Number of epochs of the schedule."""

    @property
    def schedule(self) -> Literal["poly", "cosine", "exponential"]:
        """Its shape."""

    @property
    def poly_power(self) -> float:
        """Power of "poly"."""

    @property
    def exponential_decay(self) -> float:
        """Factor per epoch of "exponential"."""

    @property
    def warm_up_steps(self) -> int:
        """Number of steps of the linear warm-up."""

    @property
    def warm_up_start(self) -> float:
        """Factor at the first step of the warm-up."""


def schedule_factor(config: Schedule, step: int, steps_per_epoch: int) -> float:
    """The factor on the initial learning rate at a step counted over all epochs."""
    total = config.epochs * steps_per_epoch
    if config.schedule == "poly":
        factor = poly_decay(step, total, config.poly_power)
    elif config.schedule == "cosine":
        factor = cosine_decay(step, total)
    else:
        factor = exponential_decay(step // steps_per_epoch, config.exponential_decay)
    return factor * linear_warm_up(step, config.warm_up_steps, config.warm_up_start)


def poly_decay(step: int, total: int, power: float = 0.9) -> float:
    """``(1 - step / total) ** power``, 0 from ``total`` on (regseg_v3, section 4.2; DWRSeg, section 4.2)."""
    return float(max(0.0, 1 - step / max(1, total)) ** power)


def cosine_decay(step: int, total: int) -> float:
    """Half a cosine from 1 to 0 (ESeg, section 4.1)."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


def exponential_decay(epoch: float, decay: float = 0.99) -> float:
    """``decay ** epoch`` (FasterSeg, Appendix H: "exponential learning rate decay of power 0.99")."""
    return float(decay**epoch)


def linear_warm_up(step: int, steps: int, start: float = 0.1) -> float:
    """A line from ``start`` to 1 over the first ``steps`` steps, 1 from there on; multiply it with a decay.

    RegSeg warms up from 0.1 for 3000 steps (regseg_v3, section 4.2).
    """
    return 1.0 if step >= steps else start + (1 - start) * step / steps
