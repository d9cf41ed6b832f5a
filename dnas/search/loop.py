"""The search: from a problem and images to searched parameters in a run folder."""

from __future__ import annotations

import dataclasses

import torch

from dnas.data import SegmentationDataset
from dnas.device import resolve_device
from dnas.progress import NoProgress, Progress
from dnas.runs import Interrupt, RunFolder
from dnas.search.bilevel import BilevelSearch
from dnas.search.config import JointSearchConfig, SearchConfig
from dnas.search.joint import JointSearch
from dnas.search.latency_target import LatencyTarget
from dnas.search.problem import BilevelProblem, JointProblem
from dnas.training.collector import settled_objects

Splits = tuple[SegmentationDataset, SegmentationDataset]
"""Training and validation images."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """How a finished search ended: mIoU and expected latency in ms of every architecture in the supernet."""

    epochs: int
    miou: dict[str, float]
    latency_ms: dict[str, float]


def search(
    problem: BilevelProblem | JointProblem,
    data: Splits,
    run: RunFolder,
    config: SearchConfig | JointSearchConfig,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    latency_target: LatencyTarget | None = None,
) -> SearchResult:
    """Search on the first of ``data`` (training images), validate on the second; keep state and logits in ``run``.

    The configuration says how. :class:`SearchConfig`: the training images are split into two disjoint halves by the
    run's seed; a step trains the weights on a batch of the first half, then, once pretraining is over, the architecture
    parameters on one of the second (FasterSeg, Appendix F, first order). :class:`JointSearchConfig`: a step trains both
    on a batch of all images (RegSeg, section 3.4). The architecture parameters after the last epoch are
    ``architecture.safetensors``.

    ``latency_target`` says what derived networks cost: this is logged, and where it has a target the weight of the
    latency is controlled so that they reach it.

    When ``run`` holds a state, the search goes on after its last finished epoch and ends like one that never stopped,
    bit by bit on the CPU. Ctrl-C raises ``Interrupted`` after the current step; no finished epoch is lost. With
    torchrun the processes share every batch.

    Raises :class:`UserError` for too few images, data of another number of classes, and a loss that is not finite.
    """
    job = _session(problem, data, run, config, resolve_device(device), progress or NoProgress(), latency_target)
    try:
        first = job.restore()
        with Interrupt(job.progress.message) as interrupt, settled_objects():
            for epoch in range(first, config.epochs):
                job.run_epoch(epoch, interrupt)
        job.accelerator.wait_for_everyone()  # the log is read below by all, and written by one
    finally:
        job.release()
    last = run.records("epoch")[-1]
    return SearchResult(epochs=config.epochs, miou=last["miou"], latency_ms=last["latency_ms"])


def _session(
    problem: BilevelProblem | JointProblem,
    data: Splits,
    run: RunFolder,
    config: SearchConfig | JointSearchConfig,
    device: torch.device,
    progress: Progress,
    latency_target: LatencyTarget | None,
) -> BilevelSearch | JointSearch:
    """The loop for a configuration; a problem of the other kind is a TypeError."""
    if isinstance(config, SearchConfig) and isinstance(problem, BilevelProblem):
        return BilevelSearch(problem, data, run, config, device, progress, latency_target)
    if isinstance(config, JointSearchConfig) and isinstance(problem, JointProblem):
        return JointSearch(problem, data, run, config, device, progress, latency_target)
    raise TypeError(f"a {type(problem).__name__} cannot be searched by a {type(config).__name__}")
