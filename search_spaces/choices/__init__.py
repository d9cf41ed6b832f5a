"""Base of the search spaces that are networks with choices; a space of one's own is a subclass of ChoiceSpace."""

from search_spaces.choices.config import ChoiceConfig, ChoiceSearchConfig
from search_spaces.choices.one_shot import ChoiceSampling, fair_options
from search_spaces.choices.parameters import ARCHITECTURE
from search_spaces.choices.problem import ChoiceSearch
from search_spaces.choices.space import ChoiceSpace

__all__ = [
    "ARCHITECTURE",
    "ChoiceConfig",
    "ChoiceSampling",
    "ChoiceSearch",
    "ChoiceSearchConfig",
    "ChoiceSpace",
    "fair_options",
]
