"""Peak memory of a function call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from dnas.peak_memory import peak_resident_bytes

T = TypeVar("T")


def with_peak_memory(device: torch.device, work: Callable[[Callable[[], None]], T]) -> tuple[T, float]:
    """The result of ``work`` and its peak memory in MB (10^6 bytes).

    On CUDA, this is the memory allocated by PyTorch and by other runtimes, which is what the device has less free than
    before apart from PyTorch's. ``work`` is given a function to call while it holds its memory. On
    a CPU, it is the resident memory of the whole process, including Python and its libraries (since the start of the
    process on systems that cannot reset the peak).
    """
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # statistics cannot be reset before
        torch.cuda.reset_peak_memory_stats(device)
        # PyTorch's own memory is counted exactly, so what its caches hold must not be counted here.
        free = _free_outside_pytorch(device)
        least = free

        def look() -> None:
            nonlocal least
            least = min(least, _free_outside_pytorch(device))

        result = work(look)
        return result, (torch.cuda.max_memory_allocated(device) + free - least) / 1e6
    _reset_peak()
    result = work(lambda: None)
    return result, _peak_resident() / 1e6


def _free_outside_pytorch(device: torch.device) -> int:
    """Bytes of the device that are free or in PyTorch's caches."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


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
