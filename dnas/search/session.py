"""What all search loops share: one search's data, optimisers, validation, log and state."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dnas.data import IGNORE_LABEL, Batches, SegmentationDataset, batches, eval_transform, train_transform
from dnas.errors import UserError
from dnas.progress import Progress
from dnas.runs import Interrupt, RunFolder, seed_everything
from dnas.runs.checkpoint import load_into
from dnas.search.calibration import recalibrate_bn
from dnas.search.config import JointSearchConfig, SearchConfig
from dnas.search.problem import Pass, SearchProblem
from dnas.training.device import (
    Precision,
    autocast,
    make_accelerator,
    peak_memory_mb,
    reset_peak_memory,
    resolve_precision,
)
from dnas.training.losses import OhemCrossEntropy
from dnas.training.metrics import SegmentationMetrics, join_sizes

CALIBRATION_BATCHES = 8
"""Batches that the statistics of an architecture are measured on before it is validated."""

Problem = TypeVar("Problem", bound=SearchProblem)
Config = TypeVar("Config", SearchConfig, JointSearchConfig)


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of the indices below ``count``, evenly spread."""
    return [i * count // wanted for i in range(wanted)]


class HasState(Protocol):
    """An optimiser, as far as it is saved."""

    def state_dict(self) -> dict[str, Any]:
        """What it goes on from."""

    def load_state_dict(self, state: Any, /) -> None:
        """Take that up."""


class SearchSession(ABC, Generic[Problem, Config]):
    """One search: problem, optimisers and streams of images; how an epoch trains is the subclass's."""

    weight_optimizer: HasState
    architecture_optimizer: torch.optim.Optimizer

    def __init__(
        self,
        problem: Problem,
        data: tuple[SegmentationDataset, SegmentationDataset],
        run: RunFolder,
        config: Config,
        device: torch.device,
        progress: Progress,
        *,
        parts: Sequence[Sequence[int]],
        seeds: Sequence[int],
    ) -> None:
        """``parts`` of the training images make a stream of batches each; the first is what norms are measured on."""
        self.problem, self.run, self.progress = problem, run, progress
        self.config: Config = config
        self.train_data, self.validation_data = data
        self.classes = len(self.train_data.labels.names)
        self.accelerator = make_accelerator(device)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.calibration_images = parts[0]
        self.streams = [
            batches(
                self.train_data,
                train_transform(config.augmentation),
                batch_size=config.batch_size,
                seed=seed,
                epoch=0,
                shuffle=True,
                drop_last=True,
                indices=part,
                workers=config.workers,
                pin_memory=self.device.type == "cuda",
                rank=self.rank,
                world=self.world,
            )
            for part, seed in zip(parts, seeds, strict=True)
        ]
        resolved = resolve_precision(config.precision, self.device)
        self.precision: Precision = "fp32" if resolved == "fp16" else resolved  # what "auto" is on older GPUs
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        problem.weights.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]
        problem.architecture.to(self.device)
        self.criterion = OhemCrossEntropy(config.ohem_threshold, config.ohem_min_fraction)
        self.parameters: list[nn.Parameter] = [
            p for p in problem.architecture.parameters() if p.requires_grad and p.numel()
        ]
        ours = {id(p) for p in self.parameters}
        self.weights: list[nn.Parameter] = [
            p for p in problem.weights.parameters() if p.requires_grad and id(p) not in ours
        ]

    def validated(self, epochs: int) -> None:
        """Called when the problem, ``epochs`` epochs old, was validated and is in evaluation mode; does nothing."""

    @abstractmethod
    def train(self, epoch: int, interrupt: Interrupt) -> float:
        """The steps of one epoch; returns the mean loss of the weights."""

    def observe(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a kind of search adds to the record of an epoch."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What a kind of search keeps from one epoch to the next, besides networks and optimisers."""
        return {}

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Take up :meth:`extra_state`; a missing entry is a KeyError."""

    def restore(self) -> int:
        """Take up the state in the run folder; returns the number of finished epochs."""
        state = self.run.load_state()
        if state is not None:
            try:
                load_into(self.problem.weights, state["weights"], self.run.path)
                load_into(self.problem.architecture, state["architecture"], self.run.path)
                self.weight_optimizer.load_state_dict(state["weight_optimizer"])
                self.architecture_optimizer.load_state_dict(state["logit_optimizer"])
                self.restore_extra(state)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{self.run.path}: its state is not that of this search ({error})") from None
        epoch = 0 if state is None else int(state["epoch"])
        self.run.truncate_log(epoch)
        self.accelerator.wait_for_everyone()  # nobody may replace the state before all have read it
        return epoch

    def release(self) -> None:
        """End the data workers."""
        for stream in self.streams:
            stream.close()
        self.accelerator.free_memory()

    def run_epoch(self, epoch: int, interrupt: Interrupt) -> None:
        """Train, validate, log and save one epoch."""
        started = time.perf_counter()
        reset_peak_memory(self.device)
        seed_everything(self.run.seed, epoch, self.rank)
        loss = self.train(epoch, interrupt)
        is_last = epoch + 1 == self.config.epochs
        scores = self._validate() if is_last or (epoch + 1) % self.config.validate_every == 0 else None
        if scores is not None:
            self.validated(epoch + 1)
        means = None if scores is None else {name: sum(by.values()) / len(by) for name, by in scores.items()}
        record = {
            "kind": "epoch",
            "epoch": epoch,
            "phase": self.config.phase(epoch),
            "loss_weights": loss,
            "miou": means,
            "miou_outputs": scores,
            **self.problem.monitor(),
            "seconds": time.perf_counter() - started,
            "peak_memory_mb": peak_memory_mb(self.device),
        }
        record |= self.observe(record)
        self.run.log(record)
        self._save(epoch)
        shown = "" if means is None else "  mIoU " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in means.items())
        shown += self._monitored(record)
        self.progress.message(f"epoch {epoch + 1}/{self.config.epochs} ({record['phase']})  loss {loss:.3f}{shown}")

    @staticmethod
    def _monitored(record: Mapping[str, Any]) -> str:
        """Of what the problem reports, the part for the person who waits."""
        latency = ", ".join(f"{name} {value:.2f}" for name, value in record["latency_ms"].items())
        derived = record.get("derived")
        if derived is not None:
            latency += f", derived {derived['latency_ms']:.2f}"
            latency += "" if derived["target_ms"] is None else f" of {derived['target_ms']:.2f}"
        field = record.get("field_of_view")
        return (f"  latency {latency} ms" if latency else "") + ("" if field is None else f"  field of view {field}")

    def _loss(self, images: Tensor, labels: Tensor, forward: Pass) -> Tensor:
        """Mean of the segmentation losses of all outputs of a pass."""
        outputs = self._outputs(images, forward)
        return torch.stack([self.criterion(logits, labels) for logits in outputs.values()]).mean()

    def _average(self, gradients: Iterable[Tensor | None]) -> None:
        """Mean over all processes; a parameter without gradient has none in any, as all draw the same passes."""
        if self.world > 1:
            present = [gradient for gradient in gradients if gradient is not None]
            flat = torch.cat([gradient.flatten() for gradient in present])
            mean = self.accelerator.reduce(flat, reduction="mean")
            for gradient, part in zip(present, mean.split([g.numel() for g in present]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _finite(self, loss: Tensor, what: str) -> float:
        value = float(loss)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss of the {what} is {value}: lower search.learning_rate, set search.gradient_clipping, "
                "or use search.precision=fp32"
            )
        return value

    @torch.no_grad()
    def _validate(self) -> dict[str, dict[str, float]]:
        """Score every architecture and output by its mIoU on (part of) the validation images."""
        chosen = self.validation_indices()
        # Where processes outnumber images, one without any runs the first, unscored: all meet when scores are added up.
        indices = chosen[self.rank :: self.world]
        loader = self.validation_batches(indices or chosen[:1])
        scores: dict[str, dict[str, float]] = {}
        passes = self.problem.validation_passes()
        self.progress.begin("validation", len(passes) * len(loader))
        for name, forward in passes.items():
            self.calibrate(forward)
            metrics: dict[str, SegmentationMetrics] = {}
            for batch in loader:
                images, labels = self._move(batch)
                labels = labels if indices else torch.full_like(labels, IGNORE_LABEL)
                for output, logits in self._outputs(images, forward).items():
                    if output not in metrics:
                        metrics[output] = SegmentationMetrics(self.validation_data.labels.names, self.device)
                    metrics[output].update(logits.float(), labels)
                self.progress.advance()
            scores[name] = {output: metric.result().miou for output, metric in metrics.items()}
        return scores

    def validation_indices(self) -> list[int]:
        """The validation images to use, of all processes together."""
        count = len(self.validation_data)
        return spread(count, min(count, self.config.validation_images or count))

    def validation_batches(self, indices: Sequence[int]) -> Batches:
        """Validation images one by one, as they may be of different sizes."""
        return batches(
            self.validation_data,
            eval_transform(self.config.augmentation),
            batch_size=1,
            seed=0,
            epoch=0,
            shuffle=False,
            drop_last=False,
            indices=indices,
        )

    def calibrate(self, forward: Pass) -> None:
        """Measure the statistics of the norms that ``forward`` uses, and put the network into evaluation mode."""
        recalibrate_bn(self.problem.weights, functools.partial(self._run, forward), self._calibration_batches())

    def _calibration_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some images of the first part, whole as in validation: in crops the coarsest maps are mostly border."""
        # Whole batches only: in a last batch of one image the coarsest map may be a single value, without variance.
        size = self.config.batch_size
        count = min(len(self.calibration_images) // size, CALIBRATION_BATCHES) * size
        singles = batches(
            self.train_data,
            eval_transform(self.config.augmentation),
            batch_size=1,
            seed=0,
            epoch=0,
            shuffle=False,
            drop_last=False,
            indices=[self.calibration_images[i * len(self.calibration_images) // count] for i in range(count)],
        )
        return join_sizes(singles, size)

    def _run(self, forward: Pass, batch: tuple[Tensor, Tensor]) -> None:
        self._outputs(self._move(batch)[0], forward)

    def _outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        with autocast(self.device, self.precision):
            outputs = self.problem.outputs(images, forward)
        for logits in outputs.values():
            if logits.shape[1] != self.classes:
                raise UserError(
                    f"the search space has {logits.shape[1]} classes, the data {self.classes}: "
                    "give a space (target.num_classes) and data of the same number"
                )
        return outputs

    def _move(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        images = images.to(self.device, non_blocking=True, memory_format=self.layout)
        return images, labels.to(self.device, non_blocking=True)

    def _save(self, epoch: int) -> None:
        self.run.save_weights("architecture", self.problem.logits())
        self.run.save_state(
            {
                "weights": self.problem.weights.state_dict(),
                "architecture": self.problem.architecture.state_dict(),
                "weight_optimizer": self.weight_optimizer.state_dict(),
                "logit_optimizer": self.architecture_optimizer.state_dict(),
                **self.extra_state(),
            },
            epoch + 1,
        )
