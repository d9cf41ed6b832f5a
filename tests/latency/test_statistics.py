"""Statistics with a fake clock that the operator advances, so that all figures are known."""

import itertools
import random

import pytest

from dnas.latency.pace import Pace
from dnas.latency.statistics import (
    Effort,
    HostStopwatch,
    Round,
    accepted,
    calls_per_sample,
    needs_another,
    run_rounds,
    summarise,
    time_round,
    uncertainty,
    warm_up,
)


class FakeDevice:
    """Calls take the given seconds in turn; the very first call takes longer, as on real devices."""

    def __init__(self, *seconds, first=0.0):
        self.now, self.calls, self.first = 100.0, 0, first
        self.seconds = itertools.cycle(seconds)

    def run(self):
        self.now += next(self.seconds) + (self.first if self.calls == 0 else 0)
        self.calls += 1

    @property
    def stopwatch(self):
        return HostStopwatch(lambda: self.now)


def constant(value, samples=1, throttled=False):
    return Round((float(value),) * samples, 1, throttled)


def test_the_first_call_counts_for_nothing():
    device = FakeDevice(0.001, first=5.0)
    assert warm_up(device.stopwatch, device.run, 0.01) == pytest.approx(0.001)
    assert device.now >= 105.01


def test_warm_up_lasts_as_long_as_asked_and_a_slow_module_is_called_twice():
    device = FakeDevice(2.0)
    assert warm_up(device.stopwatch, device.run, 0.05) == pytest.approx(2.0)
    assert device.calls == 2
    fast = FakeDevice(1e-6)
    warm_up(fast.stopwatch, fast.run, 0.02)
    assert 0.02 <= fast.now - 100 <= 0.05


@pytest.mark.parametrize(("estimate", "calls"), [(1.0, 1), (0.001, 1), (0.0004, 3), (1.1e-6, 910)])
def test_samples_last_long_enough(estimate, calls):
    assert calls_per_sample(estimate, Effort(sample_s=0.001, time_per_entry=0.1, rounds=5)) == calls


def test_samples_grow_when_there_is_room_for_few():
    assert calls_per_sample(0.001, Effort(rounds=1, time_per_entry=1.0, most_samples=10)) == 100


def test_a_round_of_a_steady_module():
    device = FakeDevice(0.002)
    entry = time_round(device.stopwatch, device.run, Effort(rounds=2, time_per_entry=0.1, sample_s=0.0035))
    assert entry.calls_per_sample == 2
    assert len(entry.samples_ms) in (12, 13)
    assert entry.samples_ms == pytest.approx([2.0] * len(entry.samples_ms))


class CachingDevice:
    """A call takes 5 ms with cold caches and 1 ms otherwise; a flush takes 40 ms (the first one 90 ms)."""

    def __init__(self):
        self.now, self.cold, self.flushes, self.waits = 0.0, True, 0, 0

    def run(self):
        self.now += 0.005 if self.cold else 0.001
        self.cold = False

    def flush(self):
        self.now += 0.04 if self.flushes else 0.09
        self.flushes += 1
        self.cold = True

    def wait(self):
        self.waits += 1

    def stopwatch(self, cold):
        return HostStopwatch(lambda: self.now, self.wait, self.flush if cold else None)


@pytest.mark.parametrize(("cold", "latency"), [(False, 1.0), (True, 5.0)])
def test_a_cold_call_is_timed_without_the_flush_before_it(cold, latency):
    device = CachingDevice()
    device.run()
    effort = Effort(rounds=1, time_per_entry=0.5, warm_up_s=0.1)
    entry = time_round(device.stopwatch(cold), device.run, effort)
    assert entry.samples_ms == pytest.approx([latency] * len(entry.samples_ms))
    # Flushes count as time spent: warm-up and round stay within their limits.
    assert 0.5 <= device.now <= 1.3
    assert bool(device.flushes) == cold


def test_each_cold_call_is_waited_for_between_flushes():
    device = CachingDevice()
    assert device.stopwatch(True).time(device.run, 4) == pytest.approx(0.02)
    assert (device.flushes, device.waits) == (4, 8)


def test_a_flush_is_timed_after_its_first_time():
    device = CachingDevice()
    assert device.stopwatch(True).untimed_s == pytest.approx(0.04)
    assert device.stopwatch(False).untimed_s == 0


def test_median_and_percentiles_are_those_of_the_samples():
    values = list(range(1, 102))
    random.Random(1).shuffle(values)
    found = summarise([Round(tuple(map(float, values)), 7)], Effort(rounds=1))
    assert (found.median, found.p10, found.p90) == (51, 11, 91)
    assert (found.repetitions, found.rounds) == (707, 1)
    assert found.spread == pytest.approx(80 / 51)


def test_outlier_rounds_do_not_count():
    effort = Effort(rounds=3, tolerance=0.1)
    rounds = [constant(10), constant(10.2), constant(19), constant(9.9)]
    assert [entry.median for entry in accepted(rounds, effort)] == pytest.approx([10, 10.2, 9.9], abs=0.2)
    assert summarise(rounds, effort).median == 10
    assert needs_another(rounds[:3], effort)
    assert not needs_another(rounds, effort)


def test_throttled_rounds_count_only_when_there_are_no_others():
    effort = Effort(rounds=2, extra_rounds=1)
    assert summarise([constant(10), constant(30, throttled=True), constant(10)], effort).median == 10
    assert needs_another([constant(10), constant(10, throttled=True)], effort)
    assert summarise([constant(30, throttled=True)] * 3, effort).median == 30


