"""Part 4: the fractional convolution with other warps, stages and blocks, against cuDNN's integer convolution."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch

from dnas.ops.fractional import triton_launch
from dnas.ops.fractional.triton_launch import KernelDoesNotFitError, is_triton_supported
from scripts.bench_fractional import Case, Clock
from scripts.first_gpu.session import Row, Session, Step

SHAPES = {16: "2x128x64x128", 64: "2x256x64x128"}
"""By channels of a group: maps of Cityscapes at 1/16, batch 2."""

WARPS, STAGES, POSITIONS = (4, 8), (1, 2), (64, 128)


def steps(session: Session) -> list[Step]:
    found = []
    for width, dtype in itertools.product(session.sized(SHAPES, (16,)), (torch.float32, torch.bfloat16)):
        name = f"sweep, {width} channels a group, {str(dtype).removeprefix('torch.')}"
        found.append(Step("sweep", name, partial(_sweep, width, dtype)))
    return found


def _sweep(width: int, dtype: torch.dtype, session: Session) -> list[Row]:
    """Forward and backward pass in ms for every configuration, and relative to the integer convolution."""
    case = Case.make(session.sized(SHAPES[width], "1x16x8x8"), width, 4.3, session.device, dtype)
    clock, repetitions = Clock(session.device, "wall"), session.sized(30, 1)
    integer = _median_ms(case.integer, clock, repetitions)
    common = {"width": width, "dtype": str(dtype).removeprefix("torch."), "integer_ms": integer}
    if not is_triton_supported(case.x):
        milliseconds = _median_ms(case.automatic, clock, repetitions)
        return [{**common, "ms": milliseconds, "ratio": milliseconds / integer, "used": True}]
    rows = []
    used = (triton_launch.NUM_WARPS, triton_launch.NUM_STAGES, triton_launch.BLOCK_POSITIONS)
    for chosen in itertools.product(WARPS, STAGES, POSITIONS):
        row = {**common, **dict(zip(("warps", "stages", "positions"), chosen, strict=True)), "used": chosen == used}
        names = ("NUM_WARPS", "NUM_STAGES", "BLOCK_POSITIONS")
        with mock.patch.multiple(triton_launch, **dict(zip(names, chosen, strict=True))):
            if _fits(case):
                milliseconds = _median_ms(case.automatic, clock, repetitions)
                row |= {"ms": milliseconds, "ratio": milliseconds / integer}
        rows.append(row)
    return rows


def _fits(case: Case) -> bool:
    """Whether the device has the shared memory; the separable form would run otherwise."""
    arguments = (case.x.detach(), case.weight.detach(), case.dilation.detach())
    try:
        triton_launch.triton_gradients(case.gradient, *arguments, 1, case.groups)
    except KernelDoesNotFitError:
        return False
    return True


def _median_ms(work: Callable[[], object], clock: Clock, repetitions: int) -> float:
    for _ in range(3):
        work()
    return statistics.median(clock(work) for _ in range(repetitions))
