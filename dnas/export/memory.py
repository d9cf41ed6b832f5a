"""Peak memory of a function call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from dnas.peak_memory import peak_resident_bytes

T = TypeVar("T")


def with_peak_memory(device: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    """The result of ``work`` and its peak memory in MB (10^6 bytes).

    On CUDA, this is the memory allocated by PyTorch; on a CPU, the resident memory of the whole process, including
    Python and its libraries (since the start of the process on systems that cannot reset the peak).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) / 1e6
    _reset_peak()
    result = work()
    return result, _peak_resident() / 1e6


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_resident() -> int:
    """Peak resident memory in bytes since the last reset, or since the start of the process if it cannot be reset."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return peak_resident_bytes()
