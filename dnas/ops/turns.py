"""Passes through one network side by side in threads, with the same gradients as one after the other, bit by bit.

On a CPU the small maps of a supernet keep few threads busy, while its passes are independent but for one thing: the
gradients of all are added up in the same weights, and the sum depends on the order. So each weight takes the passes in
their order: a pass that comes to a weight before an earlier one was there waits for it. All passes walk backwards
through the same layers, which makes the wait short.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_here = threading.local()


class PassPool:
    """Threads for passes; with a single one, passes run where they are called."""

    def __init__(self, workers: int) -> None:
        """``workers`` threads, each of which gets its share of PyTorch's own (at least one)."""
        each = max(1, torch.get_num_threads() // workers)
        self._executor: ThreadPoolExecutor | None = None
        if workers > 1:
            self._executor = ThreadPoolExecutor(workers, "pass", partial(torch.set_num_threads, each))

    @property
    def side_by_side(self) -> bool:
        """Whether there is more than one thread."""
        return self._executor is not None

    def run(self, passes: Sequence[Callable[[], T]]) -> list[T]:
        """The results of all passes in their order, once all have ended; the first failure among them is raised."""
        if self._executor is None:
            return [one() for one in passes]
        turns = _Turns(len(passes))
        futures = [self._executor.submit(turns.run, index, one) for index, one in enumerate(passes)]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown()


def expect_gradient(weight: Tensor) -> None:
    """In a forward pass: this pass will add to the gradient of ``weight``, in its turn."""
    if (place := getattr(_here, "place", None)) is not None:
        place[0].expect(place[1], id(weight))


@contextlib.contextmanager
def in_turn(weight: Tensor) -> Iterator[None]:
    """In a backward pass: the time to add to the gradient of ``weight``, after all earlier passes that do."""
    place = getattr(_here, "place", None)
    if place is None:
        yield
        return
    turns, index = place
    turns.wait(index, id(weight))
    try:
        yield
    finally:
        turns.done(index, id(weight))


class _Turns:
    """What each of some passes has still to add."""

    def __init__(self, count: int) -> None:
        self._condition = threading.Condition()
        self._expected: list[set[int]] = [set() for _ in range(count)]
        self._complete = [False] * count  # whether all that a pass will add to is known

    def run(self, index: int, one: Callable[[], T]) -> T:
        _here.place = self, index
        try:
            return one()
        finally:
            _here.place = None
            with self._condition:
                self._complete[index] = True
                self._expected[index].clear()
                self._condition.notify_all()

    def expect(self, index: int, key: int) -> None:
        self._expected[index].add(key)  # nobody else reads it before it is complete

    def wait(self, index: int, key: int) -> None:
        with self._condition:
            if not self._complete[index]:  # backwards already: the forward pass is over
                self._complete[index] = True
                self._condition.notify_all()
            self._condition.wait_for(
                lambda: all(self._complete[i] and key not in self._expected[i] for i in range(index))
            )

    def done(self, index: int, key: int) -> None:
        with self._condition:
            self._expected[index].discard(key)
            self._condition.notify_all()
