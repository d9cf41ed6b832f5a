"""The typed configuration of a retraining."""

from __future__ import annotations

from typing import Annotated, Literal

from dnas.config import Field, config
from dnas.data import AugmentationConfig
from dnas.training.class_weights import ClassWeighting
from dnas.training.device import Precision
from dnas.training.losses import Direction


@config
class RetrainConfig:
    """Optimiser, OHEM cross-entropy and distillation; the defaults are RegSeg's where FasterSeg is silent.

    batch_size: images per step and process.
    schedule: "poly" and "cosine" fall to 0 over all steps, "exponential" by ``exponential_decay`` per epoch; in the
        first ``warm_up_steps`` steps it is multiplied by a factor that rises linearly from ``warm_up_start`` to 1.
    inherit: begin from the weights of the supernet, if the network was derived from a search whose run folder exists.
    optimizer: "sgd" with ``momentum``, or "adamw".
    decay_norms_and_biases: whether ``weight_decay`` acts on normalisations and biases too.
    ema_decay: of the exponential moving average of the weights, which is then validated and kept; null for none.
        It is updated every ``ema_every`` steps; its first updates decay faster, by (1 + n) / (10 + n).
    gradient_clipping: the largest norm of all gradients, taken as one vector; null for none.
    ohem_threshold: a pixel is hard if the probability of its true class is below it; null for plain cross-entropy.
    ohem_min_fraction: the share of the valid pixels that is averaged if fewer are hard.
    class_weights: of the cross-entropy: "none"; "enet" or "median_frequency", from the training labels; or one for each
        class.
    auxiliary_weights: weights of the losses of auxiliary heads, in the order of the heads.
    distillation_weight, distillation_direction, distillation_temperature: used if there is a teacher; the direction
        is that of the Kullback-Leibler divergence, "student_teacher" in FasterSeg Eq. 4.
    precision: "auto" is bf16 (fp16 on older GPUs) on CUDA and fp32 on the CPU. In "fp32" a GPU computes convolutions in
        TF32, as PyTorch does by default.
    channels_last: memory format of images and weights; null: channels last on CUDA, where convolutions in half
        precision need it, and contiguous elsewhere.
    workers: processes that read and augment images ahead.
    validate_every: epochs between validations; the last epoch is always validated.
    """

    epochs: int = Field(default=600, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    schedule: Literal["poly", "cosine", "exponential"] = "poly"
    poly_power: float = Field(default=0.9, gt=0)
    exponential_decay: float = Field(default=0.99, gt=0, le=1)
    warm_up_steps: int = Field(default=0, ge=0)
    warm_up_start: float = Field(default=0.1, ge=0, le=1)
    inherit: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_norms_and_biases: bool = False
    gradient_clipping: float | None = Field(default=None, gt=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    ema_every: int = Field(default=1, ge=1)
    ohem_threshold: float | None = Field(default=0.7, gt=0, le=1)
    ohem_min_fraction: float = Field(default=1 / 16, ge=0, le=1)
    class_weights: ClassWeighting = "none"
    auxiliary_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    distillation_weight: float = Field(default=1.0, ge=0)
    distillation_direction: Direction = "student_teacher"
    distillation_temperature: float = Field(default=1.0, gt=0)
    precision: Precision = "auto"
    channels_last: bool | None = None
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int = Field(default=0, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_batch_size: int = Field(default=1, ge=1)
