"""The search loop: weights and architecture parameters in turn, on two halves of the training images."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dnas.data import SegmentationDataset, batches, eval_transform, split_halves, train_transform
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.runs import Interrupt, Interrupted, RunFolder, seed_everything
from dnas.runs.checkpoint import load_into
from dnas.search.calibration import calibrate_norms
from dnas.search.config import SearchConfig
from dnas.search.problem import Pass, SearchProblem
from dnas.training.device import (
    autocast,
    make_accelerator,
    peak_memory_mb,
    reset_peak_memory,
    resolve_device,
)
from dnas.training.losses import OhemCrossEntropy
from dnas.training.metrics import SegmentationMetrics, join_sizes
from dnas.training.optimizers import make_sgd, set_learning_rate
from dnas.training.progress import NoProgress, Progress
from dnas.training.schedules import exponential_decay

CALIBRATION_BATCHES = 8
"""Batches that the statistics of an architecture are measured on before it is validated."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """How a finished search ended: mIoU and expected latency in ms of every architecture in the supernet."""

    epochs: int
    miou: dict[str, float]
    latency_ms: dict[str, float]


def search(
    problem: SearchProblem,
    data: tuple[SegmentationDataset, SegmentationDataset],
    run: RunFolder,
    config: SearchConfig,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search on the first of ``data`` (training images), validate on the second; keep state and logits in ``run``.

    The training images are split into two disjoint halves by the run's seed. A step trains the weights on a batch of
    the first half, then, once pretraining is over, the architecture parameters on one of the second (FasterSeg,
    Appendix F, first order). The logits after the last epoch are ``architecture.safetensors``.

    When ``run`` holds a state, the search goes on after its last finished epoch and ends like one that never stopped,
    bit by bit on the CPU. Ctrl-C raises ``Interrupted`` after the current step; no finished epoch is lost. With
    torchrun the processes share every batch.

    Raises :class:`UserError` for too few images, data of another number of classes, and a loss that is not finite.
    """
    job = _Search(problem, data, run, config, resolve_device(device), progress or NoProgress())
    try:
        first = job.restore()
        with Interrupt(job.progress.message) as interrupt:
            for epoch in range(first, config.epochs):
                job.run_epoch(epoch, interrupt)
        job.accelerator.wait_for_everyone()  # the log is read below by all, and written by one
    finally:
        job.release()
    last = run.records("epoch")[-1]
    return SearchResult(epochs=config.epochs, miou=last["miou"], latency_ms=last["latency_ms"])


