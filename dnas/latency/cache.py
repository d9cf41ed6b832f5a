"""Cold caches: removing from a device's caches what a measured module left there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from dnas.errors import UserError

CACHES = ("warm", "cold")
_UNKNOWN_CPU_CACHE = 64 << 20
_UNKNOWN_CUDA_CACHE = 128 << 20
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_flush(device: torch.device, threads: int) -> Callable[[], object]:
    """A function that writes a buffer of twice the last-level cache of ``device``, which evicts everything else.

    On a CPU the buffer covers one last-level cache per thread of an operator, as far as there are that many. Raises
    :class:`UserError` for devices whose caches cannot be emptied.
    """
    if device.type == "cuda":
        size = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or _UNKNOWN_CUDA_CACHE
        return torch.zeros(2 * size, dtype=torch.int8, device=device).zero_
    if device.type != "cpu":
        raise UserError(f"cache cold: available on cpu and cuda, device is {device}; use warm")
    size, instances = last_level_cache(Path("/sys/devices/system/cpu"))
    buffer = torch.zeros(2 * size * min(threads, instances) // 4, dtype=torch.float32)
    # Read and written: a plain fill may bypass the caches.
    return lambda: buffer.add_(1.0)


def last_level_cache(cpus: Path) -> tuple[int, int]:
    """Bytes and number of the last-level caches, from the kernel's folder of CPUs; a guess if it does not say."""
    levels: dict[int, dict[str, int]] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, size = int((index / "level").read_text()), parse_size((index / "size").read_text())
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        levels.setdefault(level, {})[shared] = size
    if not levels:
        return _system_cache() or _UNKNOWN_CPU_CACHE, 1
    found = levels[max(levels)]
    return max(found.values()), len(found)


def parse_size(text: str) -> int:
    """``32768K`` as bytes; :class:`ValueError` for anything else."""
    text = text.strip()
    unit = _UNITS.get(text[-1:], 1)
    return int(text[:-1] if text[-1:] in _UNITS else text) * unit


def _system_cache() -> int:
    try:
        return max(0, os.sysconf("SC_LEVEL3_CACHE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 0
