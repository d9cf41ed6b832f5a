"""Joint search: weights and architecture parameters are trained in the same step, on all training images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.data import SegmentationDataset, evenly_spaced
from dnas.data.seeding import mix_seed
from dnas.progress import Progress
from dnas.runs import Interrupt, RunFolder
from dnas.search.config import JointSearchConfig
from dnas.search.latency_target import LatencyControl, LatencyTarget
from dnas.search.problem import JointProblem, Pass
from dnas.search.session import SearchSession
from dnas.training.losses import resize_logits
from dnas.training.optimizers import make_sgd, set_learning_rate
from dnas.training.schedules import schedule_factor


def predictions_name(epochs: int) -> str:
    """Name, in the run folder, of the predictions after ``epochs`` epochs."""
    return f"predictions_{epochs:04d}"


class JointSearch(SearchSession[JointProblem, JointSearchConfig]):
    """Each step trains weights and architecture parameters with one loss, each with their own optimiser."""

    weight_optimizer: torch.optim.SGD

    def __init__(
        self,
        problem: JointProblem,
        data: tuple[SegmentationDataset, SegmentationDataset],
        run: RunFolder,
        config: JointSearchConfig,
        device: torch.device,
        progress: Progress,
        latency_target: LatencyTarget | None = None,
    ) -> None:
        all_images, seeds = [range(len(data[0]))], [mix_seed("joint", run.seed)]
        super().__init__(problem, data, run, config, device, progress, parts=all_images, seeds=seeds)
        self.weight_optimizer = make_sgd(
            problem.weights,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            decay_norms_and_biases=config.decay_norms_and_biases,
            leave_out=self.parameters,
        )
        self.architecture_optimizer = _architecture_optimizer(config, self.parameters)
        steps = (config.epochs - config.pretrain_epochs) * len(self.streams[0])
        self.control = LatencyControl(latency_target, weight=config.latency_weight, steps=steps)

    def extra_state(self) -> dict[str, Any]:
        """The state of lambda's controller, if there is one."""
        return self.control.state()

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`extra_state`."""
        self.control.load_state(state)

    def observe(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The latency of the currently derived network."""
        return self.control.record(self.problem.logits())

    def run_epoch(self, epoch: int, interrupt: Interrupt) -> None:
        """Run one epoch; before the first one, the predictions of the untrained network are saved."""
        if epoch == 0 and self.config.keep_predictions:
            for forward in self.problem.validation_passes().values():
                self.calibrate(forward, self.calibration_images())
            self.validated(0)
        super().run_epoch(epoch, interrupt)

    @torch.no_grad()
    def validated(self, epochs: int) -> None:
        """Save the predictions for some validation images, by index, as ``predictions_EPOCHS.safetensors``."""
        indices = self.validation_indices()
        selected = [indices[i] for i in evenly_spaced(len(indices), min(len(indices), self.config.keep_predictions))]
        if not selected or not self.run.is_owner:
            return
        forward = next(iter(self.problem.validation_passes().values()))
        found = {}
        for index, batch in zip(selected, self.validation_batches(selected), strict=True):
            images, labels = batch
            logits = next(iter(self._outputs(images, forward).values()))
            found[f"{index}"] = resize_logits(logits, (labels.shape[-2], labels.shape[-1])).argmax(1)[0].to(torch.uint8)
        self.run.save_weights(predictions_name(epochs), found)

    def train(self, epoch: int, interrupt: Interrupt) -> float:
        """Run the steps of one epoch; returns the mean loss."""
        config, phase = self.config, self.config.phase(epoch)
        (stream,) = self.streams
        stream.set_epoch(epoch)
        self.problem.weights.train()
        steps = len(stream)
        self.progress.begin(f"{phase} epoch {epoch + 1}/{config.epochs}", steps)
        total = 0.0
        for step, batch in enumerate(stream):
            started = time.perf_counter()
            factor = schedule_factor(config, epoch * steps + step, steps)
            set_learning_rate(self.weight_optimizer, factor * config.learning_rate)
            set_learning_rate(self.architecture_optimizer, factor * config.architecture_learning_rate)
            generator = torch.Generator().manual_seed(mix_seed("architecture", self.run.seed, epoch, step))
            passes = self.problem.weight_passes(phase, generator)
            loss, latency_ms, weight = self._step(batch, passes, searching=phase == "search")
            total += loss
            self.run.log(
                {
                    "kind": "step",
                    "epoch": epoch,
                    "step": step,
                    "phase": phase,
                    "loss_weights": loss,
                    "loss_architecture": None,
                    "latency_ms": latency_ms,
                    "latency_weight": weight,
                    "learning_rate": factor * config.learning_rate,
                    "seconds": time.perf_counter() - started,
                }
            )
            self.progress.advance(1, loss=loss)
            self._stop_if(interrupt, epoch)
        return total / steps

    def _step(
        self, batch: tuple[Tensor, Tensor], passes: Sequence[Pass], *, searching: bool
    ) -> tuple[float, float | None, float]:
        """One step of both optimisers; returns the mean loss, the mean latency in ms (if any) and its weight."""
        images, labels = self._move(batch)
        self.weight_optimizer.zero_grad(set_to_none=True)
        self.architecture_optimizer.zero_grad(set_to_none=True)
        latency_gradients = [torch.zeros_like(p) for p in self.parameters]
        losses, latencies = [], []
        for forward in passes:
            loss = self._loss(images, labels, forward) / len(passes)
            losses.append(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
            latency = self.problem.latency(forward)
            if latency is not None:
                found = torch.autograd.grad(latency / len(passes), self.parameters, allow_unused=True)
                for total, gradient in zip(latency_gradients, found, strict=True):
                    total += 0 if gradient is None else gradient
                latencies.append(latency.detach())
        self._average(p.grad for p in [*self.weights, *self.parameters])
        latency_ms, weight = None, self.config.latency_weight
        if latencies:
            self._average(latency_gradients)
            (latency_ms,) = self._shared(torch.stack(latencies).mean())
            weight = self._add_latency(latency_ms, latency_gradients, searching=searching)
        if self.config.gradient_clipping is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.config.gradient_clipping)
        value = self._finite(torch.stack(losses).sum(), "weights")
        self.weight_optimizer.step()
        if searching:
            self.architecture_optimizer.step()
            self.problem.project()
        return value, latency_ms, weight

    def _add_latency(self, latency_ms: float, latency_gradients: Sequence[Tensor], *, searching: bool) -> float:
        """Add the weighted gradient of the latency to that of the loss; returns the weight."""
        loss_gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        weight = self.config.latency_weight
        if searching:
            weight = self.control.weight(latency_ms, loss_gradients, latency_gradients, self.problem.logits)
        for parameter, one, other in zip(self.parameters, loss_gradients, latency_gradients, strict=True):
            parameter.grad = one + weight * other
        return weight


def _architecture_optimizer(config: JointSearchConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimiser of the architecture parameters."""
    rate, decay = config.architecture_learning_rate, config.architecture_weight_decay
    if config.architecture_optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999), weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.architecture_momentum, weight_decay=decay)
