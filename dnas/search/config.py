"""Configuration of the search loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pydantic
from typing_extensions import Self

from dnas.config import Field, config
from dnas.data import AugmentationConfig, split_halves, split_parts
from dnas.training.class_weights import ClassWeighting

SearchPrecision = Literal["auto", "fp32", "bf16"]
"""Not fp16: each of the passes over shared weights would need its own gradient scaler."""


@config
class SearchConfig:
    """Bilevel search: weights on one half of the training images, architecture parameters on the other.

    The defaults are FasterSeg's (section 4.2, Appendices C, F and H).

    pretrain_epochs: epochs in which only the weights are trained. search_epochs: epochs after the pretraining.
    batch_size: images per forward pass and process.
    learning_rate, momentum, weight_decay: SGD of the weights. learning_rate_decay: factor per epoch.
    architecture_learning_rate, architecture_weight_decay: Adam of the architecture parameters.
    gradient_clipping: maximum norm of all weight gradients together; null: no clipping. Without clipping, superkernels
        accumulate their gradients in the momenta, which saves memory.
    momentum_precision: precision of the superkernels' gradients and momenta; "bf16" halves their memory and, with
        precision bf16, is faster.
    precision: "auto" is bf16 on GPUs that have it, else "fp32", in which a GPU computes convolutions in TF32.
    capture: run the weight passes of fixed widths as CUDA graphs. The host launches less; the memory of the largest of
        these passes is kept between steps.
    latency_weight: lambda in Eq. 8, per ms; with a latency target, the controller's initial value.
    ohem_threshold, ohem_min_fraction, class_weights: cross-entropy, as in the retraining.
    workers: processes that read and augment images ahead, for each half or part; null is as in the retraining.
    validate_every: epochs between validations; the last epoch is always validated.
    validation_images: number of images of the second half to score on, evenly spaced; null: all.
    judge_images: number of images of the second half that judge a derived network; null: all.
    """

    pretrain_epochs: int = Field(default=20, ge=0)
    search_epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=0.02, gt=0)
    learning_rate_decay: float = Field(default=0.99, gt=0, le=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    architecture_learning_rate: float = Field(default=3e-4, gt=0)
    architecture_weight_decay: float = Field(default=0.0, ge=0)
    gradient_clipping: float | None = Field(default=5.0, gt=0)
    momentum_precision: Literal["fp32", "bf16"] = "fp32"
    capture: bool = False
    latency_weight: float = Field(default=0.01, ge=0)
    ohem_threshold: float | None = Field(default=0.7, gt=0, le=1)
    ohem_min_fraction: float = Field(default=1 / 16, ge=0, le=1)
    class_weights: ClassWeighting = "none"
    precision: SearchPrecision = "auto"
    channels_last: bool = False
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int | None = Field(default=None, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_images: int | None = Field(default=None, ge=1)
    judge_images: int | None = Field(default=None, ge=1)

    def parts(self, count: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
        """The training images of the weights, and those of the architecture parameters, which score networks."""
        return split_halves(count, seed)

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.pretrain_epochs + self.search_epochs

    @property
    def keep_gradients(self) -> bool:
        """Whether the superkernels' gradient buffers are kept between steps."""
        return True

    def phase(self, epoch: int) -> Literal["pretrain", "search"]:
        """The phase of an epoch, counted from 0 over both."""
        return "pretrain" if epoch < self.pretrain_epochs else "search"


