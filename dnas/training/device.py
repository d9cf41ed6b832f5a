"""Precision, distribution and memory of training; the only module that uses accelerate."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dnas.errors import UserError
from dnas.peak_memory import peak_resident_bytes

Precision = Literal["auto", "fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "fp16", "bf16"]:
    """The precision to compute in: "auto" is bf16 on CUDA (fp16 on GPUs without bf16) and fp32 on the CPU.

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
    """A context in which modules compute in ``precision``; it does nothing for fp32."""
    resolved = resolve_precision(precision, device)
    if resolved == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[resolved])


def make_accelerator(device: torch.device) -> Accelerator:
    """An Accelerator for this device, distributed over all processes if torchrun started this one.

    It moves and parallelises modules. Precision is left to :func:`autocast` and :func:`make_scaler`: accelerate would
    replace the network's ``forward`` for it, which an export would notice.
    """
    # accelerate keeps the device of the first Accelerator of a process, but a search on one device may be followed by a
    # retraining on another. An existing process group is found and kept.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
    with _ended_by_sigterm():
        return Accelerator(cpu=device.type == "cpu", mixed_precision="no")


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A context in which SIGTERM ends the process at once.

    Where processes wait for each other to start, PyTorch waits without running Python's handlers: when one of them has
    failed, torchrun would have to wait for 30 seconds until it kills the others.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_processes() -> None:
    """Leave the process group if there is one; to be called at the end of a command."""
    if torch.distributed.is_initialized():
        # Without the barrier a process that ends early sometimes makes the others crash at exit.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def make_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """A scaler of losses that keeps fp16 gradients from vanishing; it does nothing in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=resolve_precision(precision, device) == "fp16")


@contextlib.contextmanager
def tuned_convolutions(device: torch.device) -> Iterator[None]:
    """A context in which cuDNN tries its algorithms and uses the fastest for each size; nothing on the CPU.

    Nothing, too, where only deterministic algorithms are allowed: the fastest one may be another in every run.
    """
    before = torch.backends.cudnn.benchmark
    tunes = device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = before or tunes
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of :func:`peak_memory_mb` on a GPU; the peak of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # statistics cannot be reset before
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: allocated on a GPU since the reset, or that of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_bytes() / 2**20
