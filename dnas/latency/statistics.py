"""From a stopwatch to a latency, for any device: warm-up, sample size, rounds, outliers, percentiles."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

Run = Callable[[], object]


@dataclass(frozen=True)
class DeviceRun:
    """A run on a GPU: one call of it makes ``calls`` calls of the module, on ``stream`` (None: the current one)."""

    run: Run
    calls: int = 1
    stream: Any = None

    def __call__(self) -> object:
        """Enqueue the calls."""
        return self.run()


def calls_in(run: Run) -> int:
    """The number of calls of the module that one call of ``run`` makes."""
    return run.calls if isinstance(run, DeviceRun) else 1


class Stopwatch(Protocol):
    """Times a number of calls on a device."""

    @property
    def untimed_s(self) -> float:
        """Seconds per call that are not timed, for emptying the caches before it."""

    def time(self, run: Run, repetitions: int, meanwhile: Run | None = None) -> float:
        """Seconds that ``repetitions`` calls of ``run`` take on the device, from the first start to the last end.

        ``meanwhile`` is called once, while the device is still busy if the host does not have to wait for it.
        """

    def is_host_bound(self) -> bool:
        """Whether the host needed as long to enqueue the calls of the last :meth:`time` as the device to run them."""


@dataclass(frozen=True)
class HostStopwatch:
    """A stopwatch from a clock in seconds and a function that waits until the device has finished its work.

    With ``flush``, which empties the caches, every call is timed separately, right after a flush that is not timed.
    """

    clock: Callable[[], float]
    synchronize: Callable[[], object] = lambda: None
    flush: Run | None = None

    @cached_property
    def untimed_s(self) -> float:
        """See :class:`Stopwatch`; measured at the first access."""
        return 0.0 if self.flush is None else flush_seconds(self.clock, self.synchronize, self.flush)

    def time(self, run: Run, repetitions: int, meanwhile: Run | None = None) -> float:
        """See :class:`Stopwatch`; ``meanwhile`` is called after the calls, as the host runs them itself."""
        total = 0.0
        if self.flush is None:
            total = self._consecutive(run, repetitions)
        else:
            for _ in range(repetitions):
                self.flush()
                total += self._consecutive(run, 1)
        if meanwhile is not None:
            meanwhile()
        return total

    def is_host_bound(self) -> bool:
        """See :class:`Stopwatch`; the host's own time is what is measured."""
        return False

    def _consecutive(self, run: Run, repetitions: int) -> float:
        self.synchronize()
        start = self.clock()
        for _ in range(repetitions):
            run()
        self.synchronize()
        return self.clock() - start


