"""One-shot search: the weights of a supernet trained by sampled networks. What is best is selected afterwards."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dnas.data import SegmentationDataset
from dnas.data.seeding import mix_seed
from dnas.progress import Progress
from dnas.runs import Interrupt, RunFolder
from dnas.search.calibration import freeze_bn_stats
from dnas.search.config import OneShotConfig
from dnas.search.optim import SupernetSGD
from dnas.search.problem import OneShotProblem
from dnas.search.session import HasState, SearchSession
from dnas.training.device import DTYPES
from dnas.training.losses import distillation_loss
from dnas.training.optimizers import set_learning_rate
from dnas.training.schedules import schedule_factor


class OneShotSearch(SearchSession[OneShotProblem, OneShotConfig]):
    """A step trains the weights by the mean loss of several networks on one batch of the first part of the images.

    The second part, ``config.held_out`` of the training images, is for judging networks.
    """

    weight_optimizer: SupernetSGD

    def __init__(
        self,
        problem: OneShotProblem,
        data: tuple[SegmentationDataset, SegmentationDataset],
        run: RunFolder,
        config: OneShotConfig,
        device: torch.device,
        progress: Progress,
    ) -> None:
        parts = config.parts(len(data[0]), run.seed)
        seeds = [mix_seed("one-shot", run.seed)]
        super().__init__(problem, data, run, config, device, progress, parts=parts[:1], seeds=seeds, held_out=parts[1])
        self.weight_optimizer = SupernetSGD(
            problem.weights,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            max_norm=config.gradient_clipping,
            momentum_dtype=DTYPES[config.momentum_precision],
            split_bf16=self.precision == "bf16",
            keep_gradients=False,  # a step leaves most weights without a gradient
            exclude=self.parameters,
        )
        if self.parameters:
            self.architecture_optimizer = torch.optim.Adam(
                self.parameters, lr=config.architecture_learning_rate, betas=(0.5, 0.999)
            )

    def train(self, epoch: int, interrupt: Interrupt) -> float:
        """The steps of one epoch; returns the mean loss."""
        config = self.config
        (stream,) = self.streams
        stream.set_epoch(epoch)
        self.problem.weights.train()
        steps = len(stream)
        self.progress.begin(f"supernet epoch {epoch + 1}/{config.epochs}", steps)
        total = 0.0
        with freeze_bn_stats(self.problem.weights):
            for step, batch in enumerate(stream):
                started = time.perf_counter()
                factor = schedule_factor(config, epoch * steps + step, steps)
                rate = factor * config.learning_rate
                set_learning_rate(self.weight_optimizer, rate)
                if self.parameters:
                    set_learning_rate(self.architecture_optimizer, factor * config.architecture_learning_rate)
                generator = torch.Generator().manual_seed(mix_seed("networks", self.run.seed, epoch, step))
                loss = self._step(batch, generator)
                total += loss
                self.run.log(
                    {
                        "kind": "step",
                        "epoch": epoch,
                        "step": step,
                        "phase": config.phase(epoch),
                        "loss_weights": loss,
                        "learning_rate": rate,
                        "seconds": time.perf_counter() - started,
                    }
                )
                self.progress.advance(1, loss=loss)
                self._stop_if(interrupt, epoch)
        return total / steps

    def _step(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> float:
        """One SGD step on the mean loss of the passes; returns the mean segmentation loss."""
        images, labels = self._move(batch)
        passes = self.problem.weight_passes("search", generator)
        self.weight_optimizer.zero_grad()
        if self.parameters:
            self.architecture_optimizer.zero_grad()
        losses: list[Tensor] = []
        guide: Tensor | None = None
        for forward in passes:
            logits = next(iter(self._outputs(images, forward).values()))
            loss = self.criterion(logits, labels)
            losses.append(loss.detach())
            if guide is not None:
                loss = loss + self.config.distillation_weight * distillation_loss(
                    logits, guide, labels, "teacher_student"
                )
            elif self.config.distillation_weight > 0:
                guide = logits.detach()  # the first pass is the largest network, which teaches the others in place
            (loss / len(passes)).backward()
        if self.world > 1:
            self._average([*self.weight_optimizer.gradients(), *(p.grad for p in self.parameters)])
        self.weight_optimizer.step()
        if self.parameters:
            self.architecture_optimizer.step()
            self.problem.project()
        return self._finite(torch.stack(losses).mean(), "weights")

    def release(self) -> None:
        """Leave plain weights behind and end the data workers."""
        self.weight_optimizer.close()
        super().release()

    def optimizers(self) -> dict[str, HasState]:
        """That of the weights, and one of the architecture parameters where there are any."""
        found: dict[str, HasState] = {"weight_optimizer": self.weight_optimizer}
        return {**found, "logit_optimizer": self.architecture_optimizer} if self.parameters else found
