import shutil
import sys

import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.latency import Effort, Measurement, WorkItem, make_setup, measure, measure_many
from dnas.latency.backends import Compiled, find_backend, place_owned, random_inputs
from dnas.latency.device import NO_NVML
from dnas.latency.measure import Workbench, is_out_of_memory
from dnas.latency.pace import within_budget
from dnas.latency.setup import pinned
from dnas.latency.statistics import HostStopwatch
from dnas.progress import NoProgress


class Sum(nn.Module):
    """Takes two inputs and records how it was called."""

    def __init__(self, seen):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.seen = seen

    def forward(self, one, other):
        channels_last = one.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((self.training, torch.is_inference_mode_enabled(), one.dtype, channels_last, one.shape))
        return self.conv(one) + other

    def __deepcopy__(self, memo):
        return Sum(self.seen).train(self.training)


def check(found):
    assert isinstance(found, Measurement)
    assert 0 < found.p10 <= found.median <= found.p90
    assert found.repetitions >= found.rounds >= 1


def test_measure_runs_in_eval_and_inference_mode_and_leaves_the_module_alone(quick):
    seen = []
    module = Sum(seen)
    inputs = [torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)]
    check(measure(module, inputs, precision="bf16", channels_last=True, threads=1, effort=quick))
    assert set(seen) == {(False, True, torch.bfloat16, True, (2, 4, 8, 8))}
    assert module.training
    assert next(module.parameters()).dtype == torch.float32
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_measure_many_builds_inputs_of_every_shape(quick):
    seen = []
    items = [WorkItem("sum", ((4, 6, 5), (4, 6, 5)), lambda: Sum(seen))]
    found = measure_many(items, make_setup("cpu", batch=3), effort=quick)
    check(found["sum"])
    assert {entry[-1] for entry in seen} == {(3, 4, 6, 5)}


def test_progress_reaches_its_total(quick, setup, watch):
    items = [WorkItem(f"relu{n}", ((2, 4, 4),), nn.ReLU) for n in range(5)]
    progress = watch()
    measure_many(items, setup, effort=quick, progress=progress)
    assert [report.done for report in progress.seen] == list(range(1, 11))
    assert {report.total for report in progress.seen} == {10}
    assert {report.item for report in progress.seen} == {f"relu{n}" for n in range(5)}
    assert progress.seen[-1].left_s == 0


def test_modules_are_made_anew_when_memory_is_short(quick, setup):
    made = []

    def build(name):
        made.append(name)
        return nn.Conv2d(8, 8, 3)

    names = [f"conv{n}" for n in range(4)]
    items = [WorkItem(name, ((8, 9, 9),), lambda name=name: build(name)) for name in names]
    measure_many(items, setup, effort=quick)
    assert sorted(made) == names
    made.clear()
    measure_many(items, setup, effort=quick, cache_bytes=1)
    assert len(made) > len(names)


def test_the_workbench_counts_shared_inputs_once_and_stays_within_its_memory(quick, setup):
    items = [WorkItem(f"conv{n}", ((8, 16, 16),), lambda: nn.Conv2d(8, 8, 3, bias=False)) for n in range(6)]
    inputs, weights = 8 * 16 * 16 * 4, 8 * 8 * 9 * 4
    bench = Workbench(setup, inputs + 3 * weights)
    with pinned(setup):
        for item in items:
            bench.visit(item, quick)
    assert bench.held_bytes == inputs + 3 * weights


def test_a_budget_shrinks_the_time_per_entry_only():
    effort = Effort(time_per_entry=1.0, rounds=4)
    assert within_budget(effort, 1000, 100) == effort
    assert within_budget(effort, 20, 100).time_per_entry == pytest.approx(0.1)
    assert within_budget(effort, 20, 100).rounds == 4


def test_no_memory_names_the_module(quick, setup):
    class Greedy(nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(UserError, match="greedy: does not fit"):
        measure_many([WorkItem("greedy", ((1, 2, 2),), Greedy)], setup, effort=quick)


class RuntimeException(Exception):
    """The name of ONNX Runtime's exceptions."""


@pytest.mark.parametrize(
    "text", ["Failed to allocate memory for requested buffer of size 8", "CUDA failure 2: out of memory"]
)
def test_no_memory_in_another_runtime_names_the_module_too(quick, setup, text):
    class Greedy(nn.Module):
        def forward(self, images):
            raise RuntimeException(text)

    with pytest.raises(UserError, match="greedy: does not fit"):
        measure_many([WorkItem("greedy", ((1, 2, 2),), Greedy)], setup, effort=quick)
    assert not is_out_of_memory(RuntimeException("wrong shape"))


def test_latencies_of_the_host_and_missing_nvml_are_reported(monkeypatch, quick, setup):
    told = []
    progress = NoProgress()
    monkeypatch.setattr(progress, "message", told.append, raising=False)
    items = [WorkItem(f"relu{n}", ((2, 4, 4),), nn.ReLU) for n in range(2)]
    measure_many(items, setup, effort=quick, progress=progress)
    assert told == []
    monkeypatch.setattr(HostStopwatch, "is_host_bound", lambda self: True)
    monkeypatch.setattr(sys.modules["dnas.latency.measure"], "conditions", lambda device: {"throttle_reasons": NO_NVML})
    measure_many(items, setup, effort=quick, progress=progress)
    assert "2 of 2 modules" in told[0]
    assert "--backend cudagraph" in told[0]
    assert "dnas[nvml]" in told[1]


def test_names_must_differ(quick, setup):
    with pytest.raises(UserError, match="twice"):
        measure_many([WorkItem("a", ((1, 2, 2),), nn.ReLU)] * 2, setup, effort=quick)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "cpu, cuda, cuda:N or mps"),
        ({"device": "meta"}, "cpu, cuda, cuda:N or mps"),
        ({"backend": "magic"}, "eager, compiled, cudagraph"),
        ({"backend": "cudagraph"}, "needs --device cuda"),
        ({"precision": "int3"}, "fp32, tf32, fp16, bf16"),
        ({"precision": "fp16"}, "use fp32 or bf16"),
        ({"precision": "tf32"}, "Nvidia GPU"),
        ({"threads": 0}, "expected 1 to"),
        ({"threads": 10_000}, "expected 1 to"),
    ],
)
def test_what_cannot_be_is_refused(options, message, quick):
    with pytest.raises(UserError, match=message):
        measure(nn.ReLU(), [torch.zeros(1, 1, 2, 2)], effort=quick, **options)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_module_computes_the_same():
    """Two modules of the same class have separate compiled code and weights."""
    setup = make_setup("cpu", backend="compiled")
    for width in (3, 5):
        module = nn.Sequential(nn.Conv2d(2, width, 3), nn.ReLU())
        inputs = random_inputs(((2, 8, 8),), setup)
        expected = module(*inputs)
        with pinned(setup):
            run = find_backend(setup).prepare(place_owned(module, setup), inputs, setup)
            torch.testing.assert_close(run(), expected.detach())
    assert isinstance(find_backend(setup), Compiled)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["eager", "cudagraph"])
def test_cuda(backend, quick):
    module, images = nn.Conv2d(8, 8, 3), torch.randn(1, 8, 64, 64)
    for precision in ("fp32", "fp16", "bf16"):
        check(measure(module, [images], device="cuda", backend=backend, precision=precision, effort=quick))
