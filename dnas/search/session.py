"""Base class of search loops: data, optimisers, validation, log and checkpoints of one search."""

from __future__ import annotations

import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dnas.data import (
    SegmentationDataset,
    batches,
    evenly_spaced,
    finish_device,
    train_transform,
)
from dnas.data.evaluation import EvaluationImages, memory_to_keep
from dnas.data.waiting import Waiting, waiting_advice
from dnas.data.worker_count import worker_count
from dnas.errors import Interrupted, UserError
from dnas.progress import Progress
from dnas.runs import Interrupt, RunFolder, seed_everything
from dnas.runs.checkpoint import load_into
from dnas.search.calibration import calibration_images, recalibrate_bn
from dnas.search.config import JointSearchConfig, OneShotConfig, SearchConfig
from dnas.search.problem import Pass, SearchProblem
from dnas.search.scoring import ScoredImages
from dnas.training.class_weights import class_weights
from dnas.training.device import (
    Precision,
    autocast,
    make_accelerator,
    peak_memory_mb,
    reset_peak_memory,
    resolve_precision,
)
from dnas.training.losses import OhemCrossEntropy
from dnas.training.optimizers import check_loaded
from dnas.training.single_values import single_values_explained

Problem = TypeVar("Problem", bound=SearchProblem)
Config = TypeVar("Config", SearchConfig, JointSearchConfig, OneShotConfig)


