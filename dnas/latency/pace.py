"""Progress of a list of measurements: visits done and left, time left, budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dnas.latency.statistics import Effort, Round, needs_another


class Pace:
    """Counts the visits that are finished and left; times are seconds of ``clock``.

    ``done`` holds the rounds of earlier sessions. A first visit also builds the module, so first and later visits are
    timed separately.
    """

    def __init__(
        self,
        names: Sequence[str],
        effort: Effort,
        *,
        done: Mapping[str, Sequence[Round]] | None = None,
        budget_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._effort, self._budget_s, self._clock = effort, budget_s, clock
        self._rounds = {name: list((done or {}).get(name, ())) for name in names}
        self._left = {name: self._to_come(name) for name in names}
        self._unseen = {name for name, rounds in self._rounds.items() if not rounds}
        self._fresh = set(names)
        self._first: list[float] = []
        self._later: list[float] = []
        self._started = self._last = clock()
        self.done = 0

    def finished(self, name: str, entry: Round) -> None:
        """Record that a visit of ``name`` ended with ``entry``."""
        now = self._clock()
        (self._first if name in self._fresh else self._later).append(now - self._last)
        self._last = now
        self._fresh.discard(name)
        self._unseen.discard(name)
        self._rounds[name].append(entry)
        self._left[name] = self._to_come(name)
        self.done += 1

    @property
    def total(self) -> int:
        """Visits finished and left in this session, as far as known: an outlier adds one.

        Once the budget is used up, only items that have not been measured at all are left.
        """
        over = self._budget_s is not None and self._last - self._started >= self._budget_s
        return self.done + (len(self._unseen) if over else sum(self._left.values()))

    @property
    def left_s(self) -> float:
        """Estimated seconds left: until everything is measured, or until the budget is used up.

        Items that have not been measured at all are measured even after that.
        """
        first = _mean(self._first or self._later)
        later = _mean(self._later or self._first)
        makes = sum(1 for name in self._fresh if self._left[name])
        whole = makes * first + (sum(self._left.values()) - makes) * later
        if self._budget_s is None:
            return whole
        spent = self._last - self._started
        return max(len(self._unseen) * first, min(whole, self._budget_s - spent), 0.0)

    def out_of_time(self) -> bool:
        """Whether the budget, if there is one, is used up."""
        return self._budget_s is not None and self._clock() - self._started >= self._budget_s

    def _to_come(self, name: str) -> int:
        rounds = self._rounds[name]
        missing = self._effort.rounds - len(rounds)
        return missing if missing > 0 else int(needs_another(rounds, self._effort))


def within_budget(effort: Effort, budget_s: float, items: int) -> Effort:
    """``effort`` with a time per entry that lets ``items`` entries fit into ``budget_s``.

    Half of the budget is reserved for building and warming up modules, which takes about as long as timing them.
    """
    share = 0.5 * budget_s / max(1, items)
    warm_up_s = min(effort.warm_up_s, 0.3 * share / effort.rounds)
    return replace(effort, time_per_entry=min(effort.time_per_entry, share), warm_up_s=warm_up_s)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
