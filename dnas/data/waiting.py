"""How much of a training's time goes into waiting for its images, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

NOTICEABLE = 0.2
"""Share of the time above which waiting is worth a hint."""
_SHORTEST = 1.0
"""Seconds of waiting in an epoch below which no hint is given."""


class Waiting:
    """The time that a loop over batches waits for them, by epoch; the step itself has to wait for its device."""

    def __init__(self, advice: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """``advice``: what the hint says, see :func:`waiting_advice`. ``clock`` gives seconds."""
        self._advice, self._clock = advice, clock
        self._epochs = 0
        self._waited = self._total = 0.0

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items of one epoch."""
        self._epochs += 1
        self._waited = self._total = 0.0
        begun = asked = self._clock()
        for item in items:
            self._waited += self._clock() - asked
            yield item
            asked = self._clock()
            self._total = asked - begun

    @property
    def share(self) -> float:
        """The share of the last epoch's time that was spent waiting, from 0 to 1."""
        return self._waited / self._total if self._total > 0 else 0.0

    def hint(self) -> str | None:
        """One line after the first epoch in which much time was lost, else None.

        The first epoch of a process does not count: its workers start, and caches are filled.
        """
        if self._epochs < 2 or not self._advice or self.share <= NOTICEABLE or self._waited < _SHORTEST:
            return None
        advice, self._advice = self._advice, ""
        return f"{100 * self.share:.0f} % of the time of the steps was spent waiting for images: {advice}"


def waiting_advice(workers: int, *, is_kept: bool, could_finish_on_device: bool = False) -> str:
    """What to set against waiting for images.

    ``is_kept``: whether decoded images are kept already. ``could_finish_on_device``: whether there is a GPU that does
    not change colours and normalise yet.
    """
    found = [f"raise workers (now {workers})" if workers else "set workers (now 0)"]
    if not is_kept:
        found.append("keep decoded images (--data-set cache=memory or cache=disk)")
    if could_finish_on_device:
        found.append("set augmentation.on_device to true")
    return ", or ".join(found)