class HasState(Protocol):
    """An optimiser whose state is saved in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """The state to save."""

    def load_state_dict(self, state: Any, /) -> None:
        """Restore a saved state."""


class SearchSession(ABC, Generic[Problem, Config]):
    """One search: problem, optimisers and streams of batches. Subclasses implement the training of an epoch."""

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
        held_out: Sequence[int] | None = None,
    ) -> None:
        """``parts``: indices of the training images of each stream; the first part also recalibrates BatchNorm.

        ``held_out``: indices of the training images that architectures are scored on; None for the validation images.
        A search that selects by these scores must not use the validation images (FasterSeg, Appendix H).
        """
        self.problem, self.run, self.progress = problem, run, progress
        self.config: Config = config
        self.train_data, validation_data = data
        self.scored_data = validation_data if held_out is None else self.train_data
        self.scored_images: Sequence[int] = range(len(validation_data)) if held_out is None else held_out
        self.classes = len(self.train_data.labels.names)
        self.accelerator = make_accelerator(device)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self._calibrating = parts[0]
        finish_on = finish_device(config.augmentation, self.device)
        self.workers = worker_count(config.workers, self.train_data, self.device, streams=len(parts))
        could_finish = finish_on is None and self.device.type == "cuda"
        advice = waiting_advice(
            self.workers, is_kept=self.train_data.kept_in is not None, could_finish_on_device=could_finish
        )
        self.waiting = Waiting(advice, self.device)
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
                workers=self.workers,
                pin_memory=self.device.type == "cuda",
                rank=self.rank,
                world=self.world,
                finish_on=finish_on,
                waiting=self.waiting,
            )
            for part, seed in zip(parts, seeds, strict=True)
        ]
        resolved = resolve_precision(config.precision, self.device)
        self.precision: Precision = "fp32" if resolved == "fp16" else resolved  # "auto" is fp16 on older GPUs
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        problem.weights.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]
        problem.architecture.to(self.device)
        weights = class_weights(config.class_weights, self.train_data, self.workers)
        self.criterion = OhemCrossEntropy(config.ohem_threshold, config.ohem_min_fraction, class_weights=weights).to(
            self.device
        )
        self.parameters: list[nn.Parameter] = [
            p for p in problem.architecture.parameters() if p.requires_grad and p.numel()
        ]
        architecture_ids = {id(p) for p in self.parameters}
        self.weights: list[nn.Parameter] = [
            p for p in problem.weights.parameters() if p.requires_grad and id(p) not in architecture_ids
        ]

    def validated(self, epochs: int) -> None:
        """Hook after a validation, after ``epochs`` epochs, with the network in evaluation mode; does nothing."""

    @abstractmethod
    def train(self, epoch: int, interrupt: Interrupt) -> float:
        """Run the steps of one epoch; returns the mean loss of the weight steps."""

    def observe(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Additional entries for the record of an epoch."""
        return {}

    def optimizers(self) -> dict[str, HasState]:
        """The optimisers by their names in the checkpoint."""
        return {"weight_optimizer": self.weight_optimizer, "logit_optimizer": self.architecture_optimizer}

    def extra_state(self) -> dict[str, Any]:
        """Additional state for the checkpoint, besides networks and optimisers."""
        return {}

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`extra_state`; raises ``KeyError`` for a missing entry."""

    def restore(self) -> int:
        """Restore the checkpoint of the run folder, if there is one; returns the number of finished epochs."""
        state = self.run.load_state(self.config.epochs)
        if state is not None:
            try:
                load_into(self.problem.weights, state["weights"], self.run.path)
                load_into(self.problem.architecture, state["architecture"], self.run.path)
                for name, optimizer in self.optimizers().items():
                    optimizer.load_state_dict(state[name])
                    check_loaded(optimizer)
                self.restore_extra(state)
            except (KeyError, TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
                raise UserError(f"{self.run.path}: its checkpoint is not that of this search ({error})") from None
            if not self.run.has_weights("architecture"):
                raise UserError(f"{self.run.path}: architecture.safetensors is missing; restore it, or start again")
            self.run.load_weights("architecture")  # refuses a damaged file, which a finished search would not replace
        epoch = 0 if state is None else int(state["epoch"])
        self.run.truncate_log(epoch)
        self.accelerator.wait_for_everyone()  # no process may replace the checkpoint before all have read it
        return epoch

    def stopped(self, epoch: int) -> Interrupted:
        """The exception for a signal in the steps of ``epoch``."""
        return Interrupted(
            f"stopped in epoch {epoch + 1}; {epoch} of {self.config.epochs} epochs are saved in {self.run.path}, "
            "continue with --resume"
        )

    def release(self) -> None:
        """Stop the data workers."""
        for stream in self.streams:
            stream.close()
        self.accelerator.free_memory()

    def run_epoch(self, epoch: int, interrupt: Interrupt) -> None:
        """Train, validate, log and save one epoch."""
        started = time.perf_counter()
        reset_peak_memory(self.device)
        seed_everything(self.run.seed, epoch, self.rank)
        pretraining = self.config.pretrain_epochs
        self.problem.begin_epoch(max(0, epoch - pretraining) / max(1, self.config.epochs - pretraining))
        with self.waiting.epoch():
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
            "data_wait": self.waiting.share,
            "seconds": time.perf_counter() - started,
            "peak_memory_mb": peak_memory_mb(self.device),
        }
        record |= self.observe(record)
        self.run.log(record)
        self._save(epoch)
        shown = "" if means is None else "  mIoU " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in means.items())
        shown += self._monitored(record)
        self.progress.message(f"epoch {epoch + 1}/{self.config.epochs} ({record['phase']})  loss {loss:.3f}{shown}")
        if (hint := self.waiting.hint()) is not None:
            self.progress.message(hint)

    @staticmethod
    def _monitored(record: Mapping[str, Any]) -> str:
        """Latency and field of view from an epoch's record, for the progress message."""
        latency = ", ".join(f"{name} {value:.2f}" for name, value in record["latency_ms"].items())
        derived = record.get("derived")
        if derived is not None:
            latency += f", derived {derived['latency_ms']:.2f}"
            latency += "" if derived["target_ms"] is None else f" of {derived['target_ms']:.2f}"
        field = record.get("field_of_view")
        return (f"  latency {latency} ms" if latency else "") + ("" if field is None else f"  field of view {field}")

    def _loss(self, images: Tensor, labels: Tensor, forward: Pass) -> Tensor:
        """Mean segmentation loss over all outputs of a pass."""
        outputs = self._outputs(images, forward)
        return self.criterion.mean_of(list(outputs.values()), labels)

    def _average(self, gradients: Iterable[Tensor | None]) -> None:
        """Average gradients over all processes; None is None in all of them, because all sample the same passes."""
        if self.world > 1:
            present = [gradient for gradient in gradients if gradient is not None]
            flat = torch.cat([gradient.flatten() for gradient in present])
            mean = self.accelerator.reduce(flat, reduction="mean")
            for gradient, part in zip(present, mean.split([g.numel() for g in present]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _shared(self, *values: Tensor) -> list[float]:
        """Scalars averaged over all processes, so that all take the same decisions; one synchronisation."""
        stacked = torch.stack([value.detach().double() for value in values])
        if self.world > 1:
            stacked = self.accelerator.reduce(stacked, reduction="mean")
        found: list[float] = stacked.tolist()
        return found

    def _stop_if(self, interrupt: Interrupt, epoch: int) -> None:
        """Raise ``Interrupted`` in all processes if the user has stopped any of them."""
        requested = interrupt.requested
        if self.world > 1:
            (share,) = self._shared(torch.tensor(float(requested), device=self.device))
            requested = share > 0
        if requested:
            raise self.stopped(epoch)

    def _finite(self, loss: Tensor, what: str) -> float:
        (value,) = self._shared(loss)
        if not math.isfinite(value):
            raise UserError(
                f"the loss of the {what} is {value}: lower search.learning_rate, set search.gradient_clipping, "
                "or use search.precision=fp32"
            )
        return value

    @torch.no_grad()
    def _validate(self) -> dict[str, dict[str, float]]:
        """Compute the mIoU of every architecture and output on the validation images."""
        indices = self.validation_indices()
        scores: dict[str, dict[str, float]] = {}
        passes = self.problem.validation_passes()
        self.progress.begin("validation", len(passes) * -(-len(indices) // self.world))
        # Decoded once for all architectures.
        keep = memory_to_keep(self.scored_data) if len(passes) > 1 else 0
        calibration = self.calibration_images(keep)
        scored = ScoredImages(
            self.scored_data,
            self.config.augmentation,
            indices,
            self.device,
            rank=self.rank,
            world=self.world,
            workers=self.workers,
            layout=self.layout,
            keep=keep,
        )
        for name, forward in passes.items():
            self.calibrate(forward, calibration)
            scores[name] = scored.miou(functools.partial(self._outputs, forward=forward), self.progress.advance)
        return scores

    def validation_indices(self) -> list[int]:
        """The images to score on, of all processes together."""
        count = len(self.scored_images)
        return [self.scored_images[i] for i in evenly_spaced(count, min(count, self.config.validation_images or count))]

    def validation_batches(self, indices: Sequence[int]) -> EvaluationImages:
        """Validation images in batches of one, as their sizes may differ."""
        return EvaluationImages(
            self.scored_data, self.config.augmentation, indices, self.device, layout=self.layout, workers=self.workers
        )

    def calibration_images(self, keep: int = 0) -> EvaluationImages:
        """Full images of the first part, as in validation: in crops, the coarsest maps would be mostly padding.

        ``keep``: bytes of them to keep for another iteration.
        """
        return calibration_images(
            self.train_data,
            self.config.augmentation,
            self.config.batch_size,
            self._calibrating,
            self.device,
            layout=self.layout,
            workers=self.workers,
            keep=keep,
        )

    def calibrate(self, forward: Pass, images: EvaluationImages) -> None:
        """Recalibrate the BatchNorm statistics for ``forward``, and set the network to evaluation mode."""
        recalibrate_bn(self.problem.weights, lambda batch: self._outputs(batch[0], forward), images)

    def _outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        with autocast(self.device, self.precision), single_values_explained(images):
            outputs = self.problem.outputs(images, forward)
        for logits in outputs.values():
            if logits.shape[1] != self.classes:
                raise UserError(
                    f"the search space has {logits.shape[1]} classes, the data {self.classes}: "
                    "set task.num_classes of the space to the number of the data"
                )
        return outputs

    def _move(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self._to_device(images), labels.to(self.device, non_blocking=True)

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True, memory_format=self.layout)

    def _save(self, epoch: int) -> None:
        self.run.save_weights("architecture", self.problem.logits())
        self.run.save_state(
            {
                "weights": self.problem.weights.state_dict(),
                "architecture": self.problem.architecture.state_dict(),
                **{name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
                **self.extra_state(),
            },
            epoch + 1,
        )
