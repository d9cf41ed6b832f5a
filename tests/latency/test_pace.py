"""Progress and budgets with a clock that the test advances."""

import pytest

from dnas.latency.pace import Pace
from dnas.latency.statistics import Effort, Round

ROUND = Round((1.0,), 1)
NAMES = ["a", "b", "c", "d"]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def visit(pace, clock, seconds, name, entry=ROUND):
    clock.now += seconds
    pace.finished(name, entry)


def test_first_visits_are_dearer_than_later_ones(clock):
    """The first visit of each of four modules takes 3 s, later ones 1 s: three rounds take 4 * 3 + 8 * 1 = 20 s."""
    pace = Pace(NAMES, Effort(rounds=3), clock=clock)
    assert (pace.done, pace.total, pace.left_s) == (0, 12, 0)
    for name in NAMES:
        visit(pace, clock, 3.0, name)
    assert pace.left_s == pytest.approx(8 * 3.0)  # as far as is known
    visit(pace, clock, 1.0, "a")
    assert pace.left_s == pytest.approx(7 * 1.0)
    for name in ("b", "c", "d", *NAMES):
        visit(pace, clock, 1.0, name)
    assert (pace.done, pace.total, pace.left_s) == (12, 12, 0)


def test_an_outlier_adds_a_visit(clock):
    pace = Pace(["a"], Effort(rounds=2, extra_rounds=3), clock=clock)
    visit(pace, clock, 1.0, "a", Round((1.0,), 1))
    visit(pace, clock, 1.0, "a", Round((2.0,), 1))
    assert (pace.done, pace.total, pace.left_s) == (2, 3, pytest.approx(1.0))
    visit(pace, clock, 1.0, "a", Round((1.0,), 1))
    assert (pace.total, pace.left_s) == (3, 0)


def test_the_time_left_is_bounded_by_the_budget(clock):
    pace = Pace(NAMES, Effort(rounds=100), budget_s=10.0, clock=clock)
    for name in NAMES:
        visit(pace, clock, 1.0, name)
    assert pace.left_s == pytest.approx(6.0)
    assert not pace.out_of_time()
    visit(pace, clock, 6.5, "a")
    assert pace.left_s == 0
    assert pace.out_of_time()


def test_what_was_never_measured_is_measured_after_the_budget_too(clock):
    pace = Pace(NAMES, Effort(rounds=5), budget_s=4.0, clock=clock)
    visit(pace, clock, 3.0, "a")
    assert pace.left_s == pytest.approx(9.0)
    visit(pace, clock, 3.0, "b")
    assert pace.out_of_time()
    assert pace.left_s == pytest.approx(6.0)
    assert (pace.done, pace.total) == (2, 4)


def test_rounds_of_an_earlier_sitting_are_done(clock):
    pace = Pace(["a", "b"], Effort(rounds=2), done={"a": [ROUND, ROUND], "b": [ROUND]}, clock=clock)
    assert pace.total == 1
    visit(pace, clock, 1.0, "b")
    assert (pace.done, pace.total, pace.left_s) == (1, 1, 0)
    assert not Pace(["a"], Effort(), clock=clock).out_of_time()
