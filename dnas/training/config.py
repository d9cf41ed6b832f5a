"""The typed configuration of a retraining."""

from __future__ import annotations

from typing import Annotated, Literal

from dnas.config import Field, config
from dnas.data import AugmentationConfig, SamplingConfig
from dnas.training.boundary_losses import BoundaryLoss
from dnas.training.class_weights import ClassWeighting
from dnas.training.device import Precision
from dnas.training.losses import Direction
from dnas.training.region_losses import RegionLoss


@config
class RetrainConfig:
    """Optimiser, losses, sampling and augmentation of a training.

    The defaults are no paper's recipe: epochs and distillation are FasterSeg's, learning rate and schedule RegSeg's,
    the hard pixels those of FasterSeg's published code. The papers' recipes are in :mod:`dnas.training.recipes`.

    trained_on: the images that are trained on; "trainval" adds those of the split val, "train+pseudo" as many with
        labels that a network predicted.
    validated_on: the split that is validated and chooses the best weights.
    batch_size: images per forward pass and process.
    accumulate: batches whose gradients are averaged into one step of the optimiser; an epoch's last step may have
        fewer. Schedules and the moving average count the steps of the optimiser.
    sampling: which images an epoch has; see :class:`~dnas.data.SamplingConfig`.
    schedule: "poly" and "cosine" fall to 0 over all steps, "exponential" by ``exponential_decay`` per epoch; in the
        first ``warm_up_steps`` steps it is multiplied by a factor that rises linearly from ``warm_up_start`` to 1.
    inherit: begin from the weights of the supernet, if the network was derived from a search whose run folder exists.
    optimizer: "sgd" with ``momentum``, or "adamw".
    decay_norms_and_biases: whether ``weight_decay`` acts on normalisations and biases too.
    freeze_norms: BatchNorms keep their statistics, scales and shifts; for small batches from pretrained weights.
    ema_decay: of the exponential moving average of the weights, which is then validated and kept; null for none.
        It is updated every ``ema_every`` steps. With ``ema_warm_up`` its first updates decay faster, by
        (1 + n) / (10 + n).
    gradient_clipping: the largest norm of all gradients, taken as one vector; null for none.
    ohem_threshold: a pixel is hard if the probability of its true class is below it; null for plain cross-entropy.
    ohem_loss: the same rule by loss: a pixel is hard if its loss exceeds it, whatever ``ohem_threshold`` is; null for
        the rule by probability.
    ohem_min_fraction: the share of the valid pixels that is averaged if fewer are hard.
    class_weights: of the cross-entropy: "none"; "enet" or "median_frequency", from the training labels; or one for each
        class.
    label_smoothing: share of the target that is spread evenly over all classes.
    region_loss: added with the weight ``region_weight``: "dice" or "lovasz", which small classes gain from, or "none".
    auxiliary_weights: weights of the losses of auxiliary heads, in the order of the heads.
    boundary_loss: of auxiliary heads that predict boundaries; "balanced" is PIDNet's, "detail" is STDC's.
    distillation_weight, distillation_direction, distillation_temperature: used if there is a teacher; the direction
        is that of the Kullback-Leibler divergence, "student_teacher" in FasterSeg Eq. 4.
    precision: "auto" is bf16 (fp16 on older GPUs) on CUDA and fp32 on the CPU. In "fp32" a GPU computes convolutions in
        TF32, as PyTorch does by default.
    channels_last: memory format of images and weights; null: channels last on CUDA, where convolutions in half
        precision need it, and contiguous elsewhere.
    workers: processes that read and augment images ahead; they change no bit. Null is a number that suits cores, device
        and images: on a GPU up to 16 of the cores, 0 for small images and where the CPU trains with few cores.
    validate_every: epochs between validations; the last epoch is always validated.
    """

    epochs: int = Field(default=600, ge=1)
    trained_on: Literal["train", "trainval", "train+pseudo"] = "train"
    validated_on: Literal["val", "test"] = "val"
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
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
    freeze_norms: bool = False
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    ema_every: int = Field(default=1, ge=1)
    ema_warm_up: bool = True
    ohem_threshold: float | None = Field(default=0.7, gt=0, le=1)
    ohem_loss: float | None = Field(default=None, ge=0)
    ohem_min_fraction: float = Field(default=1 / 16, ge=0, le=1)
    class_weights: ClassWeighting = "none"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    region_loss: RegionLoss = "none"
    region_weight: float = Field(default=1.0, ge=0)
    auxiliary_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    boundary_loss: BoundaryLoss = "balanced"
    distillation_weight: float = Field(default=1.0, ge=0)
    distillation_direction: Direction = "student_teacher"
    distillation_temperature: float = Field(default=1.0, gt=0)
    precision: Precision = "auto"
    channels_last: bool | None = None
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int | None = Field(default=None, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_batch_size: int = Field(default=1, ge=1)