def flush_seconds(clock: Callable[[], float], synchronize: Callable[[], object], flush: Run) -> float:
    """Median duration of three flushes in seconds, after one that makes the buffer's memory resident."""
    found = []
    for _ in range(4):
        synchronize()
        start = clock()
        flush()
        synchronize()
        found.append(clock() - start)
    return sorted(found[1:])[1]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The effort for one measurement. Times are in seconds.

    A measurement consists of ``rounds``; a round warms up for about ``warm_up_s`` and then takes samples for about
    ``time_per_entry / rounds``, including the time for emptying caches. A sample is a number of calls that take
    ``sample_s``, so that the clock's resolution and the launch of the first call do not matter. Rounds whose median
    differs from the median of all rounds by more than ``tolerance`` (a fraction) are repeated, at most ``extra_rounds``
    times.
    """

    rounds: int = 5
    time_per_entry: float = 0.5
    warm_up_s: float = 0.02
    sample_s: float = 0.001
    tolerance: float = 0.1
    extra_rounds: int = 3
    most_samples: int = 100

    def __post_init__(self) -> None:
        for name, low in (("rounds", 1), ("extra_rounds", 0), ("most_samples", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, given {getattr(self, name)}")
        for name in ("time_per_entry", "warm_up_s", "sample_s", "tolerance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a number from 0 up, given {value}")

    @property
    def round_s(self) -> float:
        """Seconds of timed calls in one round."""
        return self.time_per_entry / self.rounds


@dataclass(frozen=True)
class Round:
    """One visit of one module: ms per call of each sample, calls per sample, and whether the clocks were throttled.

    host_bound: whether the host needed as long to enqueue the calls as the device to run them.
    """

    samples_ms: tuple[float, ...]
    calls_per_sample: int
    throttled: bool = False
    host_bound: bool = False

    @property
    def median(self) -> float:
        """Median of the samples, ms."""
        return float(np.median(self.samples_ms))


@dataclass(frozen=True)
class Measurement:
    """A latency: ``median``, ``p10`` and ``p90`` in ms, over ``repetitions`` timed calls in ``rounds`` rounds."""

    median: float
    p10: float
    p90: float
    repetitions: int
    rounds: int

    @property
    def spread(self) -> float:
        """Difference of the 90th and the 10th percentile as a fraction of the median (0 for a latency of 0)."""
        return (self.p90 - self.p10) / self.median if self.median else 0.0


def warm_up(stopwatch: Stopwatch, run: Run, seconds: float) -> float:
    """Run once, then for about ``seconds`` (at least once more), and return an estimate of the seconds one call takes.

    The first call is not counted, as libraries select and build their kernels in it. After it the number of calls is
    doubled until the time is used up. So the last batch, which the estimate is from, is about half of the whole: long
    enough for the clock, and run on a warm device.
    """
    stopwatch.time(run, 1)
    spent, calls = 0.0, 1
    while True:
        batch = stopwatch.time(run, calls)
        spent += batch + calls * stopwatch.untimed_s
        if spent >= seconds or calls >= 1 << 20:
            return max(batch / calls, 1e-9)
        calls *= 2


def calls_per_sample(estimate: float, effort: Effort) -> int:
    """Calls per sample for a module whose call takes about ``estimate`` seconds.

    Enough that a sample takes ``sample_s`` and that ``most_samples`` samples fill the round.
    """
    return max(1, math.ceil(max(effort.sample_s, effort.round_s / effort.most_samples) / estimate))


def time_round(stopwatch: Stopwatch, run: Run, effort: Effort, throttled: Callable[[], bool] = lambda: False) -> Round:
    """Warm up, then take samples until the round's time is used up, at least one.

    ``throttled`` is called in every sample, while the device is busy, and tells whether it throttles its clocks.
    """
    slowed: list[bool] = []
    calls = calls_per_sample(warm_up(stopwatch, run, effort.warm_up_s) + stopwatch.untimed_s, effort)
    samples: list[float] = []
    spent = 0.0
    while not samples or (spent < effort.round_s and len(samples) < effort.most_samples):
        seconds = stopwatch.time(run, calls, lambda: slowed.append(throttled()))
        spent += seconds + calls * stopwatch.untimed_s
        samples.append(1e3 * seconds / (calls * calls_in(run)))
    return Round(tuple(samples), calls * calls_in(run), any(slowed), stopwatch.is_host_bound())


def accepted(rounds: Sequence[Round], effort: Effort) -> list[Round]:
    """The rounds to use: not throttled, and within the tolerance of the median of the round medians.

    If fewer than ``effort.rounds`` agree, the ones nearest to the median are added: a noisy device gets a wide spread,
    not an error. Throttled rounds are used only if all rounds were throttled.
    """
    usable = [entry for entry in rounds if not entry.throttled] or list(rounds)
    centre = float(np.median([entry.median for entry in usable]))
    by_distance = sorted(usable, key=lambda entry: abs(entry.median - centre))
    agreeing = sum(abs(entry.median - centre) <= effort.tolerance * centre for entry in usable)
    return by_distance[: max(agreeing, min(effort.rounds, len(by_distance)))]


def needs_another(rounds: Sequence[Round], effort: Effort) -> bool:
    """Whether fewer than ``effort.rounds`` rounds agree and a further round is allowed."""
    if len(rounds) < effort.rounds:
        return True
    if len(rounds) >= effort.rounds + effort.extra_rounds:
        return False
    usable = [entry.median for entry in rounds if not entry.throttled]
    if not usable:
        return True
    centre = float(np.median(usable))
    return sum(abs(value - centre) <= effort.tolerance * centre for value in usable) < effort.rounds


def summarise(rounds: Sequence[Round], effort: Effort) -> Measurement:
    """Median and percentiles (linear interpolation) over all samples of the accepted rounds."""
    kept = accepted(rounds, effort)
    samples = [sample for entry in kept for sample in entry.samples_ms]
    p10, median, p90 = (float(value) for value in np.percentile(samples, (10, 50, 90)))
    repetitions = sum(len(entry.samples_ms) * entry.calls_per_sample for entry in kept)
    return Measurement(median, p10, p90, repetitions, len(kept))


def run_rounds(
    names: Sequence[str],
    visit: Callable[[str], Round],
    effort: Effort,
    *,
    seed: int = 0,
    done: Mapping[str, Sequence[Round]] | None = None,
    finished: Callable[[str, Round], None] | None = None,
    out_of_time: Callable[[], bool] | None = None,
) -> dict[str, list[Round]]:
    """Visit every name in interleaved rounds and return the rounds of each name.

    Each round visits the whole list in a new seeded order, so that a drift of the device affects all names alike.
    ``done`` holds rounds of earlier sessions, and ``finished`` is called after each visit, before the next one starts.
    Outliers are repeated after the rounds.

    With ``out_of_time`` (called before each visit) the first round still visits every name. Each further round visits
    the half of the unfinished names whose medians are least certain, where the remaining time helps most. If there is
    enough time, every name gets as many rounds as without it.
    """
    rounds = {name: list((done or {}).get(name, ())) for name in names}

    def sweep(todo: list[str], number: int) -> None:
        random.Random(f"{seed}/{number}").shuffle(todo)
        for name in todo:
            if out_of_time is not None and rounds[name] and out_of_time():
                return
            entry = visit(name)
            rounds[name].append(entry)
            if finished is not None:
                finished(name, entry)

    if out_of_time is None:
        for number in range(effort.rounds):
            sweep([name for name in names if len(rounds[name]) <= number], number)
        for number in range(effort.rounds, effort.rounds + effort.extra_rounds):
            sweep([name for name in names if needs_another(rounds[name], effort)], number)
        return rounds
    sweep([name for name in names if not rounds[name]], 0)
    number = 1
    while (unfinished := [name for name in names if needs_another(rounds[name], effort)]) and not out_of_time():
        unfinished.sort(key=lambda name: -uncertainty(rounds[name], effort))
        sweep(unfinished[: (len(unfinished) + 1) // 2], number)
        number += 1
    return rounds


def uncertainty(rounds: Sequence[Round], effort: Effort) -> float:
    """Uncertainty of a median: the spread of the samples over the square root of the number of rounds.

    It is infinite for a single sample, which has no spread.
    """
    if sum(len(entry.samples_ms) for entry in rounds) < 2:
        return math.inf
    found = summarise(rounds, effort)
    return found.spread / math.sqrt(found.rounds)
