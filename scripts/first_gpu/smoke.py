"""Part 1: does everything run on a GPU, and does it compute what the CPU computes?"""

from __future__ import annotations

import itertools
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from dnas.data import DataConfig, open_dataset
from dnas.export import benchmark
from dnas.networks import network_by_name
from dnas.ops import fractional_conv2d
from dnas.ops.fractional.triton_launch import is_triton_supported, triton_conv2d
from dnas.progress import NoProgress
from dnas.runs import Interrupted, RunFolder
from dnas.search import search
from dnas.training import RetrainConfig, deterministic_algorithms
from dnas.training.losses import OhemCrossEntropy, distillation_loss
from dnas.training.region_losses import region_loss
from dnas.workflows.retraining import run_retraining
from scripts.first_gpu.session import TOY_NETWORK, Row, Session, Step, WrongResultError
from search_spaces import load_space

TOLERANCES = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Of the fractional convolution, relative to the largest value; float32 has TF32's mantissa of 10 bits."""

WIDTHS = (16, 64, 512)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def steps(session: Session) -> list[Step]:
    """The benchmark is first: it must not rely on a device that is initialised already."""
    found = [Step("benchmark", f"benchmark {name}", partial(_benchmark, name)) for name in ("regseg", "dwrseg_l")]
    for width, dtype, layout in itertools.product(session.sized(WIDTHS, (16,)), TOLERANCES, LAYOUTS):
        name = f"fractional convolution, {width} channels a group, {str(dtype).removeprefix('torch.')}, {layout}"
        found.append(Step("kernel", name, partial(_kernel, width, dtype, layout)))
    precisions = session.sized(("fp32", "fp16", "bf16"), ("fp32", "bf16"))  # a CPU does not train in fp16
    found += [Step("retraining", f"retraining in {name}", partial(_retraining, name)) for name in precisions]
    found += [Step("resume", "search of 4 layers, stopped and resumed", _resume)]
    return [*found, Step("losses", "losses against the CPU", _losses)]


def _benchmark(name: str, session: Session) -> list[Row]:
    size = session.sized((1024, 2048), (64, 64))
    network = network_by_name(name, 19)
    found = benchmark(network, size, device=session.device, seconds=session.sized(3.0, 0.01))
    chosen = {key: found[key] for key in ("backend", "precision", "fps", "parameters", "multiply_adds", "input_size")}
    return [{"network": name, **chosen, "peak_memory_mb": found["peak_memory_mb"], **found["latency_ms"]}]


def _kernel(width: int, dtype: torch.dtype, layout: str, session: Session) -> list[Row]:
    """Output and gradients against float64 on the CPU, as the largest difference relative to the largest value."""
    channels, size = max(width, 64), session.sized((32, 64), (8, 9))
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    weight = (torch.randn(channels, width, 3, 3) / (3 * width**0.5)).to(dtype)
    inputs, rate = (x, weight), torch.tensor(2.6)
    gradient = torch.randn(2, channels, *size).to(dtype)
    groups = channels // width
    is_fused = is_triton_supported(x.to(session.device))
    if is_fused:  # raises where the kernel does not fit; fractional_conv2d would compute the separable form instead
        triton_conv2d(*(t.to(session.device) for t in inputs), None, rate.to(session.device), 1, groups)
    found = _differentiated([t.to(session.device) for t in (*inputs, rate)], gradient.to(session.device), groups)
    expected = _differentiated([t.double() for t in (*inputs, rate)], gradient.double(), groups)
    names = ("output", "input", "weight", "rate")
    errors = {name: _difference(a, b) for name, a, b in zip(names, found, expected, strict=True)}
    if max(errors.values()) > TOLERANCES[dtype]:
        raise WrongResultError(f"relative differences {errors}, expected at most {TOLERANCES[dtype]}")
    implementation = "fused" if is_fused else "separable"
    kind = str(dtype).removeprefix("torch.")
    return [{"width": width, "dtype": kind, "layout": layout, "implementation": implementation, **errors}]


