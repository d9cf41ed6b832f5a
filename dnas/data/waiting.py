"""How much of a training's time goes into waiting for its images, and what to do about it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")

NOTICEABLE = 0.2
"""Share of the time above which waiting is worth a hint."""
_SHORTEST = 1.0
"""Seconds of waiting in an epoch below which no hint is given."""


def timed_event() -> torch.cuda.Event:
    """An event of the current GPU that knows its time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Waiting:
    """The time in which a training has nothing to do but wait for its images, by epoch.

    On a GPU that is the time in which it is idle: a host that waits while the GPU still works loses nothing.
    """

    def __init__(
        self,
        advice: str,
        device: torch.device,
        *,
        clock: Callable[[], float] = time.perf_counter,
        event: Callable[[], Any] = timed_event,
    ) -> None:
        """``advice``: what the hint says, see :func:`waiting_advice`.

        ``clock`` gives seconds, ``event`` makes an event of the GPU that knows its time.
        """
        self._advice, self._clock = advice, clock
        self._event = event if device.type == "cuda" else None
        self._pending: deque[tuple[Any, Any]] = deque()
        self._epochs = 0
        self._waited = self._total = 0.0

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """The steps of one epoch, whose batches come from :meth:`over`."""
        self._epochs += 1
        self._waited = self._total = 0.0
        self._pending.clear()
        begun = self._clock()
        yield
        self._settle(wait=True)
        self._total = self._clock() - begun

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, measuring how long each is waited for; what is done to them on the device comes after."""
        iterator = iter(items)
        while True:
            asked, mark = self._clock(), self._mark()
            try:
                item = next(iterator)
            except StopIteration:
                return
            if mark is None:
                self._waited += self._clock() - asked
            else:
                self._pending.append((mark, self._mark()))
                self._settle(wait=False)
            yield item

    def _mark(self) -> Any:
        """An event at the end of the work that the GPU has been given so far; None on the CPU."""
        if self._event is None:
            return None
        event = self._event()
        event.record()
        return event

    def _settle(self, *, wait: bool) -> None:
        """Add up the events that the GPU has reached, or all of them."""
        while self._pending and (wait or self._pending[0][1].query()):
            before, after = self._pending.popleft()
            after.synchronize()
            self._waited += before.elapsed_time(after) / 1000

    @property
    def share(self) -> float:
        """The share of the last epoch's time that was lost by waiting, from 0 to 1."""
        return min(1.0, self._waited / self._total) if self._total > 0 else 0.0

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
