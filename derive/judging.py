"""Judging derived networks by the weights of a finished search.

A network inherits the weights of the supernet, its BatchNorm statistics are measured on the images that trained these
weights, and its mIoU on training images that they have never seen. The validation images are never used
(FasterSeg, Appendix H).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from derive.architecture import Architecture, identity
from dnas.config import Field, parse_config, record
from dnas.data import (
    DataConfig,
    SegmentationDataset,
    evenly_spaced,
    match_classes,
    open_dataset,
)
from dnas.data.evaluation import EvaluationImages, memory_to_keep
from dnas.data.worker_count import worker_count
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.input_channels import with_input_channels
from dnas.json_lines import append_record, read_lines, repair
from dnas.latency.table import LatencyTable
from dnas.progress import NoProgress, Progress
from dnas.runs import RunFolder, load_into
from dnas.runs.configurations import search_configuration
from dnas.search import JointSearchConfig, Pass, SearchProblem, SearchSettings
from dnas.search.calibration import calibration_images, recalibrate_bn
from dnas.search.scoring import ScoredImages
from dnas.training.device import autocast, make_accelerator

if TYPE_CHECKING:
    from derive.base import Deriver

JUDGED = "judged.jsonl"
"""File name of the judged networks in the run folder of a search."""


class Judge:
    """The mIoU of derived networks with inherited weights; every network is judged once and kept in the run folder.

    With several processes, each scores its share of the images, and all must judge the same networks.
    """

    def __init__(
        self,
        run: RunFolder,
        deriver: Deriver[Any],
        dataset: Callable[[], SegmentationDataset],
        problem: Callable[[], SearchProblem],
        *,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``dataset`` opens the training images, ``problem`` gives the problem of the search with its final weights.

        Both are called when the first network is judged.
        """
        self.run, self.progress = run, progress or NoProgress()
        self._deriver, self._open_dataset, self._open_problem = deriver, dataset, problem
        self._settings: SearchSettings = deriver.space.search
        self._device = resolve_device(device)
        path = run.path / JUDGED
        if run.is_owner:
            repair(path, "the judged networks")
        self._known = {record.network: record.miou for record in judged_records(run)}

    @classmethod
    def of_run(
        cls,
        run: RunFolder,
        deriver: Deriver[Any],
        table: LatencyTable | None,
        *,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> Judge:
        """A judge with the final weights and the data of a run folder; both are read when they are needed."""
        source = str(run.path / "configuration.yaml")

        def dataset() -> SegmentationDataset:
            config = parse_config(DataConfig, search_configuration(run).data, f"{source}: data")
            found = open_dataset(config, "train")
            return match_classes(found, search_configuration(run).classes or found.labels.names, str(run.path))

        return cls(
            run,
            deriver,
            dataset,
            lambda: searched_problem(run, deriver, table),
            device=device,
            progress=progress,
        )

    @functools.cached_property
    def problem(self) -> SearchProblem:
        """The problem of the search, with its final weights."""
        problem = self._open_problem()
        problem.weights.to(self._device)
        return problem

    @functools.cached_property
    def _dataset(self) -> SegmentationDataset:
        return self._open_dataset()

    @functools.cached_property
    def _images(self) -> tuple[EvaluationImages, ScoredImages]:
        """Images that measure BatchNorm statistics, and those that score; decoded once for all networks."""
        settings, dataset = self._settings, self._dataset
        kept, judging = self._parts()
        workers = worker_count(settings.workers, dataset, self._device)
        keep = memory_to_keep(dataset)
        calibration = calibration_images(
            dataset, settings.augmentation, settings.batch_size, kept, self._device, workers=workers, keep=keep
        )
        scored = ScoredImages(
            dataset,
            settings.augmentation,
            judging,
            self._device,
            batch_size=settings.batch_size,
            rank=self._accelerator.process_index,
            world=self._accelerator.num_processes,
            workers=workers,
            keep=keep,
        )
        return calibration, scored

    @functools.cached_property
    def _accelerator(self) -> Any:
        return make_accelerator(self._device)

    def miou(
        self, architectures: Sequence[Architecture], description: str, notes: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """The mIoU of every network; ``notes``: further entries for the record of each."""
        keys = [key_of(architecture) for architecture in architectures]
        jobs = {
            key: functools.partial(self._judged, architecture)
            for key, architecture in zip(keys, architectures, strict=True)
        }
        found = self._all(jobs, description, dict(zip(keys, notes, strict=True)))
        return [found[key] for key in keys]

    def miou_of_passes(self, passes: Mapping[str, Pass], description: str, note: Mapping[str, Any]) -> dict[str, float]:
        """The mIoU of passes of the supernet by their names, each the mean over its outputs; ``note`` as above."""
        jobs = {name: functools.partial(self._judged_pass, forward) for name, forward in passes.items()}
        return self._all(jobs, description, dict.fromkeys(jobs, note))

    def _all(
        self, jobs: Mapping[str, Callable[[], float]], description: str, notes: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, float]:
        self.progress.begin(description, len(jobs))
        for key, job in jobs.items():
            if key not in self._known:
                self._known[key] = job()
                if self.run.is_owner:
                    append_record(self.run.path / JUDGED, {"network": key, "miou": self._known[key], **notes[key]})
            self.progress.advance(miou=self._known[key])
        return {key: self._known[key] for key in jobs}

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def _judged(self, architecture: Architecture) -> float:
        network = self._deriver.inherit(self.problem, architecture).to(self._device)
        outputs = self._scored(network, lambda images: {"network": network(images)})
        return outputs["network"]

    def _judged_pass(self, forward: Pass) -> float:
        outputs = self._scored(self.problem.weights, lambda images: self.problem.outputs(images, forward))
        return sum(outputs.values()) / len(outputs)

    def _scored(self, network: nn.Module, run: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, float]:
        """The mIoU of the outputs of ``run`` with BatchNorm statistics of their own in ``network``."""
        calibration, scored = self._images

        def outputs(images: Tensor) -> Mapping[str, Tensor]:
            with autocast(self._device, self._settings.precision):
                return run(images)

        recalibrate_bn(network, lambda batch: outputs(batch[0]), calibration)
        return scored.miou(outputs)

    def _parts(self) -> tuple[Sequence[int], Sequence[int]]:
        """The training images of the supernet's weights, and those that judge networks."""
        settings = self._settings
        if isinstance(settings, JointSearchConfig):
            raise UserError(f"{self.run.path}: a joint search holds no training images out, by which to judge networks")
        kept, held_out = settings.parts(len(self._dataset), self.run.seed)
        wanted = min(len(held_out), settings.judge_images or len(held_out))
        return kept, [held_out[i] for i in evenly_spaced(len(held_out), wanted)]


def searched_problem(run: RunFolder, deriver: Deriver[Any], table: LatencyTable | None) -> SearchProblem:
    """The problem of a search with the weights and the architecture parameters in its run folder."""
    problem: SearchProblem = deriver.space.problem(table, run.seed)
    with_input_channels(problem.weights, int(run.configuration.get("data", {}).get("channels", 3)))
    state = run.load_state()
    if state is None:
        raise UserError(f"{run.path}: holds no weights of the search; continue it with dnas search --resume")
    for module, name in ((problem.weights, "weights"), (problem.architecture, "architecture")):
        load_into(module, state.get(name, {}), run.path)
    return problem


@record
class Judged:
    """A judged network: the key of :func:`key_of`, its mIoU (a fraction), its kind, and its predicted latency."""

    network: str
    miou: Annotated[float, Field(ge=0, le=1)]
    kind: str = ""
    latency_ms: Annotated[float, Field(gt=0, le=1e6)] | None = None


def judged_records(run: RunFolder) -> list[Judged]:
    """The records of all judged networks in a run folder; a damaged one raises :class:`UserError`."""
    path = run.path / JUDGED
    lines = read_lines(path, "the judged networks")
    return [
        parse_config(Judged, {} if line.record is None else line.record, f"{path}: line {number}")
        for number, line in enumerate(lines, start=1)
    ]


def key_of(architecture: Architecture) -> str:
    """A short key that is equal for networks that differ only in their provenance."""
    return hashlib.sha256(identity(architecture).encode()).hexdigest()[:16]
