"""Search steps on a GPU that this machine lacks: no mixed devices, few kernels, and hardly any waiting for the host."""

from types import SimpleNamespace

import pytest
import torch

from dnas.data import DataConfig, open_dataset
from dnas.progress import NoProgress
from dnas.search.bilevel import BilevelSearch
from dnas.search.calibration import freeze_bn_stats
from search_spaces import load_space

GPU = torch.device("cuda", 0)
SIZE, BATCH = (160, 320), 3


def begin(monkeypatch, tmp_path, *settings):
    """A search of the full space on the GPU, and a batch."""
    stand_in = SimpleNamespace(device=GPU, process_index=0, num_processes=1, free_memory=lambda: None)
    monkeypatch.setattr("dnas.search.session.make_accelerator", lambda device: stand_in)
    space = load_space("fasterseg", ["task.num_classes=6", *settings])
    table = SimpleNamespace(lookup=lambda spec: 0.1)
    problem = space.problem(table, 0)
    data = DataConfig(dataset="rectangles", size=SIZE, images={"train": 8, "val": 1})
    splits = open_dataset(data, "train"), open_dataset(data, "val")
    run = SimpleNamespace(seed=0, path=tmp_path)
    session = BilevelSearch(problem, splits, run, space.search, GPU, NoProgress())
    batch = torch.empty(BATCH, 3, *SIZE), torch.zeros(BATCH, *SIZE, dtype=torch.int64)
    return session, batch


# Over 10 s: PyTorch infers shape and device of every operation in Python. The limits are what was counted; lower them
# when less is launched. The paper's 16 layers launch three times as much and wait as often.
@pytest.mark.parametrize(
    ("settings", "launches", "waits"),
    [
        ((), 12_500, 8),
        (("search.operator_sampling=single_path",), 5_400, 14),
    ],
    ids=["mixed", "single path"],
)
def test_a_step_launches_few_kernels_and_does_not_wait(fake_gpu, monkeypatch, tmp_path, settings, launches, waits):
    with fake_gpu() as device:
        session, batch = begin(monkeypatch, tmp_path, "search.precision=fp32", "network.layers=6", *settings)
        device.launches.clear()
        device.waits.clear()
        generator = torch.Generator().manual_seed(0)
        with freeze_bn_stats(session.problem.weights):
            session._weight_step(batch, "search", generator)
            session._architecture_step(batch, generator)
        session.release()
    assert device.launches.total() <= launches, device.launches
    assert device.waits.total() <= waits, device.waits
