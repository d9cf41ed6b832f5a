"""The order in which passes that run side by side add to the same gradients: that of passes one after the other.

The sum of gradients depends on their order, so each weight takes the passes in theirs: a pass that comes to a weight
before an earlier one was there waits for it. All passes walk backwards through the same layers, which makes the wait
short.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

MOST_PASSES = 255
"""Of a step."""
PAUSE_S = 1e-4
IDLE_PAUSE_S = 1e-3
PAUSES_BETWEEN_LOOKS = 1000
"""A pass that waits looks so seldom whether those it waits for still live."""

_here = threading.local()


class Turns:
    """What each of some passes has still to add to the gradients of some weights, in memory that forks share."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        look: Callable[[], None],
        finish: Callable[[Tensor], None] | None = None,
        *,
        processes: int,
    ) -> None:
        """``look`` is called now and then while a pass waits; it may raise.

        ``finish`` is called with a weight once all passes added to its gradient and none will read it any more, if
        that is known when the last one adds: all must have turned back. It is called by a process that has no pass left
        (:meth:`finish_others`), or, while there is none, by the one that added.
        """
        self.weights, self._look, self._finish = list(weights), look, finish
        self._places = {id(weight): place for place, weight in enumerate(weights)}  # a fork has the same ids
        # A row a pass: how often it will still add to each weight, and at last whether its forward pass is over.
        self._row = len(self.weights) + 1
        self._table = mmap.mmap(-1, MOST_PASSES * self._row + 1)  # the last byte: the next pass
        self._added = mmap.mmap(-1, self._row)
        self._ready = mmap.mmap(-1, self._row)  # which weights are left to be finished; the last byte: how many help
        self._processes, self._count = processes, 0
        self._lock = multiprocessing.get_context("fork").Lock()

    def begin(self) -> None:
        """Before the passes of a step, while none runs."""
        self._table[:] = bytes(len(self._table) - 1) + bytes([self._processes])
        self._added[:] = bytes(len(self._added))
        self._ready[:] = bytes(len(self._ready))

    def taken(self, count: int, process: int) -> Iterator[int]:
        """The passes, of ``count``, that fall to a process, whose number is counted from 0.

        The first is that of its number, so that in every step it runs passes of much the same size, by the memory and
        the compiled kernels that it has for them; then whichever is next. Raises ValueError for more than
        :data:`MOST_PASSES`.
        """
        if count > MOST_PASSES:
            raise ValueError(f"a step has {count} passes, at most {MOST_PASSES} can run side by side")
        self._count = count
        index = process
        while index < count:
            yield index
            with self._lock:
                index = self._table[-1]
                self._table[len(self._table) - 1] = min(index + 1, MOST_PASSES)

    @contextlib.contextmanager
    def running(self, index: int) -> Iterator[None]:
        """Within, this process runs a pass; if it fails, nobody waits for what it did not come to."""
        _here.place = self, index
        try:
            yield
        finally:
            _here.place = None
            with self._lock:
                self._table[index * self._row : (index + 1) * self._row] = bytes(self._row - 1) + bytes([True])

    def finish_others(self) -> None:
        """After the passes of this process: finish what other processes leave to it, until all passes are over."""
        if self._finish is None:
            return
        self._help(1)
        pauses = 0
        while True:
            with self._lock:
                place = self._ready.find(b"\x01", 0, self._row - 1)
                if place < 0 and self._are_over():
                    break
                if place >= 0:
                    self._ready[place] = False
            if place >= 0:
                self._finish(self.weights[place])
                continue
            time.sleep(IDLE_PAUSE_S)
            pauses += 1
            if pauses % PAUSES_BETWEEN_LOOKS == 0:
                self._look()
        self._help(-1)

    def _help(self, more: int) -> None:
        with self._lock:
            self._ready[self._row - 1] += more

    def _are_over(self) -> bool:
        """Whether no pass will add to anything any more."""
        rows = (self._table[index * self._row : (index + 1) * self._row] for index in range(self._count))
        return all(row[-1] and row.count(0) == self._row - 1 for row in rows)

    def added(self) -> list[Tensor]:
        """The weights whose gradients the passes added to, but for those that are finished."""
        return [weight for weight, added in zip(self.weights, self._added[:], strict=False) if added]

    def expect(self, index: int, weight: Tensor) -> None:
        """The pass will add to the gradient of ``weight``, once more than it said before."""
        if not self._table[(index + 1) * self._row - 1]:  # until then nobody reads it; after it recomputations run
            self._table[index * self._row + self._places[id(weight)]] += 1

    def turn_back(self, index: int) -> None:
        """The pass has said all that it will add to."""
        with self._lock:
            self._table[(index + 1) * self._row - 1] = True

    def wait(self, index: int, weight: Tensor) -> None:
        """Until all earlier passes that add to the gradient of ``weight`` did so."""
        place, pauses = self._places[id(weight)], 0
        while not self._is_due(index, place):
            time.sleep(PAUSE_S)
            pauses += 1
            if pauses % PAUSES_BETWEEN_LOOKS == 0:
                self._look()

    def _is_due(self, index: int, place: int) -> bool:
        with self._lock:  # so that what was added before is seen, too
            return self._have_added(index, place)

    def _have_added(self, count: int, place: int) -> bool:
        """Whether the first ``count`` passes did all that they will do to the gradient of a weight."""
        rows = range(0, count * self._row, self._row)
        return all(self._table[r + self._row - 1] and not self._table[r + place] for r in rows)

    def done(self, index: int, weight: Tensor) -> None:
        """The pass has added to the gradient of ``weight``."""
        place = self._places[id(weight)]
        with self._lock:
            self._table[index * self._row + place] -= 1
            finished = self._finish is not None and self._have_added(self._count, place)
            self._added[place] = not finished
            helped = finished and self._ready[self._row - 1] > 0
            self._ready[place] = helped
        if finished and not helped and self._finish is not None:
            self._finish(weight)


def turn_back() -> None:
    """Between a forward pass and its backward pass."""
    if (place := getattr(_here, "place", None)) is not None:
        turns, index = place
        turns.turn_back(index)


def expect_gradient(weight: Tensor) -> None:
    """In a forward pass: this pass will add to the gradient of ``weight``, once, in its turn."""
    if (place := getattr(_here, "place", None)) is not None:
        turns, index = place
        turns.expect(index, weight)


@contextlib.contextmanager
def in_turn(weight: Tensor) -> Iterator[None]:
    """In a backward pass: the time to add to the gradient of ``weight``, after all earlier passes that do."""
    place = getattr(_here, "place", None)
    if place is None:
        yield
        return
    turns, index = place
    turns.wait(index, weight)
    yield
    turns.done(index, weight)
