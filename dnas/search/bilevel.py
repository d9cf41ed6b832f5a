"""Bilevel search: alternating steps of weights and architecture parameters, on two halves of the training images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnas.data import SegmentationDataset
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.progress import Progress
from dnas.runs import Interrupt, RunFolder
from dnas.search.calibration import freeze_bn_stats
from dnas.search.capture import PassGraphs
from dnas.search.collapse import collapse_warnings
from dnas.search.config import SearchConfig
from dnas.search.gradients import GradientMonitor
from dnas.search.latency_target import LatencyControl, LatencyTarget
from dnas.search.optim import SupernetSGD
from dnas.search.problem import BilevelProblem, HasKinds, Pass
from dnas.search.session import SearchSession
from dnas.training.device import DTYPES
from dnas.training.optimizers import frozen, set_learning_rate
from dnas.training.schedules import exponential_decay


class BilevelSearch(SearchSession[BilevelProblem, SearchConfig]):
    """Each step trains the weights on a batch of the first half, then the architecture on a batch of the second."""

    weight_optimizer: SupernetSGD

    def __init__(
        self,
        problem: BilevelProblem,
        data: tuple[SegmentationDataset, SegmentationDataset],
        run: RunFolder,
        config: SearchConfig,
        device: torch.device,
        progress: Progress,
        latency_target: LatencyTarget | None = None,
    ) -> None:
        halves = config.parts(len(data[0]), run.seed)
        seeds = [mix_seed("half", number, run.seed) for number in range(len(halves))]
        super().__init__(problem, data, run, config, device, progress, parts=halves, seeds=seeds, held_out=halves[1])
        self.weight_optimizer = SupernetSGD(
            problem.weights,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            max_norm=config.gradient_clipping,
            momentum_dtype=DTYPES[config.momentum_precision],
            split_bf16=self.precision == "bf16",
            keep_gradients=config.keep_gradients,
            exclude=self.parameters,
        )
        self.graphs = self._pass_graphs()
        self._parameter_names = {id(parameter): name for name, parameter in problem.architecture.named_parameters()}
        self.architecture_optimizer = torch.optim.Adam(
            self._parameter_groups(),
            lr=config.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=config.architecture_weight_decay,
            foreach=self.device.type == "cuda" or None,
        )
        self.control = LatencyControl(
            latency_target,
            weight=config.latency_weight,
            steps=config.search_epochs * min(map(len, self.streams)),
        )
        self._active_warnings: frozenset[str] = frozenset()
        self._gradients = self._gradient_monitor()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The architecture parameters, in groups of equal learning rate if the problem has kinds."""
        if not isinstance(self.problem, HasKinds):
            return [{"params": self.parameters}]
        factors = self.problem.learning_rate_factors()
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in self.parameters:
            groups.setdefault(factors.get(self._parameter_names[id(parameter)], 1.0), []).append(parameter)
        rate = self.config.architecture_learning_rate
        return [{"params": parameters, "lr": rate * factor} for factor, parameters in groups.items()]

    def _pass_graphs(self) -> PassGraphs | None:
        if not self.config.capture:
            return None
        passes = self.problem.weight_passes("search", torch.Generator())
        if all(one.key is None for one in passes):
            raise UserError("search.capture: all passes of this search are drawn, no two are alike; set it to false")
        if self.device.type != "cuda":
            raise UserError(f"search.capture: CUDA graphs need a GPU, given the device {self.device}; set it to false")
        return PassGraphs(self._loss, self.weight_optimizer)

    def _gradient_monitor(self) -> GradientMonitor:
        return GradientMonitor([self._parameter_names[id(parameter)] for parameter in self.parameters])

    def extra_state(self) -> dict[str, Any]:
        """The state of lambda's controller, if there is one, and the active warnings."""
        return {"warned": sorted(self._active_warnings), **self.control.state()}

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`extra_state`."""
        self._active_warnings = frozenset(state.get("warned", ()))
        self.control.load_state(state)

    def observe(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Latency of the currently derived networks, gradient norms of both terms, and warnings; new ones are shown."""
        found = {"latency_gradient": self._gradients.record() or None, **self.control.record(self.problem.logits())}
        warnings: dict[str, str] = {}
        if record["phase"] == "search":
            done = (record["epoch"] + 1 - self.config.pretrain_epochs) / self.config.search_epochs
            warnings = collapse_warnings({**record, **found}, progress=done, target=self.control.target)
        for name, reason in warnings.items():
            if name not in self._active_warnings:
                architecture = name.split(".")[0]
                self.progress.message(f"warning: the search of the {architecture} is collapsing: {reason}")
        self._active_warnings = frozenset(warnings)
        return {**found, "warnings": warnings}

    def train(self, epoch: int, interrupt: Interrupt) -> float:
        """Run the steps of one epoch; returns the mean loss of the weight steps."""
        config, phase = self.config, self.config.phase(epoch)
        rate = config.learning_rate * exponential_decay(epoch, config.learning_rate_decay)
        set_learning_rate(self.weight_optimizer, rate)
        self.problem.weights.train()
        steps = len(self.streams[0]) if phase == "pretrain" else min(map(len, self.streams))
        self.progress.begin(f"{phase} epoch {epoch + 1}/{config.epochs}", steps)
        self._gradients = self._gradient_monitor()
        total = 0.0
        with freeze_bn_stats(self.problem.weights):
            for step, pair in enumerate(self._pairs(epoch, phase)):
                started = time.perf_counter()
                generator = torch.Generator().manual_seed(mix_seed("architecture", self.run.seed, epoch, step))
                first, second = pair
                record: dict[str, Any] = {
                    "loss_weights": self._weight_step(first, phase, generator),
                    "loss_architecture": None,
                    "latency_ms": None,
                    "latency_weight": config.latency_weight,
                }
                if second is not None:
                    record |= self._architecture_step(second, generator)
                seconds = time.perf_counter() - started
                position = {"kind": "step", "epoch": epoch, "step": step, "phase": phase}
                self.run.log({**position, **record, "learning_rate": rate, "seconds": seconds})
                total += record["loss_weights"]
                shown = {} if record["latency_ms"] is None else {"latency": record["latency_ms"]}
                self.progress.advance(1, loss=record["loss_weights"], **shown)
                self._stop_if(interrupt, epoch)
        return total / steps

    def release(self) -> None:
        """Restore plain weights and stop the data workers."""
        self.weight_optimizer.close()
        super().release()

    def _pairs(self, epoch: int, phase: str) -> Iterator[tuple[Any, Any]]:
        """Pairs of batches of the two halves; in pretraining None instead of the second."""
        for stream in self.streams:
            stream.set_epoch(epoch)
        first, second = self.streams
        if phase == "pretrain":
            yield from ((batch, None) for batch in first)
        else:
            yield from zip(first, second, strict=False)

    def _weight_step(self, batch: tuple[Tensor, Tensor], phase: str, generator: torch.Generator) -> float:
        """One SGD step on the mean loss of the passes; returns this loss."""
        images, labels = self._move(batch)
        passes = self.problem.weight_passes(phase, generator)
        count = sum(forward.count for forward in passes)
        self.weight_optimizer.zero_grad()
        losses = [self._backward(images, labels, forward, forward.count / count) for forward in passes]
        if self.world > 1:
            self._average(self.weight_optimizer.gradients())
        self.weight_optimizer.step()
        return self._finite(torch.stack(losses).sum(), "weights")

    def _backward(self, images: Tensor, labels: Tensor, forward: Pass, share: float) -> Tensor:
        """Add ``share`` times the weights' gradients of a pass; returns this share of its loss."""
        if self.graphs is not None:
            replayed = self.graphs.backward(images, labels, forward, share)
            if replayed is not None:
                return replayed
        loss = self._loss(images, labels, forward) * share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _architecture_step(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, float]:
        """One Adam step on the architecture parameters.

        Returns entries of the log: mean loss, mean expected latency in ms, and weight of the latency (lambda, per ms).
        """
        images, labels = self._move(batch)
        loss_gradients = [torch.zeros_like(p) for p in self.parameters]
        latency_gradients = [torch.zeros_like(p) for p in self.parameters]
        losses, latencies = [], []
        with frozen(self.weights):  # no activations are saved for gradients of the weights
            for forward in self.problem.architecture_passes(generator):
                found = self._architecture_gradients(images, labels, forward)
                _add(loss_gradients, found.loss_gradients)
                _add(latency_gradients, found.latency_gradients)
                losses.append(found.loss)
                latencies += [] if found.latency is None else [found.latency]
        self._average([*loss_gradients, *latency_gradients])
        latency_ms = self._shared(torch.stack(latencies).mean())[0] if latencies else 0.0
        weight = self.config.latency_weight
        if latencies:
            weight = self.control.weight(latency_ms, loss_gradients, latency_gradients, self.problem.logits)
        self._gradients.add(loss_gradients, latency_gradients, weight)
        terms = torch._foreach_mul(latency_gradients, weight)
        for parameter, gradient in zip(self.parameters, torch._foreach_add(loss_gradients, terms), strict=True):
            parameter.grad = gradient
        self.architecture_optimizer.step()
        if isinstance(self.problem, HasKinds):
            self.problem.project()
        self.architecture_optimizer.zero_grad(set_to_none=True)
        return {
            "loss_architecture": self._finite(torch.stack(losses).mean(), "architecture"),
            "latency_ms": latency_ms,
            "latency_weight": weight,
        }

    def _architecture_gradients(self, images: Tensor, labels: Tensor, forward: Pass) -> _ArchitectureGradients:
        """The loss of a pass, its expected latency if it has one, and the gradients of both."""
        loss, latency = self._loss(images, labels, forward), self.problem.latency(forward)
        latency_gradients: Sequence[Tensor | None] = ()
        if latency is not None:
            # The graphs share a few softmaxes, so the first one must be retained: the latency's, which is small.
            latency_gradients = torch.autograd.grad(latency, self.parameters, retain_graph=True, allow_unused=True)
            latency = latency.detach()
        loss_gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return _ArchitectureGradients(loss.detach(), loss_gradients, latency, latency_gradients)


@dataclass(frozen=True)
class _ArchitectureGradients:
    """The loss and the expected latency (or None) of a pass, with their gradients."""

    loss: Tensor
    loss_gradients: Sequence[Tensor | None]
    latency: Tensor | None
    latency_gradients: Sequence[Tensor | None]


def _add(totals: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    pairs = [(total, gradient) for total, gradient in zip(totals, gradients, strict=False) if gradient is not None]
    if pairs:
        torch._foreach_add_([total for total, _ in pairs], [gradient for _, gradient in pairs])
