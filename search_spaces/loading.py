"""Finding a search space by preset name or file, and the presets' common form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from dnas.config import apply_overrides
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.presets import preset_files, read_preset
from search_spaces.base import SearchSpace
from search_spaces.fasterseg import FasterSegSpace
from search_spaces.regseg import RegSegSpace

SPACES: Mapping[str, Callable[[Mapping[str, Any], str], SearchSpace]] = {
    "fasterseg": FasterSegSpace.parse,
    "regseg": RegSegSpace.parse,
}


def preset_names() -> tuple[str, ...]:
    """Names of the presets that ship with dnas, sorted."""
    return tuple(preset_files(resources.files("search_spaces")))


def load_space(name: str, overrides: Iterable[str] = ()) -> SearchSpace:
    """The space of a preset name or YAML file, with ``KEY=VALUE`` overrides applied.

    Raises :class:`UserError` for an unknown name, listing the known ones, and for anything wrong in the file.
    """
    presets = preset_files(resources.files("search_spaces"))
    if name in presets:
        values = read_preset(presets[name])
    elif name.endswith((".yaml", ".yml")) or Path(name).is_file():
        values = read_yaml(name, "search space")
    else:
        raise UserError(f"{name}: unknown search space, expected a YAML file or one of {', '.join(preset_names())}")
    return space_from(apply_overrides(values, overrides), name)


def space_from(values: Mapping[str, Any], source: str) -> SearchSpace:
    """The space that a configuration describes; ``source`` names it in errors."""
    kind = values.get("space")
    if not isinstance(kind, str) or kind not in SPACES:
        raise UserError(f"{source}: space: given {kind!r}, expected one of {', '.join(SPACES)}")
    return SPACES[kind](values, source)
