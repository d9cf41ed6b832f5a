"""Configuration of FasterSeg's search space."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from typing_extensions import Self

from dnas.config import Field, config
from dnas.search import EstimatorSearchConfig, SearchConfig
from dnas.training import RetrainConfig
from search_spaces.base import TaskConfig
from search_spaces.fasterseg.grid import Grid

Operator = Literal["skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2"]
_Factor = Annotated[float, Field(ge=0)]
_Ratio = Annotated[int, Field(ge=1, le=64)]

BATCH_UP_TO_PIXELS = 200_000


@config
class NetworkConfig:
    """The supernet; the defaults are the paper's (section 4.2).

    layers: L. scales: downsampling rates s. ratios: expansion ratios X; a connection has ratio * scale channels.
    branches: b. student_ratio, teacher_ratio: expansion ratio of stem and head.
    """

    layers: int = Field(default=16, ge=2, le=64)
    scales: Annotated[tuple[int, ...], Field(max_length=3)] = (8, 16, 32)
    operators: tuple[Operator, ...] = ("skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2")
    ratios: Annotated[tuple[_Ratio, ...], Field(min_length=1)] = (4, 6, 8, 10, 12)
    branches: int = Field(default=2, ge=1, le=3)
    student_ratio: _Ratio = 8
    teacher_ratio: _Ratio = 12

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        grid = Grid(self.layers, self.scales)
        if tuple(sorted(set(self.ratios))) != self.ratios:
            raise ValueError(f"ratios {list(self.ratios)}: expected distinct ratios in ascending order")
        if len(set(self.operators)) != len(self.operators) or not self.operators:
            raise ValueError(f"operators {list(self.operators)}: expected at least one, each once")
        if self.branches > len(grid.scales):
            raise ValueError(f"{self.branches} branches need at least as many scales, given {list(self.scales)}")
        return self

    @property
    def grid(self) -> Grid:
        """The grid of cells."""
        return Grid(self.layers, self.scales)


@config
class BranchSelectionConfig:
    """Branch selection by ACC * (LAT / T) ** w (Appendix B).

    reference_ms: T. exponent: w.
    """

    reference_ms: float = Field(default=8.3, gt=0)
    exponent: float = Field(default=-0.07, le=0)


@config
class FasterSegSearchConfig(SearchConfig):
    """The bilevel search of teacher and student; the defaults are the paper's.

    method: "gradient" takes the most likely operators. "perturbation" takes those whose removal hurts the supernet most
        (Wang et al. 2021, "Rethinking Architecture Selection in Differentiable NAS").
    candidates: how many networks near the latency target are judged in the supernet, each with its own BatchNorm
        statistics, on the half of the training images that the weights do not see. The best one is derived. 1: the
        likeliest one, unjudged.
    temperature_end: temperature at the end of the search, which is approached geometrically; null: constant.
    decoupling: the factors of the latency's gradient for alpha, beta and gamma (Eq. 3): "solved" from the table's
        sensitivities, "none", or three values w1, w2, w3.
    temperature: softmax temperature of the Gumbel-softmax.
    operator_sampling: "mixed" runs all operators of a cell, weighted by alpha (Eq. 2). "single_path" samples one
        operator per cell and pass with a straight-through Gumbel-softmax, as for the ratios, and runs only this one;
        validation then uses the most likely operators. In both cases the latency is the expectation over all operators.
    recompute: activation checkpointing of stems, cells and heads: slower, less memory.
    pretrain_passes, search_passes: the forward passes of one weight step as ARCHITECTURE.WIDTH; the width is smallest,
        largest, random, likeliest or sampled. (Appendix F: the smallest, the largest and two random widths or one
        sampled width. In pretraining, the teacher's pass is that at the largest width.)
    batch_equal_passes: run passes of equal widths, such as teacher.largest and student.largest, as one batch, in which
        each pass is normalised with its own statistics: faster for small maps, more memory. null: if the crops of a
        batch have at most 200 000 pixels in total.
    """

    method: Literal["gradient", "perturbation"] = "gradient"
    candidates: int = Field(default=1, ge=1)
    decoupling: Literal["solved", "none"] | tuple[_Factor, _Factor, _Factor] = "solved"
    temperature: float = Field(default=1.0, gt=0)
    temperature_end: float | None = Field(default=None, gt=0)
    operator_sampling: Literal["mixed", "single_path"] = "mixed"
    recompute: bool = False
    pretrain_passes: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "student.smallest",
        "teacher.largest",
        "student.random",
        "student.random",
    )
    search_passes: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "student.smallest",
        "teacher.largest",
        "student.largest",
        "student.sampled",
    )
    batch_equal_passes: bool | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "perturbation" and self.operator_sampling != "mixed":
            raise ValueError(
                "method perturbation removes operators from a mixture, so it needs operator_sampling mixed"
            )
        if self.capture and self.recompute:
            raise ValueError("capture keeps the activations, recompute does not: set one of them to false")
        return self

    @property
    def keep_gradients(self) -> bool:
        """Whether gradient memory is kept between steps; not with single paths, where most weights get no gradient."""
        return self.operator_sampling == "mixed"

    @property
    def batches_equal_passes(self) -> bool:
        """``batch_equal_passes``, with null resolved."""
        if self.batch_equal_passes is not None:
            return self.batch_equal_passes
        crop = self.augmentation.crop
        return crop is not None and self.batch_size * crop[0] * crop[1] <= BATCH_UP_TO_PIXELS


@config
class FasterSegPreset:
    """What presets of this space have in common.

    task: input size and classes.
    latency_target_ms: target, within 5 %, for the predicted latency of the derived student; null: no target, but the
        paper's fixed lambda (``search.latency_weight``).
    """

    space: Literal["fasterseg"]
    task: TaskConfig
    latency_target_ms: float | None = Field(default=None, gt=0)
    branch_selection: BranchSelectionConfig = Field(default_factory=BranchSelectionConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)


@config
class FasterSegConfig(FasterSegPreset):
    """A preset with the paper's bilevel search."""

    search: FasterSegSearchConfig = Field(default_factory=FasterSegSearchConfig)


@config
class FasterSegOneShotConfig(FasterSegPreset):
    """A preset with the one-shot search (``search.method: estimator``)."""

    search: EstimatorSearchConfig = Field(default_factory=EstimatorSearchConfig)
