"""Search steps on a GPU that this machine lacks: no mixed devices, few kernels, and hardly any waiting for the host."""

from types import SimpleNamespace

import pytest
import torch

from dnas.data import DataConfig, open_dataset
from dnas.progress import NoProgress
from dnas.search import capture
from dnas.search.bilevel import BilevelSearch
from dnas.search.calibration import freeze_bn_stats
from dnas.search.joint import JointSearch
from search_spaces import load_space

GPU = torch.device("cuda", 0)
SIZE, BATCH = (160, 320), 3
TABLE = SimpleNamespace(lookup=lambda spec: 0.1)


def begin(monkeypatch, tmp_path, *settings, preset="fasterseg", kind=BilevelSearch, size=SIZE, table=TABLE):
    """A search on the GPU, by default of the full space, and a batch."""
    stand_in = SimpleNamespace(device=GPU, process_index=0, num_processes=1, free_memory=lambda: None)
    monkeypatch.setattr("dnas.search.session.make_accelerator", lambda device: stand_in)
    space = load_space(preset, ["task.num_classes=6", *settings])
    problem = space.problem(table, 0)
    data = DataConfig(dataset="rectangles", size=size, images={"train": 8, "val": 1})
    splits = open_dataset(data, "train"), open_dataset(data, "val")
    run = SimpleNamespace(seed=0, path=tmp_path)
    session = kind(problem, splits, run, space.search, GPU, NoProgress())
    batch = torch.empty(BATCH, 3, *size), torch.zeros(BATCH, *size, dtype=torch.int64)
    return session, batch


# Over 10 s: PyTorch infers shape and device of every operation in Python. The limits are what was counted; lower them
# when less is launched. Passes with single paths draw different operators, so that no two can run as one batch; here,
# where all draws are the same, that has to be said.
@pytest.mark.parametrize(
    ("settings", "launches", "waits"),
    [
        ((), 6_350, 8),
        (("search.operator_sampling=single_path", "search.batch_equal_passes=false"), 2_850, 8),
    ],
    ids=["mixed", "single path"],
)
def test_a_step_launches_few_kernels_and_does_not_wait(fake_gpu, monkeypatch, tmp_path, settings, launches, waits):
    with fake_gpu() as device:
        session, batch = begin(monkeypatch, tmp_path, "search.precision=fp32", "network.layers=4", *settings)
        device.launches.clear()
        device.waits.clear()
        generator = torch.Generator().manual_seed(0)
        with freeze_bn_stats(session.problem.weights):
            session._weight_step(batch, "search", generator)
            session._architecture_step(batch, generator)
        session.release()
    assert device.launches.total() <= launches, device.launches
    assert device.waits.total() <= waits, device.waits


SMALL = (
    *("network.layers=2", "network.scales=[8,16]", "network.ratios=[2,4]", "network.operators=[skip,conv,zoomed_conv]"),
    *("network.student_ratio=2", "network.teacher_ratio=4", "search.precision=bf16"),
)


@pytest.mark.parametrize(("sampling", "launches"), [("mixed", 1_940), ("single_path", 1_420)])
def test_a_step_in_bf16_keeps_weights_and_parameters_on_the_device(fake_gpu, monkeypatch, tmp_path, sampling, launches):
    with fake_gpu() as device:
        settings = (*SMALL, f"search.operator_sampling={sampling}")
        session, batch = begin(monkeypatch, tmp_path, *settings, size=(64, 64))
        generator = torch.Generator().manual_seed(0)
        images, labels = session._move(batch)
        passes = session.problem.weight_passes("search", generator)
        device.waits.clear()
        with freeze_bn_stats(session.problem.weights):
            for forward in passes:  # which a CUDA graph could hold: the host reads nothing
                session._loss(images, labels, forward).backward()
            assert not device.waits
            device.launches.clear()
            session._weight_step(batch, "search", generator)
            session._architecture_step(batch, generator)
        kinds = {weight.dtype for weight in session.weight_optimizer.sliced}
        session.release()
    assert device.waits.total() <= 8, device.waits
    assert device.launches.total() <= launches, device.launches
    assert kinds == {torch.bfloat16}
    tensors = [*session.problem.weights.state_dict().values(), *session.parameters]
    assert {tensor.device for tensor in tensors} == {GPU}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_passes_of_fixed_widths_are_graphs(fake_gpu, monkeypatch, tmp_path, precision):
    """Only the sampled width is launched kernel by kernel, and nothing waits while a graph is recorded."""
    replayed = []

    class Graphs:
        def __call__(self, function):
            before, launched = device.waits.total(), device.launches.copy()
            found = function()
            assert device.waits.total() == before, device.waits
            device.launches.clear()
            device.launches.update(launched)
            return lambda: replayed.append(1), found

    monkeypatch.setattr(capture, "CudaGraphs", Graphs)
    monkeypatch.setattr(capture, "WARM_UP", 0)
    launches = {}
    with fake_gpu() as device:
        for captures in (False, True):
            # Here, where all draws are the same, the sampled pass could join others.
            settings = (*SMALL, f"search.precision={precision}", "search.batch_equal_passes=false")
            settings = (*settings, f"search.capture={captures}")
            session, batch = begin(monkeypatch, tmp_path, *settings, size=(64, 64))
            generator = torch.Generator().manual_seed(0)
            with freeze_bn_stats(session.problem.weights):
                session._weight_step(batch, "search", generator)  # records
                device.launches.clear()
                device.waits.clear()
                session._weight_step(batch, "search", generator)
            launches[captures] = device.launches.total()
            assert device.waits.total() <= 4, device.waits
            session.release()
    assert len(replayed) == 2 * 3  # student.smallest, teacher.largest and student.largest in two steps
    assert launches[True] <= 0.6 * launches[False], launches


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_joint_step_waits_for_its_loss_alone(fake_gpu, monkeypatch, tmp_path, precision):
    with fake_gpu() as device:
        settings = {"preset": "regseg_rectangles", "kind": JointSearch, "size": (64, 64), "table": None}
        session, batch = begin(monkeypatch, tmp_path, f"search.precision={precision}", **settings)
        device.waits.clear()
        passes = session.problem.weight_passes("search", torch.Generator().manual_seed(0))
        session._step(batch, passes, searching=True)
        assert device.waits.total() <= 1, device.waits
        rates = [parameter for parameter in session.parameters if parameter.grad is not None]
        assert rates
        assert {rate.grad.device for rate in rates} == {GPU}
        session.release()
