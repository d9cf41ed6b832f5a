"""Two-level search: weights and architecture parameters in turn, on two halves of the training images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dnas.data import SegmentationDataset, split_halves
from dnas.data.seeding import mix_seed
from dnas.runs import Interrupt, Interrupted, RunFolder
from dnas.search.config import SearchConfig
from dnas.search.problem import BilevelProblem, Pass
from dnas.search.session import SearchSession
from dnas.training.optimizers import make_sgd, set_learning_rate
from dnas.training.progress import Progress
from dnas.training.schedules import exponential_decay


class BilevelSearch(SearchSession[BilevelProblem, SearchConfig]):
    """A step trains the weights on a batch of the first half, then the architecture on one of the second."""

    def __init__(
        self,
        problem: BilevelProblem,
        data: tuple[SegmentationDataset, SegmentationDataset],
        run: RunFolder,
        config: SearchConfig,
        device: torch.device,
        progress: Progress,
    ) -> None:
        halves = split_halves(len(data[0]), run.seed)
        seeds = [mix_seed("half", number, run.seed) for number in range(len(halves))]
        super().__init__(problem, data, run, config, device, progress, parts=halves, seeds=seeds)
        self.weight_optimizer = make_sgd(
            problem.weights,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            decay_norms_and_biases=True,
        )
        self.architecture_optimizer = torch.optim.Adam(
            self.parameters,
            lr=config.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=config.architecture_weight_decay,
        )

    def train(self, epoch: int, interrupt: Interrupt) -> float:
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
        """One Adam step on the architecture parameters; returns the mean loss and the mean expected latency in ms."""
        images, labels = self._move(batch)
        gradients = [torch.zeros_like(p) for p in self.parameters]
        losses, latencies = [], []
        for forward in self.problem.architecture_passes(generator):
            loss = self._loss(images, labels, forward)
            losses.append(loss.detach())
            latency = self.problem.latency(forward)
            if latency is not None:
                loss = loss + self.config.latency_weight * latency
                latencies.append(latency.detach())
            # Only towards them: the weights get no gradient here, neither computed nor left behind.
            for total, found in zip(
                gradients, torch.autograd.grad(loss, self.parameters, allow_unused=True), strict=True
            ):
                if found is not None:
                    total += found
        self._average(gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.architecture_optimizer.step()
        self.architecture_optimizer.zero_grad(set_to_none=True)
        latency_ms = float(torch.stack(latencies).mean()) if latencies else 0.0
        return self._finite(torch.stack(losses).mean(), "architecture"), latency_ms