def test_a_module_that_never_settles_ends():
    effort = Effort(rounds=3, extra_rounds=4)
    chaos = itertools.count(1)
    rounds = run_rounds(["a"], lambda name: constant(2 ** next(chaos)), effort)
    assert len(rounds["a"]) == 7
    assert summarise(rounds["a"], effort).rounds == 3


def test_only_the_outlier_is_repeated():
    times = {"a": iter([1.0, 1.0, 1.0]), "b": iter([2.0, 50.0, 2.0, 2.0]), "c": iter([3.0, 3.0, 3.0])}
    effort = Effort(rounds=3, extra_rounds=2)
    rounds = run_rounds(list(times), lambda name: constant(next(times[name])), effort)
    assert {name: len(entries) for name, entries in rounds.items()} == {"a": 3, "b": 4, "c": 3}
    assert {name: summarise(entries, effort).median for name, entries in rounds.items()} == {"a": 1, "b": 2, "c": 3}


def test_rounds_are_interleaved_in_new_seeded_orders():
    def order(seed):
        visits = []
        run_rounds(list("abcdefgh"), lambda name: visits.append(name) or constant(1), Effort(rounds=3), seed=seed)
        return ["".join(visits[start : start + 8]) for start in (0, 8, 16)]

    assert all(sorted(part) == list("abcdefgh") for part in order(0))
    assert len({*order(0), "abcdefgh"}) == 4
    assert order(0) == order(0) != order(1)


def test_drift_spreads_over_all():
    """Equal modules get nearly equal latencies although the device becomes slower by half during the list."""
    visits = itertools.count()
    names = [f"m{number}" for number in range(50)]
    effort = Effort(rounds=9, extra_rounds=0, tolerance=10)
    rounds = run_rounds(names, lambda name: constant(1 + 0.5 * next(visits) / 450), effort)
    medians = [summarise(rounds[name], effort).median for name in names]
    assert max(medians) / min(medians) < 1.06


def test_out_of_time_covers_all_once_and_refines_the_worst():
    visits = []

    def visit(name):
        visits.append(name)
        return Round((1.0, 1.0 + (5 if name == "noisy" else 0.01)), 1)

    run_rounds(["a", "noisy", "b"], visit, Effort(rounds=4), out_of_time=lambda: len(visits) >= 4)
    assert sorted(visits[:3]) == ["a", "b", "noisy"]
    assert visits[3:] == ["noisy"]


def test_with_time_enough_a_budget_changes_nothing_but_the_order():
    times = {"a": itertools.repeat(1.0), "b": iter([2.0, 50.0, 2.0, 2.0]), "c": itertools.repeat(3.0)}
    effort = Effort(rounds=3, extra_rounds=2)
    rounds = run_rounds(list(times), lambda name: constant(next(times[name])), effort, out_of_time=lambda: False)
    assert {name: len(entries) for name, entries in rounds.items()} == {"a": 3, "b": 4, "c": 3}


def test_a_single_sample_is_least_certain():
    """Its spread of 0 is meaningless: a slow module must not count as a precise one."""
    effort = Effort()
    assert uncertainty([constant(5)], effort) == float("inf")
    wide, narrow = Round((1.0, 1.5, 2.0), 1), Round((1.0, 1.01, 1.02), 1)
    assert uncertainty([wide], effort) > uncertainty([narrow], effort) > uncertainty([constant(5, samples=2)], effort)
    assert uncertainty([wide] * 4, effort) < uncertainty([wide], effort)


def refined_within(budget_s):
    """Forty modules with a fake clock, every fourth one noisy: rounds by name, and the elapsed seconds."""
    clock, noise = FakeDevice(0.05), random.Random(0)
    names = [f"{'noisy' if number % 4 == 0 else 'quiet'}{number}" for number in range(40)]

    def visit(name):
        clock.run()
        width = 1.0 if name.startswith("noisy") else 0.01
        return Round(tuple(1 + width * noise.random() for _ in range(5)), 1)

    effort = Effort(rounds=8, extra_rounds=0)
    pace = Pace(names, effort, budget_s=budget_s, clock=lambda: clock.now)
    rounds = run_rounds(names, visit, effort, finished=pace.finished, out_of_time=pace.out_of_time)
    return {name: len(found) for name, found in rounds.items()}, clock.now - 100


def test_a_budget_is_kept_and_goes_to_the_noisy_ones():
    counts, seconds = refined_within(5.0)
    assert 5.0 <= seconds < 5.0 + 0.051
    noisy = [count for name, count in counts.items() if name.startswith("noisy")]
    quiet = [count for name, count in counts.items() if name.startswith("quiet")]
    assert min(quiet) >= 1
    assert sum(noisy) / len(noisy) > 2 * sum(quiet) / len(quiet)


def test_a_budget_too_small_for_one_round_still_covers_all():
    counts, seconds = refined_within(0.5)
    assert set(counts.values()) == {1}
    assert seconds == pytest.approx(40 * 0.05)


def test_a_budget_larger_than_the_work_is_not_used_up():
    counts, seconds = refined_within(1000.0)
    assert set(counts.values()) == {8}
    assert seconds == pytest.approx(40 * 8 * 0.05)


def test_rounds_of_an_earlier_sitting_are_not_repeated():
    visits = []
    done = {"a": [constant(1)] * 2, "b": [constant(2)]}
    rounds = run_rounds(["a", "b"], lambda name: visits.append(name) or constant(2), Effort(rounds=2), done=done)
    assert visits == ["b"]
    assert len(rounds["a"]) == len(rounds["b"]) == 2


@pytest.mark.parametrize("values", [{"rounds": 0}, {"time_per_entry": float("nan")}, {"tolerance": -1}])
def test_effort_is_checked(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Effort(**values)
