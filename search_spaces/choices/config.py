"""Configuration of spaces that are networks with choices."""

from __future__ import annotations

from typing import Annotated, Literal

from dnas.choices import Kind
from dnas.config import Field, config
from dnas.search import SearchConfig
from dnas.training import RetrainConfig
from search_spaces.base import TaskConfig

PassName = Literal["smallest", "largest", "random", "sampled"]


@config
class ChoiceSearchConfig(SearchConfig):
    """The bilevel search of the logits of all choices.

    kinds: settings of the kinds of choices, by name; missing kinds have the defaults (dnas.choices.DEFAULT_KINDS).
    pretrain_passes, search_passes: the forward passes of one weight step. All draw a sample; "smallest", "largest" and
        "random" then replace its widths and numbers of repetitions.
    """

    kinds: dict[str, Kind] = Field(default_factory=dict)
    pretrain_passes: Annotated[tuple[PassName, ...], Field(min_length=1)] = ("smallest", "largest", "random")
    search_passes: Annotated[tuple[PassName, ...], Field(min_length=1)] = ("smallest", "largest", "sampled")


@config
class ChoiceConfig:
    """A preset of a space that is a network with choices; spaces with settings of their own extend it.

    space: name of the space. task: input size and classes. latency_target_ms: target, within 5 %, for the predicted
        latency of the derived network; null: no target.
    """

    space: str
    task: TaskConfig
    latency_target_ms: float | None = Field(default=None, gt=0)
    search: ChoiceSearchConfig = Field(default_factory=ChoiceSearchConfig)
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)
