"""The objective of retraining: hard pixels, auxiliary heads and distillation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from dnas.data import SegmentationDataset
from dnas.errors import UserError
from dnas.training.boundary_losses import boundary_loss
from dnas.training.class_weights import class_weights
from dnas.training.config import RetrainConfig
from dnas.training.device import autocast
from dnas.training.losses import OhemCrossEntropy, distillation_loss
from dnas.training.region_losses import region_loss


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """The losses of one batch, scalars."""

    total: Tensor
    """The weighted sum, which is minimised."""
    segmentation: Tensor
    distillation: Tensor
    """Unweighted; 0 without a teacher."""


class Objective:
    """The loss of a network's outputs; the teacher (a trained network, or None) is not trained."""

    def __init__(
        self,
        config: RetrainConfig,
        dataset: SegmentationDataset,
        teacher: nn.Module | None,
        device: torch.device,
        *,
        workers: int = 0,
    ) -> None:
        """``dataset``: the training images, from which class weights are computed by so many ``workers``."""
        self._config = config
        self._num_classes = dataset.labels.num_classes
        self._teacher = teacher if config.distillation_weight > 0 else None
        self._criterion = _cross_entropy(config, class_weights(config.class_weights, dataset, workers)).to(device)

    @property
    def distills(self) -> bool:
        """Whether there is a teacher."""
        return self._teacher is not None

    def __call__(self, outputs: Any, images: Tensor, labels: Tensor) -> BatchLoss:
        """``outputs`` of the network in training mode for ``images`` (N, 3, H, W): logits, or logits and auxiliary.

        Raises :class:`UserError` if the number of classes or of auxiliary heads differs from the configuration.
        """
        logits, *auxiliary = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        weights = self._config.auxiliary_weights
        if len(auxiliary) != len(weights):
            raise UserError(
                f"auxiliary_weights: given {len(weights)}, the network has {len(auxiliary)} auxiliary heads; "
                "give one weight for each"
            )
        if logits.shape[1] != self._num_classes:
            raise UserError(
                f"the network predicts {logits.shape[1]} classes, the dataset has {self._num_classes}: "
                "build the network for the classes of the dataset"
            )
        segmentation = self._segmentation(logits, labels)
        total = segmentation
        for weight, head in zip(weights, auxiliary, strict=True):
            total = total + weight * self._auxiliary(head, labels)
        if self._teacher is None:
            return BatchLoss(total, segmentation, torch.zeros_like(total))
        with torch.no_grad(), autocast(images.device, self._config.precision):
            teacher_logits = self._teacher(images)
        distillation = distillation_loss(
            logits,
            teacher_logits,
            labels,
            direction=self._config.distillation_direction,
            temperature=self._config.distillation_temperature,
        )
        return BatchLoss(total + self._config.distillation_weight * distillation, segmentation, distillation)

    def _auxiliary(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of an auxiliary head: of its classes, or of boundaries if it has one logit for each pixel."""
        if logits.shape[1] == 1:
            return boundary_loss(self._config.boundary_loss, logits, labels)
        return self._segmentation(logits, labels)

    def _segmentation(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self._criterion(logits, labels)
        if self._config.region_loss == "none":
            return loss
        return loss + self._config.region_weight * region_loss(self._config.region_loss, logits, labels)


def _cross_entropy(config: RetrainConfig, weights: Tensor | None) -> OhemCrossEntropy:
    kept, smoothing = float(config.ohem_min_fraction), config.label_smoothing
    if config.ohem_loss is not None:
        return OhemCrossEntropy.over_loss(config.ohem_loss, kept, class_weights=weights, label_smoothing=smoothing)
    return OhemCrossEntropy(config.ohem_threshold, kept, class_weights=weights, label_smoothing=smoothing)