@config
class JointSearchConfig:
    """Joint search: weights and architecture parameters in the same step, on all training images.

    Epochs, batch size, SGD of the weights and the limit of the hard pixels are RegSeg's (v3, section 4.2). The paper
    does not say how the rates were optimised. Its warm-up of 3000 steps and its augmentation are not defaults; the
    preset ``regseg`` has the warm-up, and approximates RandAugment by changes of colour.

    epochs: total number of epochs; in the first ``pretrain_epochs`` only the weights are trained.
    batch_size: images per step and process.
    learning_rate, momentum, weight_decay, decay_norms_and_biases: SGD of the weights.
    architecture_learning_rate, architecture_optimizer, architecture_momentum, architecture_weight_decay: optimiser of
        the architecture parameters; the momentum is used by "sgd" only.
    schedule, poly_power, exponential_decay, warm_up_steps, warm_up_start: schedule of both learning rates, as in the
        retraining.
    gradient_clipping: maximum norm of all weight gradients together; null: no clipping.
    latency_weight: weight of the latency in the loss, per ms, if the search has a table.
    ohem_threshold, ohem_min_fraction, class_weights: cross-entropy, as in the retraining. (A loss of 0.3
        is a probability of 0.74.)
    workers: processes that read and augment images ahead, for each half or part; null is as in the retraining.
    validate_every: epochs between validations; the last epoch is always validated.
    validation_images: number of validation images, evenly spaced over the split; null: all.
    keep_predictions: number of these images, evenly spaced, whose predictions are saved before the first step and at
        every validation, for the report.
    """

    epochs: int = Field(default=1000, ge=1)
    pretrain_epochs: int = Field(default=0, ge=0)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    decay_norms_and_biases: bool = False
    architecture_learning_rate: float = Field(default=0.5, gt=0)
    architecture_optimizer: Literal["sgd", "adam"] = "sgd"
    architecture_momentum: float = Field(default=0.9, ge=0, lt=1)
    architecture_weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["poly", "cosine", "exponential"] = "poly"
    poly_power: float = Field(default=0.9, gt=0)
    exponential_decay: float = Field(default=0.99, gt=0, le=1)
    warm_up_steps: int = Field(default=0, ge=0)
    warm_up_start: float = Field(default=0.1, ge=0, le=1)
    gradient_clipping: float | None = Field(default=None, gt=0)
    latency_weight: float = Field(default=0.01, ge=0)
    ohem_threshold: float | None = Field(default=0.74, gt=0, le=1)
    ohem_min_fraction: float = Field(default=1 / 16, ge=0, le=1)
    class_weights: ClassWeighting = "none"
    precision: SearchPrecision = "auto"
    channels_last: bool = False
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int | None = Field(default=None, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_images: int | None = Field(default=None, ge=1)
    keep_predictions: int = Field(default=0, ge=0)

    def parts(self, count: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
        """All training images train the weights, none is held out."""
        return range(count), ()

    def phase(self, epoch: int) -> Literal["pretrain", "search"]:
        """The phase of an epoch, counted from 0."""
        return "pretrain" if epoch < self.pretrain_epochs else "search"


@config
class OneShotConfig:
    """One-shot search: the weights of a supernet are trained by sampled networks; the best network is selected then.

    epochs: of the training of the supernet.
    batch_size: images per step and process.
    learning_rate, momentum, weight_decay: SGD of the weights.
    schedule, poly_power, exponential_decay, warm_up_steps, warm_up_start: of the learning rate, as in the retraining.
    gradient_clipping: the largest norm of all weight gradients together; null for none.
    momentum_precision: of the superkernels' gradients and momenta, "fp32" or "bf16".
    architecture_learning_rate: Adam of what is a real number while searching, such as a dilation rate, and is trained
        with the weights. Most spaces have no such parameters.
    held_out: share of the training images that the weights never see. They judge the networks.
    distillation_weight: of the loss between the prediction of a step's first network and those of the others; 0 for
        none (in-place distillation: Yu and Huang 2019, "Universally Slimmable Networks").
    ohem_threshold, ohem_min_fraction, class_weights: cross-entropy, as in the retraining.
    workers: processes that read and augment images ahead, for each half or part; null is as in the retraining.
    validate_every: epochs between validations; the last epoch is always validated.
    validation_images: how many held-out images to score on, evenly spread; null for all.
    judge_images: how many held-out images judge a derived network; null for all.
    """

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["poly", "cosine", "exponential"] = "poly"
    poly_power: float = Field(default=0.9, gt=0)
    exponential_decay: float = Field(default=0.99, gt=0, le=1)
    warm_up_steps: int = Field(default=50, ge=0)
    warm_up_start: float = Field(default=0.1, ge=0, le=1)
    gradient_clipping: float | None = Field(default=5.0, gt=0)
    momentum_precision: Literal["fp32", "bf16"] = "fp32"
    architecture_learning_rate: float = Field(default=0.03, gt=0)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    distillation_weight: float = Field(default=0.0, ge=0)
    ohem_threshold: float | None = Field(default=0.7, gt=0, le=1)
    ohem_min_fraction: float = Field(default=1 / 16, ge=0, le=1)
    class_weights: ClassWeighting = "none"
    precision: SearchPrecision = "auto"
    channels_last: bool = False
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int | None = Field(default=None, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_images: int | None = Field(default=None, ge=1)
    judge_images: int | None = Field(default=None, ge=1)

    def parts(self, count: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
        """The training images of the weights, and those that score networks."""
        return split_parts(count, seed, self.held_out)

    @property
    def pretrain_epochs(self) -> int:
        """None: all epochs train the weights."""
        return 0

    def phase(self, epoch: int) -> Literal["search"]:
        """There is one phase."""
        return "search"


@config
class EstimatorSearchConfig(OneShotConfig):
    """One-shot search by an estimator of what each choice contributes (after Nayman et al. 2021, "HardCoRe-NAS").

    The supernet is trained by sampled discrete networks. Random ones are then judged on held-out training images. An
    additive model of their mIoU gives the best network under the latency target by an exact programme, and the last
    word is again judged.

    networks_per_step: sampled networks of one step. Of as many networks in a row as a choice has options, each has
        another one.
    largest_first: make the first network of a step the largest one. It is needed for ``distillation_weight``.
    judged_networks: how many random networks the estimator is fitted to.
    candidates: how many networks near the latency target are judged in the supernet at last; the best one is derived.
    """

    method: Literal["estimator"] = "estimator"
    networks_per_step: int = Field(default=5, ge=1)
    largest_first: bool = False
    judged_networks: int = Field(default=300, ge=50)
    candidates: int = Field(default=16, ge=1)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.distillation_weight > 0 and not (self.largest_first and self.networks_per_step > 1):
            raise ValueError("distillation_weight needs largest_first and at least two networks_per_step")
        return self
