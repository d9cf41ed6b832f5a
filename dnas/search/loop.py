"""Entry point of the search: trains a search problem and saves the searched parameters in a run folder."""

from __future__ import annotations

import dataclasses

import torch

from dnas.data import SegmentationDataset
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.progress import NoProgress, Progress
from dnas.runs import RunFolder
from dnas.search.bilevel import BilevelSearch
from dnas.search.config import JointSearchConfig, OneShotConfig, SearchConfig
from dnas.search.joint import JointSearch
from dnas.search.latency_target import LatencyTarget
from dnas.search.one_shot import OneShotSearch
from dnas.search.problem import BilevelProblem, JointProblem, OneShotProblem
from dnas.training.collector import settled_objects
from dnas.training.interruption import interruptible

SearchSettings = SearchConfig | JointSearchConfig | OneShotConfig
"""The settings of each kind of search."""

SearchProblems = BilevelProblem | JointProblem | OneShotProblem
"""The problem of each kind of search."""

Splits = tuple[SegmentationDataset, SegmentationDataset]
"""Training and validation images."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Result of a search: mIoU in the supernet and expected latency in ms of every architecture."""

    epochs: int
    miou: dict[str, float]
    latency_ms: dict[str, float]


def search(
    problem: SearchProblems,
    data: Splits,
    run: RunFolder,
    config: SearchSettings,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    latency_target: LatencyTarget | None = None,
) -> SearchResult:
    """Search on the training images of ``data``, the first of its splits; save checkpoints in ``run``.

    With a :class:`SearchConfig`, the training images are split into two disjoint halves by the run's seed. Each step
    trains the weights on a batch of the first half and, after pretraining, the architecture parameters on a batch of
    the second half (FasterSeg, Appendix F, first order). With a :class:`JointSearchConfig`, each step trains both on a
    batch of all images (RegSeg, section 3.4). The final architecture parameters are in ``architecture.safetensors``.
    With a :class:`OneShotConfig`, the weights are trained by sampled networks; some training images are held out.

    Two-level and one-shot searches never use the validation images (FasterSeg, Appendix H): their scores are those on
    the second half, or on the held-out images.

    ``latency_target``: the latencies of derived networks, which are logged; if it has a target, a controller sets the
    weight of the latency so that derived networks reach it.

    If ``run`` has a checkpoint, the search resumes after the last finished epoch, with the same result as without the
    interruption (bit-identical on the CPU). Ctrl-C raises ``Interrupted`` after the current step; finished epochs are
    kept. With torchrun, every process trains on its own batches and gradients are averaged.

    Raises :class:`UserError` for too few images, data with another number of classes, and a loss that is not finite.
    """
    session = _session(problem, data, run, config, resolve_device(device), progress or NoProgress(), latency_target)
    try:
        first = session.restore()
        with interruptible(run.path, session.progress) as interrupt, settled_objects():
            for epoch in range(first, config.epochs):
                session.run_epoch(epoch, interrupt)
        session.accelerator.wait_for_everyone()  # all processes read the log that one has written
    finally:
        session.release()
    records = run.records("epoch")
    if not records or not isinstance(records[-1].get("miou"), dict):
        raise UserError(f"{run.path}: log.jsonl lacks the record of the last epoch; restore it, or start again")
    last = records[-1]
    return SearchResult(epochs=config.epochs, miou=last["miou"], latency_ms=last["latency_ms"])


def _session(
    problem: SearchProblems,
    data: Splits,
    run: RunFolder,
    config: SearchSettings,
    device: torch.device,
    progress: Progress,
    latency_target: LatencyTarget | None,
) -> BilevelSearch | JointSearch | OneShotSearch:
    """The session of a configuration; raises ``TypeError`` for a problem of the other kind."""
    if isinstance(config, SearchConfig) and isinstance(problem, BilevelProblem):
        return BilevelSearch(problem, data, run, config, device, progress, latency_target)
    if isinstance(config, JointSearchConfig) and isinstance(problem, JointProblem):
        return JointSearch(problem, data, run, config, device, progress, latency_target)
    if isinstance(config, OneShotConfig) and isinstance(problem, OneShotProblem):
        return OneShotSearch(problem, data, run, config, device, progress)
    raise TypeError(f"a {type(problem).__name__} cannot be searched by a {type(config).__name__}")
