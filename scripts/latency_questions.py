"""Operator latencies of two papers, measured on this device.

- RegSeg (version 1, Table 1): a Y block and D blocks with the rates (1, 1), (1, 4) and (1, 10), width 256, group width
  16, input 1x256x64x128. The D block with (1, 1) is split into two convolutions, as in this table of the paper.
- Latency over dilation rate, 1 to 18: one 3x3 convolution with the same width, group width and input.
- FasterSeg (Table 1): 3x3 convolutions with 256 channels: plain, in two groups, with dilation rate 2, and zoomed, input
  1x256x32x64.

Prints Markdown tables. All modules of a table run in interleaved rounds, so that other work on the machine slows all of
them: the ratios are more stable than the milliseconds. On a busy CPU, use ``--clock cpu`` with ``--threads 1`` to count
only the CPU time of this process.

    python scripts/latency_questions.py [--device cpu] [--backend eager] [--precision fp32] [--threads 1] [--clock cpu]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial

from torch import nn

from dnas.errors import UserError
from dnas.latency import Effort, Measurement, MeasurementSetup, WorkItem, make_setup, measure_many
from dnas.latency.device import describe_device
from dnas.latency.statistics import HostStopwatch, Stopwatch
from dnas.networks.regseg_blocks import DBlock
from dnas.ops import ZoomedConv
from dnas.profile import count_multiply_adds, count_parameters

Shape = tuple[int, int, int]
Modules = Mapping[str, Callable[[], nn.Module]]

BLOCK_INPUT: Shape = (256, 64, 128)
BLOCK_MS = {"Y block": 1.0, "D block (1, 1)": 1.1, "D block (1, 4)": 1.2, "D block (1, 10)": 1.2}
OPERATOR_INPUT: Shape = (256, 32, 64)
OPERATOR_MS = {"conv": 0.15, "conv, 2 groups": 0.13, "conv, dilation 2": 0.25, "zoomed conv": 0.09}
RATES = range(1, 19)


def main() -> None:
    options = parse_arguments()
    setup = make_setup(
        options.device,
        backend=options.backend,
        precision=options.precision,
        channels_last=options.channels_last,
        threads=options.threads,
    )
    if options.clock == "cpu":
        setup = on_cpu_time(setup)
    effort = Effort(rounds=options.rounds, time_per_entry=options.seconds)
    threads = f", {setup.threads} threads" if setup.device.type == "cpu" else ""
    clock = ", CPU time" if options.clock == "cpu" else ""
    print(f"{describe_device(setup.device).name}, {setup.backend}, {setup.precision}{threads}{clock}")
    questions: tuple[tuple[str, Shape, Modules, Mapping[str, float], str], ...] = (
        ("RegSeg, Table 1: blocks at 1x256x64x128", BLOCK_INPUT, blocks(), BLOCK_MS, "T4, mixed"),
        ("Dilation rate of a 3x3 convolution at 1x256x64x128, groups of 16", BLOCK_INPUT, dilations(), {}, ""),
        (
            "FasterSeg, Table 1: convolutions at 1x256x32x64",
            OPERATOR_INPUT,
            operators(),
            OPERATOR_MS,
            "1080 Ti, TensorRT",
        ),
    )
    for title, shape, modules, printed, where in questions:
        print(f"\n{title}\n")
        print("\n".join(table(modules, shape, measured(modules, shape, setup, effort), printed, where)), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each module")
    return parser.parse_args()


class CpuTimeSetup(MeasurementSetup):
    """A setup that measures CPU time instead of wall time."""

    def stopwatch(self) -> Stopwatch:
        """A stopwatch for the CPU time of this process, summed over its threads."""
        return HostStopwatch(time.process_time)


def on_cpu_time(setup: MeasurementSetup) -> MeasurementSetup:
    """``setup`` with CPU time; raises :class:`UserError` unless it is a CPU with one thread."""
    if setup.device.type != "cpu" or setup.threads != 1:
        raise UserError("--clock cpu: needs --device cpu and --threads 1, as CPU time is summed over threads")
    return CpuTimeSetup(**{field.name: getattr(setup, field.name) for field in fields(setup)})


def blocks() -> Modules:
    """A Y block and D blocks; equal rates stay split, as in the paper's row (1, 1)."""
    width = BLOCK_INPUT[0]
    split = {f"D block ({a}, {b})": (a, b) for a, b in ((1, 1), (1, 4), (1, 10))}
    return {
        "Y block": partial(DBlock, width, width, (1,)),
        **{name: partial(DBlock, width, width, rates, split_equal=True) for name, rates in split.items()},
    }


def dilations() -> Modules:
    """One convolution at each dilation rate."""
    width = BLOCK_INPUT[0]
    return {
        f"rate {rate}": partial(nn.Conv2d, width, width, 3, padding=rate, dilation=rate, groups=width // 16, bias=False)
        for rate in RATES
    }


def operators() -> Modules:
    """FasterSeg's four operators; each is one convolution with BatchNorm and ReLU."""
    width = OPERATOR_INPUT[0]

    def conv(groups: int = 1, dilation: int = 1) -> nn.Module:
        layer = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())

    return {
        "conv": conv,
        "conv, 2 groups": partial(conv, groups=2),
        "conv, dilation 2": partial(conv, dilation=2),
        "zoomed conv": partial(ZoomedConv, width, width, depth=1),
    }


def measured(modules: Modules, shape: Shape, setup: MeasurementSetup, effort: Effort) -> dict[str, Measurement]:
    """Latency of every module for one input of ``shape`` (channels, height, width)."""
    return measure_many([WorkItem(name, (shape,), build) for name, build in modules.items()], setup, effort=effort)


def table(
    modules: Modules, shape: Shape, found: Mapping[str, Measurement], printed: Mapping[str, float], where: str
) -> list[str]:
    """Markdown rows; ratios are relative to the first module, ``printed`` are the paper's latencies in ms."""
    names = list(modules)
    first = found[names[0]].median
    paper = f" paper ({where}) | ratio |" if printed else ""
    lines = [
        f"| | ms | 10 to 90 % | ratio | G multiply-adds | M parameters |{paper}",
        f"|---|---|---|---|---|---|{'---|---|' if printed else ''}",
    ]
    for name in names:
        entry, module = found[name], modules[name]()
        work, weights = count_multiply_adds(module, shape[1:], shape[0]) / 1e9, count_parameters(module) / 1e6
        figures = f"{entry.median:.3f} | {entry.p10:.3f} to {entry.p90:.3f} | {entry.median / first:.2f}"
        theirs = f" {printed[name]} | {printed[name] / printed[names[0]]:.2f} |" if printed else ""
        lines.append(f"| {name} | {figures} | {work:.2f} | {weights:.2f} |{theirs}")
    return lines


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
