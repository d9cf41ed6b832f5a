import pytest

from dnas.data.waiting import Waiting, waiting_advice


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def items(self, count, seconds):
        for number in range(count):
            self.now += seconds
            yield number


def epoch(waiting, clock, *, data, step):
    for _ in waiting.over(clock.items(4, data)):
        clock.now += step


def test_the_share_is_that_of_the_last_epoch():
    clock = Clock()
    waiting = Waiting("more workers", clock)
    assert waiting.share == 0
    epoch(waiting, clock, data=1.0, step=3.0)
    assert waiting.share == 0.25
    clock.now += 100  # validation, which is not counted
    epoch(waiting, clock, data=1.0, step=1.0)
    assert waiting.share == 0.5


def test_the_hint_is_given_once_and_not_for_the_first_epoch():
    clock = Clock()
    waiting = Waiting(waiting_advice(0, is_kept=False, could_finish_on_device=True), clock)
    hints = []
    for data in (3.0, 0.1, 1.0, 3.0):
        epoch(waiting, clock, data=data, step=1.0)
        hints.append(waiting.hint())
    assert [hint is None for hint in hints] == [True, True, False, True]
    for part in ("50 %", "set workers (now 0)", "cache=disk", "augmentation.on_device"):
        assert part in hints[2]


def test_no_hint_for_short_epochs():
    clock = Clock()
    waiting = Waiting(waiting_advice(2, is_kept=True), clock)
    for _ in range(3):
        epoch(waiting, clock, data=0.1, step=0.1)
        assert waiting.hint() is None
    assert waiting.share == pytest.approx(0.5)
    assert waiting_advice(2, is_kept=True) == "raise workers (now 2)"
