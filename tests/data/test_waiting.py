import pytest
import torch

from dnas.data import DataConfig, batches, eval_transform, open_dataset
from dnas.data.transforms import AugmentationConfig
from dnas.data.waiting import Waiting, waiting_advice

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Clock:
    """A clock that moves only when it is told to; ``busy_until`` is when a GPU has done what it was given."""

    def __init__(self):
        self.now = self.busy_until = 0.0

    def __call__(self):
        return self.now

    def items(self, count, seconds):
        for number in range(count):
            self.now += seconds
            yield number


class Event:
    """An event of a GPU whose work ends at ``clock.busy_until``."""

    def __init__(self, clock):
        self.clock, self.time = clock, 0.0

    def record(self):
        self.time = max(self.clock.now, self.clock.busy_until)

    def query(self):
        return self.clock.now >= self.time

    def synchronize(self):
        self.clock.now = max(self.clock.now, self.time)

    def elapsed_time(self, other):
        return 1000 * (other.time - self.time)


def epoch(waiting, clock, *, data, step):
    with waiting.epoch():
        for _ in waiting.over(clock.items(4, data)):
            clock.now += step


def test_the_share_is_that_of_the_last_epoch():
    clock = Clock()
    waiting = Waiting("more workers", CPU, clock=clock)
    assert waiting.share == 0
    epoch(waiting, clock, data=1.0, step=3.0)
    assert waiting.share == 0.25
    clock.now += 100  # validation, which is not counted
    epoch(waiting, clock, data=1.0, step=1.0)
    assert waiting.share == 0.5


@pytest.mark.parametrize(("data", "share"), [(0.5, 0.5 / 4.5), (2.0, 2 / 6), (3.0, 5 / 9)])
def test_a_host_that_waits_while_the_gpu_works_loses_nothing(data: float, share: float):
    """A step keeps the GPU busy for 2 s and the host not at all; only what is longer than a step is lost."""
    clock = Clock()
    waiting = Waiting("more workers", GPU, clock=clock, event=lambda: Event(clock))
    with waiting.epoch():
        for _ in waiting.over(clock.items(3, data)):
            clock.busy_until = max(clock.now, clock.busy_until) + 2
    assert waiting.share == pytest.approx(share)


def test_the_hint_is_given_once_and_not_for_the_first_epoch():
    clock = Clock()
    waiting = Waiting(waiting_advice(0, is_kept=False, could_finish_on_device=True), CPU, clock=clock)
    hints = []
    for data in (3.0, 0.1, 1.0, 3.0):
        epoch(waiting, clock, data=data, step=1.0)
        hints.append(waiting.hint())
    assert [hint is None for hint in hints] == [True, True, False, True]
    for part in ("50 %", "set workers (now 0)", "cache=disk", "augmentation.on_device"):
        assert part in hints[2]


def test_no_hint_for_short_epochs():
    clock = Clock()
    waiting = Waiting(waiting_advice(2, is_kept=True), CPU, clock=clock)
    for _ in range(3):
        epoch(waiting, clock, data=0.1, step=0.1)
        assert waiting.hint() is None
    assert waiting.share == pytest.approx(0.5)
    assert waiting_advice(2, is_kept=True) == "raise workers (now 2)"


def test_batches_are_measured():
    clock = Clock()
    waiting = Waiting("", CPU, clock=clock)

    def transform(image, mask):
        clock.now += 1
        return eval_transform(AugmentationConfig())(image, mask)

    dataset = open_dataset(DataConfig(dataset="rectangles", size=(16, 16), images={"train": 4}), "train")
    options = {"batch_size": 2, "seed": 0, "epoch": 0, "shuffle": False, "drop_last": False}
    with waiting.epoch():
        for _ in batches(dataset, transform, waiting=waiting, **options):
            clock.now += 2
    assert waiting.share == 0.5
