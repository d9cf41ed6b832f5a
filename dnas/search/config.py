"""How an architecture is searched: the typed configuration."""

from __future__ import annotations

from typing import Literal

from dnas.config import Field, config
from dnas.data import AugmentationConfig

SearchPrecision = Literal["auto", "fp32", "bf16"]
"""Not fp16: losses of many passes over shared weights would need a scaler of gradients each."""


@config
class SearchConfig:
    """Two-level search: weights on one half of the training images, architecture parameters on the other.

    The defaults are FasterSeg's (section 4.2, Appendices C, F and H).

    pretrain_epochs: epochs in which only the weights are trained. search_epochs: the epochs after those.
    batch_size: images a pass and process.
    learning_rate, momentum, weight_decay: SGD of the weights; ``learning_rate_decay`` is the factor an epoch.
    architecture_learning_rate, architecture_weight_decay: Adam of the architecture parameters.
    gradient_clipping: the largest norm of all weight gradients together; null for none, which saves the memory of the
        superkernels' gradients: they are then accumulated in the momenta.
    momentum_precision: of the superkernels' gradients and momenta, "fp32" or "bf16", which halves their memory. (With
        precision bf16 it is faster, too.)
    latency_weight: lambda in Eq. 8, per ms; with a latency target, what its controller begins with.
    ohem_threshold, ohem_min_fraction: of the cross-entropy, as in the retraining.
    validate_every: epochs between validations; the last epoch is always validated.
    validation_images: how many images of the validation split to use, evenly spread; null for all.
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
    latency_weight: float = Field(default=0.01, ge=0)
    ohem_threshold: float | None = Field(default=0.7, gt=0, le=1)
    ohem_min_fraction: float = Field(default=1 / 16, ge=0, le=1)
    precision: SearchPrecision = "auto"
    channels_last: bool = False
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int = Field(default=0, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_images: int | None = Field(default=None, ge=1)

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.pretrain_epochs + self.search_epochs

    @property
    def keep_gradients(self) -> bool:
        """Whether the memory of superkernels' gradients is kept from one step to the next."""
        return True

    def phase(self, epoch: int) -> Literal["pretrain", "search"]:
        """The phase of an epoch, counted from 0 over both."""
        return "pretrain" if epoch < self.pretrain_epochs else "search"


@config
class JointSearchConfig:
    """One-level search: weights and architecture parameters together, on all training images.

    The defaults are RegSeg's (v3, sections 3.4 and 4.2); it does not tell how the rates were optimised.

    epochs: of the whole search; in the first ``pretrain_epochs`` only the weights are trained.
    batch_size: images a step and process.
    learning_rate, momentum, weight_decay, decay_norms_and_biases: SGD of the weights.
    architecture_learning_rate, architecture_optimizer, architecture_momentum, architecture_weight_decay: of the
        architecture parameters; the momentum is that of "sgd".
    schedule, poly_power, exponential_decay, warm_up_steps, warm_up_start: of both learning rates, as in the retraining.
    gradient_clipping: the largest norm of all weight gradients together; null for none.
    latency_weight: loss per ms of the architecture's latency, where the search has a table.
    ohem_threshold, ohem_min_fraction: of the cross-entropy, as in the retraining. (A loss of 0.3 is a probability of
        0.74.)
    validate_every: epochs between validations; the last epoch is always validated.
    validation_images: how many images of the validation split to use, evenly spread; null for all.
    keep_predictions: of how many of those, evenly spread too, the run folder keeps the predictions, before the first
        step and at every validation, so that the report can show what the search did to them.
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
    precision: SearchPrecision = "auto"
    channels_last: bool = False
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int = Field(default=0, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_images: int | None = Field(default=None, ge=1)
    keep_predictions: int = Field(default=0, ge=0)

    def phase(self, epoch: int) -> Literal["pretrain", "search"]:
        """The phase of an epoch, counted from 0."""
        return "pretrain" if epoch < self.pretrain_epochs else "search"
