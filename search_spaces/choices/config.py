"""Configuration of spaces that are networks with choices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from dnas.choices import Kind
from dnas.config import Field, config
from dnas.search import EstimatorSearchConfig, SearchConfig
from dnas.training import RetrainConfig
from search_spaces.base import TaskConfig

PassName = Literal["smallest", "largest", "random", "sampled"]


@config
class ChoiceSearchConfig(SearchConfig):
    """The bilevel search of the logits of all choices.

    method: "gradient": the logits are trained by gradient descent. The other method is that of
        :class:`~dnas.search.EstimatorSearchConfig`.
    candidates: how many networks near the latency target are judged by the supernet's weights, on the half of the
        training images that these do not see. The best one is derived. 1: the likeliest one, unjudged.
    kinds: settings of the kinds of choices, by name; missing kinds have the defaults (dnas.choices.DEFAULT_KINDS).
    pretrain_passes, search_passes: the forward passes of one weight step. All draw a sample; "smallest", "largest" and
        "random" then replace its widths and numbers of repetitions.
    """

    method: Literal["gradient"] = "gradient"
    candidates: int = Field(default=1, ge=1)
    kinds: dict[str, Kind] = Field(default_factory=dict)
    pretrain_passes: Annotated[tuple[PassName, ...], Field(min_length=1)] = ("smallest", "largest", "random")
    search_passes: Annotated[tuple[PassName, ...], Field(min_length=1)] = ("smallest", "largest", "sampled")

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _known(cls, method: Any) -> Any:
        if method != "gradient":
            raise ValueError("expected gradient or estimator")
        return method


def _class_of(search: Any) -> str:
    """The name of the class that ``search.method`` asks for; that of the default one refuses an unknown method."""
    method = search.get("method") if isinstance(search, dict) else getattr(search, "method", None)
    return (EstimatorSearchConfig if method == "estimator" else ChoiceSearchConfig).__name__


ChoiceSearchSettings = Annotated[
    Annotated[ChoiceSearchConfig, pydantic.Tag(ChoiceSearchConfig.__name__)]
    | Annotated[EstimatorSearchConfig, pydantic.Tag(EstimatorSearchConfig.__name__)],
    pydantic.Discriminator(_class_of),
]
"""The settings of one of the two methods, by ``method``."""


@config
class ChoiceConfig:
    """A preset of a space that is a network with choices; spaces with settings of their own extend it.

    space: name of the space. task: input size and classes. latency_target_ms: target, within 5 %, for the predicted
        latency of the derived network; null: no target.
    """

    space: str
    task: TaskConfig
    latency_target_ms: float | None = Field(default=None, gt=0)
    search: ChoiceSearchSettings = Field(default_factory=ChoiceSearchConfig)
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)
