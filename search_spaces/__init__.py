"""Search spaces, one package each with its presets."""

from search_spaces.base import DerivedNetworks, SearchSpace, TaskConfig
from search_spaces.registry import import_table, load_space, preset_names, space_from, space_names

__all__ = [
    "DerivedNetworks",
    "SearchSpace",
    "TaskConfig",
    "import_table",
    "load_space",
    "preset_names",
    "space_from",
    "space_names",
]
