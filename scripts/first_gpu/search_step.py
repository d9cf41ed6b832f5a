"""Part 2: what a step of FasterSeg's search launches, how long it takes, and how often the host waits."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dnas.data import DataConfig, open_dataset
from dnas.progress import NoProgress
from dnas.runs import RunFolder
from dnas.search.bilevel import BilevelSearch
from dnas.search.calibration import freeze_bn_stats
from dnas.search.capture import WARM_UP
from dnas.training import deterministic_algorithms
from dnas.training.device import peak_memory_mb, reset_peak_memory
from scripts.first_gpu.session import TOY_NETWORK, Row, Session, Step
from search_spaces import load_space

CAPTURE = "search.capture=true"
VARIANTS = {
    "mixed, fp32": ("search.precision=fp32",),
    "mixed, bf16": ("search.precision=bf16",),
    "mixed, bf16, channels last": ("search.precision=bf16", "search.channels_last=true"),
    "mixed, fp32, graphs": ("search.precision=fp32", CAPTURE),
    "mixed, bf16, graphs": ("search.precision=bf16", CAPTURE),
    "single paths, fp32": ("search.precision=fp32", "search.operator_sampling=single_path"),
    "single paths, bf16": ("search.precision=bf16", "search.operator_sampling=single_path"),
}
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


def steps(session: Session) -> list[Step]:
    found = [Step("search step", f"search step, {name}", partial(_measured, name)) for name in VARIANTS]
    return [*found, Step("graphs", "graphs, compared", _compared)]


def _measured(name: str, session: Session) -> list[Row]:
    size, batch, timed = session.sized(((160, 320), 3, 10), ((64, 64), 2, 1))
    with tempfile.TemporaryDirectory() as folder:
        step, close, _ = _step(session, VARIANTS[name], size, batch, Path(folder) / "run")
        try:
            for _ in range(session.sized(WARM_UP + 2, 0)):
                step()
            reset_peak_memory(session.device)
            seconds = [_seconds(step, session) for _ in range(timed)]
            counted = _counted(step, session)
        finally:
            close()
    busy = counted.pop("busy_s")
    row = {"variant": name, "size": size, "batch": batch, "step_ms": 1e3 * statistics.median(seconds), **counted}
    # The profiler slows the host, not the kernels, so their time is compared with that of steps without it.
    row |= {"busy_share": busy / statistics.median(seconds), "peak_memory_mb": peak_memory_mb(session.device)}
    return [row]


def _compared(session: Session) -> list[Row]:
    """The weights after some steps with graphs, against those without; they should be equal."""
    size, batch, count = session.sized(((160, 320), 3, WARM_UP + 5), ((64, 64), 2, 1))
    found = []
    with tempfile.TemporaryDirectory() as folder, deterministic_algorithms(True):
        for name in ("mixed, fp32", "mixed, fp32, graphs"):
            step, close, weights = _step(session, VARIANTS[name], size, batch, Path(folder) / name)
            try:
                for _ in range(count):
                    step()
            finally:
                close()
            found.append([weight.detach().cpu() for weight in weights.parameters()])
    pairs = list(zip(*found, strict=True))
    largest = max(float((one - other).abs().max()) for one, other in pairs)
    return [{"steps": count, "weights": len(pairs), "largest_difference": largest}]


def _step(
    session: Session, settings: Sequence[str], size: tuple[int, int], batch: int, folder: Path
) -> tuple[Callable[[], None], Callable[[], None], nn.Module]:
    """A function that does one step on random images, one that ends the search, and the supernet."""
    if session.dry_run:
        settings = [*(setting for setting in settings if setting != CAPTURE), *TOY_NETWORK]
    space = load_space("fasterseg", ["task.num_classes=6", *settings])
    problem = space.problem(SimpleNamespace(lookup=lambda spec: 0.1), 0)
    data = DataConfig(dataset="rectangles", size=size, images={"train": 8, "val": 1})
    splits = open_dataset(data, "train"), open_dataset(data, "val")
    run = RunFolder.create(folder, "search", {}, 0, device=session.device)
    search = BilevelSearch(problem, splits, run, space.search, session.device, NoProgress())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *size, generator=generator)
    labels = torch.randint(6, (batch, *size), generator=generator)
    problem.weights.train()

    def step() -> None:
        with freeze_bn_stats(problem.weights):
            search._weight_step((images, labels), "search", generator)
            search._architecture_step((images, labels), generator)

    def close() -> None:
        search.release()
        run.close()

    return step, close, problem.weights


def _seconds(step: Callable[[], None], session: Session) -> float:
    session.synchronize()
    started = time.perf_counter()
    step()
    session.synchronize()
    return time.perf_counter() - started


def _counted(step: Callable[[], None], session: Session) -> dict[str, float]:
    """Launches, synchronisations and seconds of kernels and copies in one step."""
    # That of CUDA has the calls of its runtime, too; the operators of PyTorch would be minutes of post-processing.
    activity = ProfilerActivity.CUDA if session.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        step()
    averages = profiler.key_averages()
    on_device = [event for event in averages if event.device_type == DeviceType.CUDA]
    return {
        "launches": sum(event.count for event in averages if event.key.startswith(LAUNCHES)),
        "synchronisations": sum(event.count for event in averages if event.key.endswith("Synchronize")),
        "busy_s": 1e-6 * sum(event.self_device_time_total for event in on_device),
    }
