"""Search spaces: one module each, with presets beside it."""

from search_spaces.base import SearchSpace
from search_spaces.fasterseg import FasterSegConfig, FasterSegSpace
from search_spaces.loading import load_space, preset_names, space_from
from search_spaces.regseg import RegSegConfig, RegSegSpace

__all__ = [
    "FasterSegConfig",
    "FasterSegSpace",
    "RegSegConfig",
    "RegSegSpace",
    "SearchSpace",
    "load_space",
    "preset_names",
    "space_from",
]
