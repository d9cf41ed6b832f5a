"""Choices in networks: what can be chosen, samples of it, and the plain network of one option each."""

from dnas.choices.choice import (
    Choice,
    InputChoice,
    OperatorChoice,
    RateChoice,
    RepeatChoice,
    WidthChoice,
    named_choices,
)
from dnas.choices.kinds import DEFAULT_KINDS, Kind, Sampler, kind_of
from dnas.choices.layers import (
    ChoiceBatchNorm2d,
    ChoiceConv2d,
    ChoiceConvNorm,
    ChoiceGroupConv2d,
    ChoiceGroupConvNorm,
    ChoiceLayer,
    ChoiceSkip,
    Width,
    widest,
)
from dnas.choices.network import ChoiceNetwork
from dnas.choices.plain import HardRun, hard_run, plain_network
from dnas.choices.running import Lazy
from dnas.choices.sample import Decision, Sample
from dnas.choices.sampling import fair_draws, gumbel_choices, gumbel_draws, mean_entropy, read_columns

__all__ = [
    "DEFAULT_KINDS",
    "Choice",
    "ChoiceBatchNorm2d",
    "ChoiceConv2d",
    "ChoiceConvNorm",
    "ChoiceGroupConv2d",
    "ChoiceGroupConvNorm",
    "ChoiceLayer",
    "ChoiceNetwork",
    "ChoiceSkip",
    "Decision",
    "HardRun",
    "InputChoice",
    "Kind",
    "Lazy",
    "OperatorChoice",
    "RateChoice",
    "RepeatChoice",
    "Sample",
    "Sampler",
    "Width",
    "WidthChoice",
    "fair_draws",
    "gumbel_choices",
    "gumbel_draws",
    "hard_run",
    "kind_of",
    "mean_entropy",
    "named_choices",
    "plain_network",
    "read_columns",
    "widest",
]
