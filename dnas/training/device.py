"""Where to compute and how precisely: the one place that knows accelerate."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dnas.errors import UserError

Precision = Literal["auto", "fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "fp16", "bf16"]:
    """The precision to compute in: "auto" is bf16 (fp16 on GPUs without it) on CUDA and fp32 on the CPU.

    Raises :class:`UserError` for fp16 on the CPU, where training in it is neither fast nor stable.
    """
    if precision == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a CUDA device; use fp32 or bf16 on the CPU")
    return precision


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """A context in which modules compute in ``precision``; nothing changes for fp32."""
    resolved = resolve_precision(precision, device)
    if resolved == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[resolved])


def make_accelerator(device: torch.device) -> Accelerator:
    """An Accelerator for this device, distributed over the processes when torchrun started this one.

    It places and parallelises modules. Precision stays with :func:`autocast` and :func:`make_scaler`: accelerate would
    replace the network's ``forward`` for it, and leave traces that an export finds.
    """
    # accelerate keeps the device of a process's first Accelerator for good; a search on one device and a retraining on
    # another may well follow each other. An existing process group is found and kept.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no")


def end_processes() -> None:
    """Leave the process group, if torchrun made one; call it at the end of a command."""
    if torch.distributed.is_initialized():
        # Without the barrier a process that ends early makes the others crash at exit now and then.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def make_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Scales losses so that fp16 gradients do not vanish; passes everything through in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=resolve_precision(precision, device) == "fp16")


@contextlib.contextmanager
def tuned_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its algorithms and keep the fastest for each size, inside this context; nothing on the CPU."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of the GPU's peak; the process's own peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """The peak in MiB: of memory allocated on a GPU since the reset, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
