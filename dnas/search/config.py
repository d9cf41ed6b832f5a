"""How an architecture is searched: the typed configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from dnas.config import Field, config
from dnas.data import AugmentationConfig
from dnas.training.device import Precision

_Factor = Annotated[float, Field(ge=0)]


@config
class SearchConfig:
    """Two-level search: weights on one half of the training images, architecture parameters on the other.

    The defaults are FasterSeg's (section 4.2, Appendices C, F and H).

    pretrain_epochs: epochs in which only the weights are trained. search_epochs: the epochs after those.
    batch_size: images a pass and process.
    learning_rate, momentum, weight_decay: SGD of the weights; ``learning_rate_decay`` is the factor an epoch.
    architecture_learning_rate, architecture_weight_decay: Adam of the architecture parameters.
    gradient_clipping: the largest norm of all weight gradients together; null for none.
    latency_weight: lambda in Eq. 8, per ms.
    decoupling: how the latency's gradient is shared between alpha, beta and gamma (Eq. 3): "solved" from the table's
        sensitivities, "none", or the three factors w1, w2, w3.
    temperature: of the Gumbel-softmax.
    pretrain_passes, search_passes: the passes of one weight step as ARCHITECTURE.WIDTH, the width being smallest,
        largest, random, likeliest or sampled. (Appendix F wants the smallest, the largest and two random or one
        sampled width; while pretraining, the teacher's pass is the one at the largest.)
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
    latency_weight: float = Field(default=0.01, ge=0)
    decoupling: Literal["solved", "none"] | tuple[_Factor, _Factor, _Factor] = "solved"
    temperature: float = Field(default=1.0, gt=0)
    pretrain_passes: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "teacher.largest",
        "student.smallest",
        "student.random",
        "student.random",
    )
    search_passes: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "teacher.largest",
        "student.smallest",
        "student.largest",
        "student.sampled",
    )
    ohem_threshold: float | None = Field(default=0.7, gt=0, le=1)
    ohem_min_fraction: float = Field(default=1 / 16, ge=0, le=1)
    precision: Precision = "auto"
    channels_last: bool = False
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    workers: int = Field(default=0, ge=0)
    validate_every: int = Field(default=1, ge=1)
    validation_images: int | None = Field(default=None, ge=1)

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.pretrain_epochs + self.search_epochs

    def phase(self, epoch: int) -> Literal["pretrain", "search"]:
        """The phase of an epoch, counted from 0 over both."""
        return "pretrain" if epoch < self.pretrain_epochs else "search"
