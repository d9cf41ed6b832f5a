"""How many processes read images, where the configuration leaves it open."""

from __future__ import annotations

import math
import multiprocessing
import os
from pathlib import Path

import torch

from dnas.data.dataset import SegmentationDataset
from dnas.environment import local_process_count

_MOST = 16
_SMALL = {"cuda": 2**14, "cpu": 2**17}
"""Pixels below which the reading of an image takes too short, beside a step on the device, to start processes."""
_CORES_TO_A_WORKER = 8
"""Where the CPU trains, it needs its cores itself: a step takes far longer than its images."""
_CGROUP = Path("/sys/fs/cgroup/cpu.max")


def available_cores(limit: Path = _CGROUP) -> int:
    """The cores that this process may use: by its affinity, and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text().split()[:2]
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or one without a quota ("max")
        return cores


def worker_count(
    wanted: int | None,
    dataset: SegmentationDataset,
    device: torch.device,
    *,
    streams: int = 1,
    cores: int | None = None,
) -> int:
    """``wanted``, or if it is None a number of workers for each of ``streams`` that a process on ``device`` reads.

    ``cores``: of this process, by default its part of those that are available. There are no workers where they would
    not pay: for small images, on one core, on a CPU of few cores, and where each would have a cache of its own. The
    number changes no bit of the batches.
    """
    if wanted is not None:
        return wanted
    cores = available_cores() // local_process_count() if cores is None else cores
    is_private = dataset.kept_in == "memory" and multiprocessing.get_start_method() != "fork"
    if is_private or math.prod(dataset.image_size) < _SMALL.get(device.type, 0):
        return 0
    if device.type != "cuda":
        return min(2, cores // _CORES_TO_A_WORKER) // streams
    return 0 if cores < 2 else max(1, min(_MOST, cores - 1) // streams)