class _Search:
    """One search: problem, optimisers and the two streams of images."""

    def __init__(
        self,
        problem: SearchProblem,
        data: tuple[SegmentationDataset, SegmentationDataset],
        run: RunFolder,
        config: SearchConfig,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.problem, self.run, self.config, self.progress = problem, run, config, progress
        self.train_data, self.validation_data = data
        self.classes = len(self.train_data.labels.names)
        self.accelerator = make_accelerator(device)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        halves = split_halves(len(self.train_data), run.seed)
        self.half = halves[0]
        self.streams = [
            batches(
                self.train_data,
                train_transform(config.augmentation),
                batch_size=config.batch_size,
                seed=mix_seed("half", number, run.seed),
                epoch=0,
                shuffle=True,
                drop_last=True,
                indices=half,
                workers=config.workers,
                pin_memory=self.device.type == "cuda",
                rank=self.rank,
                world=self.world,
            )
            for number, half in enumerate(halves)
        ]
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        problem.weights.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]
        problem.architecture.to(self.device)
        self.criterion = OhemCrossEntropy(config.ohem_threshold, config.ohem_min_fraction)
        self.weights = [p for p in problem.weights.parameters() if p.requires_grad]
        self.weight_optimizer = make_sgd(
            problem.weights,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            decay_norms_and_biases=True,
        )
        self.logits = [p for p in problem.architecture.parameters() if p.requires_grad and p.numel()]
        self.logit_optimizer = torch.optim.Adam(
            self.logits,
            lr=config.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=config.architecture_weight_decay,
        )

    def restore(self) -> int:
        """Take up the state in the run folder; returns the number of finished epochs."""
        state = self.run.load_state()
        if state is not None:
            try:
                load_into(self.problem.weights, state["weights"], self.run.path)
                load_into(self.problem.architecture, state["architecture"], self.run.path)
                self.weight_optimizer.load_state_dict(state["weight_optimizer"])
                self.logit_optimizer.load_state_dict(state["logit_optimizer"])
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
        loss = self._train(epoch, interrupt)
        is_last = epoch + 1 == self.config.epochs
        scores = self._validate() if is_last or (epoch + 1) % self.config.validate_every == 0 else None
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
        self.run.log(record)
        self._save(epoch)
        shown = "" if means is None else "  mIoU " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in means.items())
        latency = ", ".join(f"{k} {v:.2f}" for k, v in record["latency_ms"].items())
        self.progress.message(
            f"epoch {epoch + 1}/{self.config.epochs} ({record['phase']})  loss {loss:.3f}{shown}  latency {latency} ms"
        )

    def _train(self, epoch: int, interrupt: Interrupt) -> float:
        """The steps of one epoch; returns the mean loss of the weights."""
        config, phase = self.config, self.config.phase(epoch)
        rate = config.learning_rate * exponential_decay(epoch, config.learning_rate_decay)
        set_learning_rate(self.weight_optimizer, rate)
        self.problem.weights.train()
        steps = len(self.streams[0]) if phase == "pretrain" else min(map(len, self.streams))
        self.progress.begin(f"{phase} epoch {epoch + 1}/{config.epochs}", steps)
        total = 0.0
        for step, (first, second) in enumerate(self._pairs(epoch, phase)):
            started = time.perf_counter()
            generator = torch.Generator().manual_seed(mix_seed("architecture", self.run.seed, epoch, step))
            loss = self._weight_step(first, self.problem.weight_passes(phase, generator))
            searched = None if second is None else self._architecture_step(second, generator)
            total += loss
            self.run.log(
                {
                    "kind": "step",
                    "epoch": epoch,
                    "step": step,
                    "phase": phase,
                    "loss_weights": loss,
                    "loss_architecture": None if searched is None else searched[0],
                    "latency_ms": None if searched is None else searched[1],
                    "latency_weight": config.latency_weight,
                    "learning_rate": rate,
                    "seconds": time.perf_counter() - started,
                }
            )
            self.progress.advance(1, loss=loss, **({} if searched is None else {"latency": searched[1]}))
            if interrupt.requested:
                raise Interrupted(f"{self.run.path}: stopped in epoch {epoch + 1}; go on with --resume")
        return total / steps

    def _pairs(self, epoch: int, phase: str) -> Iterator[tuple[Any, Any]]:
        """Batches of the two halves side by side; none of the second while pretraining."""
        for stream in self.streams:
            stream.set_epoch(epoch)
        first, second = self.streams
        if phase == "pretrain":
            yield from ((batch, None) for batch in first)
        else:
            yield from zip(first, second, strict=False)

    def _weight_step(self, batch: tuple[Tensor, Tensor], passes: Sequence[Pass]) -> float:
        images, labels = self._move(batch)
        self.weight_optimizer.zero_grad(set_to_none=True)
        losses = []
        for forward in passes:
            loss = self._loss(images, labels, forward) / len(passes)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self._average(p.grad for p in self.weights)
        if self.config.gradient_clipping is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.config.gradient_clipping)
        self.weight_optimizer.step()
        return self._finite(torch.stack(losses).sum(), "weights")

    def _architecture_step(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[float, float]:
        """One Adam step on the logits; returns the mean loss and the mean expected latency in ms."""
        images, labels = self._move(batch)
        gradients = [torch.zeros_like(p) for p in self.logits]
        losses, latencies = [], []
        for forward in self.problem.architecture_passes(generator):
            loss = self._loss(images, labels, forward)
            losses.append(loss.detach())
            latency = self.problem.latency(forward)
            if latency is not None:
                loss = loss + self.config.latency_weight * latency
                latencies.append(latency.detach())
            # Only towards the logits: the weights get no gradient here, neither computed nor left behind.
            for total, found in zip(gradients, torch.autograd.grad(loss, self.logits, allow_unused=True), strict=True):
                if found is not None:
                    total += found
        self._average(gradients)
        for parameter, gradient in zip(self.logits, gradients, strict=True):
            parameter.grad = gradient
        self.logit_optimizer.step()
        self.logit_optimizer.zero_grad(set_to_none=True)
        latency_ms = float(torch.stack(latencies).mean()) if latencies else 0.0
        return self._finite(torch.stack(losses).mean(), "architecture"), latency_ms

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
        count = len(self.validation_data)
        wanted = min(count, self.config.validation_images or count)
        indices = [i * count // wanted for i in range(wanted)][self.rank :: self.world]
        loader = batches(
            self.validation_data,
            eval_transform(self.config.augmentation),
            batch_size=1,
            seed=0,
            epoch=0,
            shuffle=False,
            drop_last=False,
            indices=indices,
        )
        scores: dict[str, dict[str, float]] = {}
        passes = self.problem.validation_passes()
        self.progress.begin("validation", len(passes) * len(loader))
        for name, forward in passes.items():
            calibrate_norms(self.problem.weights, functools.partial(self._run, forward), self._calibration_batches())
            metrics: dict[str, SegmentationMetrics] = {}
            for batch in loader:
                images, labels = self._move(batch)
                for output, logits in self._outputs(images, forward).items():
                    if output not in metrics:
                        metrics[output] = SegmentationMetrics(self.validation_data.labels.names, self.device)
                    metrics[output].update(logits.float(), labels)
                self.progress.advance()
            scores[name] = {output: metric.result().miou for output, metric in metrics.items()}
        return scores

    def _calibration_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some images of the first half, whole as in validation: in crops the coarsest maps are mostly border."""
        # Whole batches only: in a last batch of one image the coarsest map may be a single value, without variance.
        size = self.config.batch_size
        count = min(len(self.half) // size, CALIBRATION_BATCHES) * size
        singles = batches(
            self.train_data,
            eval_transform(self.config.augmentation),
            batch_size=1,
            seed=0,
            epoch=0,
            shuffle=False,
            drop_last=False,
            indices=[self.half[i * len(self.half) // count] for i in range(count)],
        )
        return join_sizes(singles, size)

    def _run(self, forward: Pass, batch: tuple[Tensor, Tensor]) -> None:
        self._outputs(self._move(batch)[0], forward)

    def _outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        with autocast(self.device, self.config.precision):
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
                "logit_optimizer": self.logit_optimizer.state_dict(),
            },
            epoch + 1,
        )
