"""The retraining loop: training a discrete network from scratch and keeping its best weights."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from dnas.data import IGNORE_LABEL, SegmentationDataset, batches, finish_device, train_transform
from dnas.data.waiting import Waiting, waiting_advice
from dnas.data.worker_count import worker_count
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.progress import NoProgress, Progress
from dnas.runs import Interrupt, Interrupted, RunFolder, load_into, seed_everything
from dnas.training.averaging import moving_average
from dnas.training.config import RetrainConfig
from dnas.training.device import (
    autocast,
    make_accelerator,
    make_scaler,
    peak_memory_mb,
    reset_peak_memory,
    tuned_convolutions,
)
from dnas.training.interruption import interruptible
from dnas.training.metrics import Evaluation, evaluate
from dnas.training.norms import frozen_norms, keep_frozen
from dnas.training.objective import Objective
from dnas.training.optimizers import check_loaded, make_optimizer, set_learning_rate
from dnas.training.schedules import schedule_factor
from dnas.training.single_values import single_values_explained

Splits = tuple[SegmentationDataset, SegmentationDataset]
"""Training and validation images."""


@dataclasses.dataclass(frozen=True)
class RetrainResult:
    """The result of a retraining; the weights of ``best_epoch`` (counted from 0) are in ``best.safetensors``."""

    epochs: int
    best_epoch: int
    best_miou: float


def retrain(
    network: nn.Module,
    data: Splits,
    run: RunFolder,
    config: RetrainConfig,
    *,
    teacher: nn.Module | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> RetrainResult:
    """Train ``network`` on the first of ``data``, validate it on the second, save the best and last weights in ``run``.

    The network maps images (N, 3, H, W) to logits (N, classes, h, w); in training mode it may return a tuple or list of
    the logits and those of auxiliary heads. A trained ``teacher`` is distilled per pixel (FasterSeg, section 3.3).
    ``device`` None is the GPU if there is one. Processes started by torchrun share the work of each step.

    If ``run`` has a state, training resumes after its last finished epoch and ends with the same weights (bit by bit on
    the CPU) and the same log as without the interruption. Ctrl-C raises ``Interrupted`` after the current step. Raises
    :class:`UserError` for too few images, for another number of classes, and for a loss that is no longer finite.
    """
    job = _Retraining(network, data, run, config, teacher, resolve_device(device), progress or NoProgress())
    try:
        first_epoch = job.restore()
        with interruptible(run.path, job.progress) as interrupt, tuned_convolutions(job.device):
            for epoch in range(first_epoch, config.epochs):
                job.run_epoch(epoch, interrupt)
    finally:
        job.release()
    return RetrainResult(epochs=config.epochs, best_epoch=job.best_epoch, best_miou=job.best_miou)


def is_channels_last(config: RetrainConfig, device: torch.device) -> bool:
    """Whether a retraining on ``device`` uses the channels-last memory format."""
    return device.type == "cuda" if config.channels_last is None else config.channels_last


class _Retraining:
    """One retraining: the network, its optimiser and the best scores so far."""

    def __init__(
        self,
        network: nn.Module,
        data: Splits,
        run: RunFolder,
        config: RetrainConfig,
        teacher: nn.Module | None,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.run, self.config, self.progress = run, config, progress
        train_data, self.validation_data = data
        if len(self.validation_data) == 0:
            raise UserError(f"{self.validation_data.name}: the split {self.validation_data.split} has no images")
        self.accelerator = make_accelerator(device)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        finish_on = finish_device(config.augmentation, self.device)
        self.workers = worker_count(config.workers, train_data, self.device)
        could_finish = finish_on is None and self.device.type == "cuda"
        advice = waiting_advice(
            self.workers, is_kept=train_data.kept_in is not None, could_finish_on_device=could_finish
        )
        self.waiting = Waiting(advice, self.device)
        self.batches = batches(
            train_data,
            train_transform(config.augmentation),
            batch_size=config.batch_size,
            seed=run.seed,
            epoch=0,
            shuffle=True,
            # BatchNorm cannot normalise a last batch of one image.
            drop_last=True,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
            rank=self.rank,
            world=self.world,
            sampling=config.sampling,
            finish_on=finish_on,
            waiting=self.waiting,
        )
        self.updates_per_epoch = -(-len(self.batches) // config.accumulate)
        self.layout = torch.channels_last if is_channels_last(config, self.device) else torch.contiguous_format
        self.network = network.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]
        if teacher is not None:
            teacher.to(device=self.device, memory_format=self.layout).eval()  # type: ignore[call-overload]
        self.objective = Objective(config, train_data, teacher, self.device, workers=self.workers)
        self.scaler = make_scaler(self.device, config.precision)
        self.norms = frozen_norms(self.network) if config.freeze_norms else ()
        self.optimizer = make_optimizer(self.network, config)
        self.average = None
        if config.ema_decay is not None:
            self.average = moving_average(self.network, config.ema_decay, config.ema_warm_up)
        self.trained: Any = network
        self.best_miou, self.best_epoch = -math.inf, -1

    @property
    def kept(self) -> nn.Module:
        """The network whose weights are validated and kept: the moving average, if there is one."""
        return self.network if self.average is None else self.average.module

    def restore(self) -> int:
        """Load the state in the run folder, if any; returns the number of finished epochs."""
        state = self.run.load_state(self.config.epochs)
        if state is not None:
            try:
                load_into(self.network, state["network"], self.run.path)
                self.optimizer.load_state_dict(state["optimizer"])
                check_loaded(self.optimizer)
                if state["scaler"]:
                    self.scaler.load_state_dict(state["scaler"])
                if self.average is not None:
                    load_into(self.average, state["average"], self.run.path)
                self.best_miou, self.best_epoch = float(state["best"]["miou"]), int(state["best"]["epoch"])
            except (KeyError, TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
                raise UserError(f"{self.run.path}: its state does not fit this retraining ({error})") from None
            for name in ("last", *(["best"] if self.best_epoch >= 0 else [])):
                if not self.run.has_weights(name):
                    raise UserError(
                        f"{self.run.path}: {name}.safetensors is missing, but epoch {state['epoch']} is finished; "
                        "restore it, or start again"
                    )
                self.run.load_weights(name)  # refuses a damaged file, which a finished run would not replace
        epoch = 0 if state is None else int(state["epoch"])
        self.run.truncate_log(epoch)
        self.trained = self.accelerator.prepare_model(self.network)
        # No process may replace the state before all of them have read it.
        self.accelerator.wait_for_everyone()
        return epoch

    def release(self) -> None:
        """End the data workers and free the memory."""
        self.batches.close()
        self.accelerator.free_memory()

    def run_epoch(self, epoch: int, interrupt: Interrupt) -> None:
        """Train, validate, log and save one epoch."""
        started = time.perf_counter()
        reset_peak_memory(self.device)
        # Seeded in every epoch, so that a resumed run draws the same noise in every process.
        seed_everything(self.run.seed, epoch, self.rank)
        with self.waiting.epoch():
            loss = self._train(epoch, interrupt)
        is_last = epoch + 1 == self.config.epochs
        evaluation = self._validate(epoch) if is_last or (epoch + 1) % self.config.validate_every == 0 else None
        self.run.log(
            {
                "kind": "epoch",
                "epoch": epoch,
                "loss": loss,
                "miou": None if evaluation is None else evaluation.miou,
                "pixel_accuracy": None if evaluation is None else evaluation.pixel_accuracy,
                "data_wait": self.waiting.share,
                "seconds": time.perf_counter() - started,
                "peak_memory_mb": peak_memory_mb(self.device),
            }
        )
        self._save(epoch, evaluation)
        score = "" if evaluation is None else f", mIoU {100 * evaluation.miou:.2f} %"
        self.progress.message(f"epoch {epoch + 1}/{self.config.epochs}: loss {loss:.4f}{score}")
        if (hint := self.waiting.hint()) is not None:
            self.progress.message(hint)

    def _train(self, epoch: int, interrupt: Interrupt) -> float:
        self.trained.train()
        keep_frozen(self.norms)
        self.batches.set_epoch(epoch)
        self.progress.begin(f"retrain {epoch + 1}/{self.config.epochs}", len(self.batches))
        total, counted, is_labelled = 0.0, 0, False
        for step, (images, labels) in enumerate(self.batches):
            is_labelled = is_labelled or bool((labels != IGNORE_LABEL).any())
            loss = self._step(epoch, step, images, labels, interrupt)
            if loss is not None:
                total += loss
                counted += 1
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            # After the last step no loss would show it, and a saved state of such weights could not be resumed.
            raise self._diverged("weights are not finite", epoch, len(self.batches) - 1)
        if not is_labelled and self.world == 1:
            raise UserError(
                f"no pixel of the training images of epoch {epoch + 1} has a class, all are ignored, so that there is "
                "nothing to learn; see dnas data check"
            )
        if not counted:
            raise self._diverged("no loss is finite", epoch, len(self.batches) - 1)
        return total / counted

    def _step(self, epoch: int, step: int, images: Tensor, labels: Tensor, interrupt: Interrupt) -> float | None:
        """One step of the optimiser; returns the loss, None if the scaler of fp16 skipped a step that overflowed."""
        started = time.perf_counter()
        update = epoch * self.updates_per_epoch + step // self.config.accumulate
        learning_rate = self.config.learning_rate * schedule_factor(self.config, update, self.updates_per_epoch)
        set_learning_rate(self.optimizer, learning_rate)
        images = images.to(self.device, non_blocking=True, memory_format=self.layout)
        labels = labels.to(self.device, non_blocking=True)
        with autocast(self.device, self.config.precision), single_values_explained(images):
            outputs = self.trained(images)
        loss = self.objective(outputs, images, labels)
        figures = torch.stack([loss.total, loss.segmentation, loss.distillation]).detach().double()
        stop = figures.new_full((1,), float(interrupt.requested))  # filled on the device, without a copy
        # Averaged over the processes, so that they all continue, stop or fail at the same step.
        *values, requested = self.accelerator.reduce(torch.cat([figures, stop]), "mean").tolist()
        overflowed = not all(math.isfinite(value) for value in values)
        # The scaler of fp16 skips such a step and halves its scale; with a scale below 1 that does not help any more.
        if overflowed and not (self.scaler.is_enabled() and self.scaler.get_scale() >= 1):
            raise self._diverged(f"the loss is {values[0]}", epoch, step)
        if self._update(loss.total, step) and self.average is not None and (update + 1) % self.config.ema_every == 0:
            self.average.update_parameters(self.network)
        self.run.log(
            {
                "kind": "step",
                "epoch": epoch,
                "step": step,
                "loss": None if overflowed else values[0],
                "loss_segmentation": None if overflowed else values[1],
                "loss_distillation": None if overflowed or not self.objective.distills else values[2],
                "learning_rate": learning_rate,
                "seconds": time.perf_counter() - started,
            }
        )
        shown = {} if overflowed else {"loss": values[0]}
        self.progress.advance(**shown, learning_rate=learning_rate)
        if requested > 0:
            raise Interrupted(
                f"stopped in epoch {epoch + 1}; {epoch} of {self.config.epochs} epochs are saved in {self.run.path}, "
                "continue with --resume"
            )
        return None if overflowed else float(values[0])

    def _diverged(self, what: str, epoch: int, step: int) -> UserError:
        return UserError(
            f"{what} in epoch {epoch + 1}, step {step + 1}: training has diverged; start again with a learning "
            f"rate below {self.config.learning_rate:g}, a longer warm-up, gradient clipping or fp32"
        )

    def _update(self, loss: Tensor, step: int) -> bool:
        """Add the gradients of a batch; after the last batch of its group, step and return True."""
        accumulate = self.config.accumulate
        within, first = step % accumulate, step // accumulate * accumulate
        group = min(accumulate, len(self.batches) - first)
        if within == 0:
            self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss / group))
        if within + 1 < group:
            return False
        if self.config.gradient_clipping is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return True

    def _validate(self, epoch: int) -> Evaluation:
        self.progress.begin(f"validate {epoch + 1}/{self.config.epochs}", len(self.validation_data))
        if self.world > 1:
            # Each process has its own running statistics; those of the first one are saved, so they are validated.
            for buffer in self.kept.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return evaluate(
            self.kept,
            self.validation_data,
            self.config.augmentation,
            device=self.device,
            batch_size=self.config.validation_batch_size,
            precision=self.config.precision,
            workers=self.workers,
            channels_last=self.layout == torch.channels_last,
            rank=self.rank,
            world=self.world,
            progress=self.progress,
        )

    def _save(self, epoch: int, evaluation: Evaluation | None) -> None:
        weights = self.kept.state_dict()
        if evaluation is not None and evaluation.miou > self.best_miou:
            self.best_miou, self.best_epoch = evaluation.miou, epoch
            self.run.save_weights("best", weights)
        self.run.save_weights("last", weights)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": {"miou": self.best_miou, "epoch": self.best_epoch},
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        # Last: the epoch counts once the state is replaced; a run that is killed before repeats it.
        self.run.save_state(state, epoch + 1)
