"""Two-level search: weights and architecture parameters in turn, on two halves of the training images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dnas.data import SegmentationDataset, split_halves
from dnas.data.seeding import mix_seed
from dnas.ops.turns import turn_back
from dnas.progress import Progress
from dnas.runs import Interrupt, Interrupted, RunFolder
from dnas.search.calibration import freeze_bn_stats
from dnas.search.collapse import collapse_warnings
from dnas.search.config import SearchConfig
from dnas.search.descent import SupernetSGD
from dnas.search.goal import LatencyController, LatencyGoal
from dnas.search.gradients import GradientMonitor, reached_norms
from dnas.search.passes import PassPool, can_fork
from dnas.search.pieces import PassResult, StepRequest
from dnas.search.problem import BilevelProblem, Pass
from dnas.search.session import SearchSession
from dnas.search.sharing import share
from dnas.training.device import DTYPES
from dnas.training.optimizers import frozen
from dnas.training.schedules import exponential_decay


class BilevelSearch(SearchSession[BilevelProblem, SearchConfig]):
    """A step trains the weights on a batch of the first half, then the architecture on one of the second."""

    weight_optimizer: SupernetSGD

    def __init__(
        self,
        problem: BilevelProblem,
        data: tuple[SegmentationDataset, SegmentationDataset],
        run: RunFolder,
        config: SearchConfig,
        device: torch.device,
        progress: Progress,
        goal: LatencyGoal | None = None,
    ) -> None:
        halves = split_halves(len(data[0]), run.seed)
        seeds = [mix_seed("half", number, run.seed) for number in range(len(halves))]
        super().__init__(problem, data, run, config, device, progress, parts=halves, seeds=seeds)
        processes = passes_at_once(config, self.device)
        if processes > 1:
            share([*problem.weights.parameters(), *problem.architecture.parameters()])
        self.weight_optimizer = SupernetSGD(
            problem.weights,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            clipping=config.gradient_clipping,
            precision=DTYPES[config.momentum_precision],
            compute_precision=DTYPES[self.precision],
            keep_gradients=config.operator_sampling == "mixed",  # single paths leave most weights without one
            shared=processes > 1,
        )
        self.architecture_optimizer = torch.optim.Adam(
            self.parameters,
            lr=config.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=config.architecture_weight_decay,
        )
        alone = config.gradient_clipping is None and self.world == 1  # no weight waits for the others' gradients
        self._passes = PassPool(
            self._prepared,
            processes=processes,
            weights=self.weight_optimizer.superkernels,
            finish=self.weight_optimizer.descend if alone else None,
        )
        self.goal = goal
        self.controller: LatencyController | None = None
        if goal is not None and goal.target_ms is not None:
            self.controller = LatencyController(
                goal.target_ms,
                initial_weight=config.latency_weight,
                steps=config.search_epochs * min(map(len, self.streams)),
            )
        self._warned: frozenset[str] = frozenset()
        self._named = {id(parameter): name for name, parameter in problem.architecture.named_parameters()}
        self._gradients = self._gradient_monitor()

    def _gradient_monitor(self) -> GradientMonitor:
        return GradientMonitor([self._named[id(parameter)] for parameter in self.parameters])

    def memory_elsewhere_mb(self) -> float:
        """Of the processes of the passes."""
        return self._passes.peak_mb

    def extra_state(self) -> dict[str, Any]:
        """The state of the controller on lambda, where there is one, and the warnings that stand."""
        state: dict[str, Any] = {"warned": sorted(self._warned)}
        if self.controller is not None:
            state["latency_controller"] = self.controller.state()
        return state

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Take up :meth:`extra_state`."""
        self._warned = frozenset(state.get("warned", ()))
        if self.controller is not None:
            self.controller.load_state(state["latency_controller"])

    def observe(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The latency of the networks derived now, both terms' gradients, and warnings; new ones are printed too."""
        found: dict[str, Any] = {"latency_gradient": self._gradients.record() or None}
        if self.goal is not None:
            outputs = dict(self.goal.derived(self.problem.logits()))
            found["derived"] = {
                "latency_ms": sum(outputs.values()) / len(outputs),
                "outputs": outputs,
                "target_ms": self.goal.target_ms,
            }
        warnings: dict[str, str] = {}
        if record["phase"] == "search":
            done = (record["epoch"] + 1 - self.config.pretrain_epochs) / self.config.search_epochs
            warnings = collapse_warnings({**record, **found}, progress=done, goal=self.goal)
        for name, reason in warnings.items():
            if name not in self._warned:
                architecture = name.split(".")[0]
                self.progress.message(f"warning: the {architecture}'s search is collapsing: {reason}")
        self._warned = frozenset(warnings)
        return {**found, "warnings": warnings}

    def train(self, epoch: int, interrupt: Interrupt) -> float:
        """The steps of one epoch; returns the mean loss of the weights."""
        config, phase = self.config, self.config.phase(epoch)
        rate = config.learning_rate * exponential_decay(epoch, config.learning_rate_decay)
        self.weight_optimizer.set_learning_rate(rate)
        self.problem.weights.train()
        steps = len(self.streams[0]) if phase == "pretrain" else min(map(len, self.streams))
        self.progress.begin(f"{phase} epoch {epoch + 1}/{config.epochs}", steps)
        self._gradients = self._gradient_monitor()
        total = 0.0
        with freeze_bn_stats(self.problem.weights):
            for step, pair in enumerate(self._pairs(epoch, phase)):
                started = time.perf_counter()
                generator = torch.Generator().manual_seed(mix_seed("architecture", self.run.seed, epoch, step))
                record = self._step(pair, phase, generator)
                seconds = time.perf_counter() - started
                place = {"kind": "step", "epoch": epoch, "step": step, "phase": phase}
                self.run.log({**place, **record, "learning_rate": rate, "seconds": seconds})
                total += record["loss_weights"]
                shown = {} if record["latency_ms"] is None else {"latency": record["latency_ms"]}
                self.progress.advance(1, loss=record["loss_weights"], **shown)
                if interrupt.requested:
                    raise Interrupted(f"{self.run.path}: stopped in epoch {epoch + 1}; go on with --resume")
        return total / steps

    def _step(self, pair: tuple[Any, Any], phase: str, generator: torch.Generator) -> dict[str, Any]:
        """The weight step, and the architecture step where the pair has a batch for it; returns what to log."""
        first, second = pair
        loss = self._weight_step(first, phase, generator)
        searched, latency_ms, weight = None, None, self.config.latency_weight
        if second is not None:
            searched, latency_ms, weight = self._architecture_step(second, generator)
        self._passes.give_back()
        return {
            "loss_weights": loss,
            "loss_architecture": searched,
            "latency_ms": latency_ms,
            "latency_weight": weight,
        }

    def release(self) -> None:
        """End the processes of the passes and the data workers."""
        self._passes.close()
        self.weight_optimizer.close()
        super().release()

    def _pairs(self, epoch: int, phase: str) -> Iterator[tuple[Any, Any]]:
        """Batches of the two halves side by side; none of the second while pretraining."""
        for stream in self.streams:
            stream.set_epoch(epoch)
        first, second = self.streams
        if phase == "pretrain":
            yield from ((batch, None) for batch in first)
        else:
            yield from zip(first, second, strict=False)

    @contextmanager
    def _prepared(self, request: StepRequest) -> Iterator[list[Callable[[], PassResult]]]:
        """The passes of a step, as this process runs them."""
        images, labels = self._move((request.images, request.labels))
        if request.phase is not None:
            self.weight_optimizer.set_learning_rate(request.learning_rate)
            drawn = self.problem.weight_passes(request.phase, request.generator)
            total = sum(one.count for one in drawn)
            yield [partial(self._weight_pass, images, labels, one, one.count / total) for one in drawn]
            return
        with frozen(self.weights):  # nothing is kept for gradients of the weights
            drawn = self.problem.architecture_passes(request.generator)
            yield [partial(self._architecture_pass, images, labels, one) for one in drawn]

    def _weight_step(self, batch: tuple[Tensor, Tensor], phase: str, generator: torch.Generator) -> float:
        """One SGD step on the mean loss of the passes; returns that."""
        self.weight_optimizer.begin()
        found = self._passes.run(StepRequest(*batch, generator, phase, self.weight_optimizer.learning_rate))
        if self._passes.side_by_side:
            self.weight_optimizer.take_up(self._passes.added(), [one.gradients for one in found])
        if self.world > 1:
            self._average(self.weight_optimizer.gathered())
        self.weight_optimizer.step()
        return self._finite(torch.stack([one.loss for one in found]).sum(), "weights")

    def _weight_pass(self, images: Tensor, labels: Tensor, forward: Pass, share: float) -> PassResult:
        """The loss of a pass times its share in the step's; its gradients are added to those of earlier passes.

        Side by side, this is so for the superkernels; the others' are part of the result.
        """
        loss = self._loss(images, labels, forward) * share
        if not self._passes.side_by_side:
            loss.backward()  # type: ignore[no-untyped-call]
            return PassResult(loss.detach())
        turn_back()
        others = self.weight_optimizer.others
        return PassResult(loss.detach(), torch.autograd.grad(loss, others, allow_unused=True))

    def _architecture_step(
        self, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[float, float, float]:
        """One Adam step on the architecture parameters.

        Returns the mean loss, the mean expected latency in ms, and the latency's weight (lambda, per ms).
        """
        found = self._passes.run(StepRequest(*batch, generator))
        latencies = [one.latency for one in found if one.latency is not None]
        gradients, slopes = self._sums(one.gradients for one in found), self._sums(one.slopes for one in found)
        self._average(gradients)
        latency_ms = float(torch.stack(latencies).mean()) if latencies else 0.0
        weight = self._latency_weight(latency_ms, gradients, slopes) if latencies else self.config.latency_weight
        self._gradients.add(gradients, slopes, weight)
        for parameter, gradient, slope in zip(self.parameters, gradients, slopes, strict=True):
            parameter.grad = gradient + weight * slope
        self.architecture_optimizer.step()
        self.architecture_optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([one.loss for one in found]).mean()
        return self._finite(loss, "architecture"), latency_ms, weight

    def _architecture_pass(self, images: Tensor, labels: Tensor, forward: Pass) -> PassResult:
        """The loss of a pass and its latency, where it has one, and the gradients of both by the architecture."""
        loss, latency = self._loss(images, labels, forward), self.problem.latency(forward)
        slopes: Sequence[Tensor | None] = ()
        if latency is not None:
            # Before the loss, whose graph is large and must not be kept; they share a few softmaxes.
            slopes = torch.autograd.grad(latency, self.parameters, retain_graph=True, allow_unused=True)
            latency = latency.detach()
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return PassResult(loss.detach(), gradients, latency, slopes)

    def _sums(self, found: Iterable[Sequence[Tensor | None]]) -> list[Tensor]:
        """The sum over passes of the gradients by each architecture parameter."""
        totals = [torch.zeros_like(p) for p in self.parameters]
        for gradients in found:
            for total, gradient in zip(totals, gradients, strict=False):
                if gradient is not None:
                    total += gradient
        return totals

    def _latency_weight(self, expected_ms: float, gradients: Sequence[Tensor], slopes: Sequence[Tensor]) -> float:
        """Lambda for this step: the configured one, or what the controller makes of the latencies as they are."""
        if self.controller is None or self.goal is None:
            return self.config.latency_weight
        derived_ms = self.goal.derived_ms(self.problem.logits())
        return self.controller.update(expected_ms, derived_ms, *reached_norms(gradients, slopes))


def passes_at_once(config: SearchConfig, device: torch.device) -> int:
    """How many passes of a step run side by side: on a CPU as many as it has threads, unless told."""
    if device.type != "cpu" or not can_fork():
        return 1  # a pass fills an accelerator
    most = max(len(config.pretrain_passes), len(config.search_passes))
    return min(config.passes_at_once or torch.get_num_threads(), most)
