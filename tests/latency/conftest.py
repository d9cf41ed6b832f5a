from types import SimpleNamespace

import pytest
import torch

from dnas.latency import Effort, LatencyTable, Measurement, OperatorSpec, make_setup
from dnas.latency.provenance import start_provenance
from dnas.progress import NoProgress


class Updates(NoProgress):
    """Records the updates of a progress bar, and acts like Ctrl-C after ``stop_at`` visits."""

    def __init__(self, stop_at=None):
        self.stop_at, self.seen = stop_at, []

    def update(self, done, total, *, item="", left_s=None):
        self.seen.append(SimpleNamespace(done=done, total=total, item=item, left_s=left_s))
        if done == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def watch():
    """``watch()`` is a progress that records its updates in ``seen``; ``watch(3)`` stops at the third visit."""
    return Updates


@pytest.fixture
def setup():
    return make_setup("cpu")


@pytest.fixture
def quick():
    """The least effort, as the measured values do not matter."""
    return Effort(rounds=2, time_per_entry=0.002, warm_up_s=0, extra_rounds=0)


@pytest.fixture
def table(setup, quick):
    provenance = start_provenance(setup, quick, space="small", input_size=(64, 128), command=None)
    entries = {
        OperatorSpec("conv", ((channels, 8, 16),), 2 * channels, 2).key: Measurement(
            0.1 * channels + 1 / 3, 0.1 * channels, 0.1 * channels + 1, 10 + channels, 2
        )
        for channels in range(1, 6)
    }
    return LatencyTable(provenance, entries)


@pytest.fixture(autouse=True)
def _global_switches_stay():
    def switches():
        return (
            torch.get_num_threads(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
            torch.is_inference_mode_enabled(),
        )

    before = switches()
    yield
    assert switches() == before