def _differentiated(inputs: Sequence[Tensor], gradient: Tensor, groups: int) -> list[Tensor]:
    """The output, and the gradients of input, weight and rate."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = fractional_conv2d(*leaves, groups=groups)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def _difference(found: Tensor, expected: Tensor) -> float:
    expected = expected.cpu().double()
    return float((found.cpu().double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _retraining(precision: Literal["fp32", "fp16", "bf16"], session: Session) -> list[Row]:
    count = session.sized(20, 2)
    size, batch = session.sized((512, 1024), (64, 64)), session.sized(8, 2)
    losses, seconds, peak = _trained(session.device, precision, count, size, batch)
    half = seconds[len(seconds) // 2 :]
    row = {"first_loss": losses[0], "last_loss": losses[-1], "step_ms": 1e3 * statistics.median(half)}
    return [{"precision": precision, "steps": count, "batch": batch, "size": size, **row, "peak_memory_mb": peak}]


def _trained(
    device: torch.device, precision: Any, count: int, size: tuple[int, int], batch: int
) -> tuple[list[float], list[float], float]:
    """Losses and seconds of ``count`` steps of training RegSeg on generated images, and the peak memory in MiB."""
    config = RetrainConfig(epochs=1, batch_size=batch, precision=precision, warm_up_steps=5)
    data = DataConfig(dataset="streets", size=size, images={"train": count * batch, "val": 1}, cache=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run_retraining({"name": "regseg"}, data, out, config, source="regseg", device=str(device), check=0)
        run = RunFolder.open(out)
        taken, (epoch,) = run.records("step"), run.records("epoch")
    kept = [record["loss"] for record in taken if record["loss"] is not None]
    return kept, [record["seconds"] for record in taken], epoch["peak_memory_mb"]


def _resume(session: Session) -> list[Row]:
    rows: list[Row] = []
    for deterministic in (True, False):
        with tempfile.TemporaryDirectory() as folder, deterministic_algorithms(deterministic):
            whole = _searched(Path(folder) / "whole", session, (NoProgress(),))
            parts = _searched(Path(folder) / "parts", session, (_StopAfterEpoch(), NoProgress()))
        difference = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
        if deterministic and difference:
            raise WrongResultError(f"--deterministic: a resumed search ends {difference} away from one in one go")
        row = {"deterministic": deterministic, "largest_difference": difference}
        rows.append({"space": "fasterseg_demo_gradient, 4 layers", **row})
    return rows


def _searched(out: Path, session: Session, calls: Sequence[NoProgress]) -> dict[str, Tensor]:
    """The searched parameters; each of the ``calls`` but the last is interrupted."""
    epochs = ["search.pretrain_epochs=1", "search.search_epochs=1", "search.batch_size=2", "search.validation_images=2"]
    epochs.append(f"search.augmentation.crop={list(session.sized((64, 128), (64, 64)))}")
    space = load_space("fasterseg_demo_gradient", [*session.sized(("network.layers=4",), TOY_NETWORK), *epochs])
    size, count = session.sized((96, 192), (64, 64)), session.sized(64, 4)
    data = DataConfig(dataset="streets", size=size, images={"train": count, "val": 2}, cache=True)
    splits = open_dataset(data, "train"), open_dataset(data, "val")
    for number, progress in enumerate(calls):
        problem = space.problem(SimpleNamespace(lookup=lambda spec: 0.1), 0)
        with RunFolder.create(out, "search", {}, 0, resume=number > 0, device=session.device) as run:
            try:
                search(problem, splits, run, space.search, device=session.device, progress=progress)
            except Interrupted:
                if number + 1 == len(calls):
                    raise
    return RunFolder.open(out).load_weights("architecture")


class _StopAfterEpoch(NoProgress):
    """Sends Ctrl-C to this process once the first epoch is saved."""

    def message(self, text: str) -> None:
        if text.startswith("epoch 1/"):
            signal.raise_signal(signal.SIGINT)


def _losses(session: Session) -> list[Row]:
    """The loss functions and the first steps of a training, here and there."""
    size = session.sized((512, 1024), (32, 64))
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 2, 19, size[0] // 8, size[1] // 8, generator=generator).mul(2).unbind()
    labels = torch.randint(20, (2, *size), generator=generator)
    labels[labels == 19] = 255
    rows: list[Row] = []
    for name, loss in _loss_functions():
        (expected, gradient), (found, its_gradient) = (
            _with_gradient(loss, *(tensor.to(device) for tensor in (logits, other, labels)))
            for device in (torch.device("cpu"), session.device)
        )
        difference = _difference(its_gradient, gradient)
        rows.append({"loss": name, "cpu": expected, "device": found, "gradient_difference": difference})
    toy = session.sized((4, (128, 256), 2), (1, (64, 64), 2))
    pairs = zip(*(_trained(device, "fp32", *toy)[0] for device in (torch.device("cpu"), session.device)), strict=True)
    rows += [{"loss": f"training, step {n}", "cpu": a, "device": b} for n, (a, b) in enumerate(pairs, start=1)]
    wrong = [row for row in rows[: len(rows) - toy[0] + 1] if abs(row["device"] / row["cpu"] - 1) > 1e-2]
    if wrong:  # later steps of a training may differ, as rounding grows with every step
        raise WrongResultError(f"differs from the CPU: {wrong}")
    return rows


def _loss_functions() -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """By name, functions of two logits and labels."""
    yield "cross-entropy", lambda logits, other, labels: OhemCrossEntropy(None)(logits, labels)
    yield "OHEM", lambda logits, other, labels: OhemCrossEntropy(0.2, 1 / 16)(logits, labels)
    yield "Dice", lambda logits, other, labels: region_loss("dice", logits, labels)
    yield "Lovasz", lambda logits, other, labels: region_loss("lovasz", logits, labels)
    yield "distillation", lambda logits, other, labels: distillation_loss(logits, other, labels)


def _with_gradient(loss: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> tuple[float, Tensor]:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, *others)
    return value.item(), torch.autograd.grad(value, leaf)[0]
