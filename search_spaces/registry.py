"""Registry of search spaces: loads a space from a preset or a file.

A preset begins with ``space: NAME``. Other packages register spaces in the entry point group ``dnas.search_spaces``,
whose entries are subclasses of :class:`search_spaces.SearchSpace`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from dnas.config import apply_overrides
from dnas.errors import OldFormatWarning, UserError
from dnas.files import read_yaml
from dnas.latency.table import LatencyTable
from dnas.presets import preset_files, read_preset
from search_spaces.base import SearchSpace
from search_spaces.dwrseg import DWRSegSpace
from search_spaces.dwrseg_modules import DWRSegModulesSpace
from search_spaces.eseg import ESegSpace
from search_spaces.fasterseg import FasterSegSpace
from search_spaces.fasterseg.published_table import PUBLISHED_DEVICE, import_published_table
from search_spaces.fasterseg_dilated import FasterSegDilatedSpace
from search_spaces.old_formats import upgraded, upgraded_overrides
from search_spaces.regseg import RegSegSpace

ENTRY_POINTS = "dnas.search_spaces"
SPACES: Mapping[str, type[SearchSpace[Any]]] = {
    "fasterseg": FasterSegSpace,
    "regseg": RegSegSpace,
    "dwrseg": DWRSegSpace,
    "dwrseg_modules": DWRSegModulesSpace,
    "eseg": ESegSpace,
    "fasterseg_dilated": FasterSegDilatedSpace,
}


def preset_names() -> tuple[str, ...]:
    """Names of the presets that ship with dnas, sorted."""
    return tuple(_presets())


def space_names() -> tuple[str, ...]:
    """Names of all installed spaces, sorted."""
    return tuple(sorted({*SPACES, *(entry.name for entry in metadata.entry_points(group=ENTRY_POINTS))}))


def load_space(name: str, overrides: Iterable[str] = ()) -> SearchSpace[Any]:
    """The space of a preset name or YAML file, with ``KEY=VALUE`` overrides applied.

    Raises :class:`UserError` for an unknown name, listing the known ones, and for an invalid file. Keys of earlier
    versions are accepted with an :class:`OldFormatWarning`.
    """
    presets = _presets()
    if name in presets:
        values = read_preset(presets[name])
    elif name.endswith((".yaml", ".yml")) or Path(name).is_file():
        values = read_yaml(name, "search space")
    else:
        raise UserError(f"{name}: unknown search space, expected a YAML file or one of {', '.join(preset_names())}")
    values, notes = upgraded(values)
    changes, more = upgraded_overrides(overrides)
    if notes or more:
        warnings.warn(f"{name}: " + "; ".join([*notes, *more]), OldFormatWarning, stacklevel=2)
    return space_from(apply_overrides(values, changes), name)


def space_from(values: Mapping[str, Any], source: str) -> SearchSpace[Any]:
    """The space of a configuration, which an earlier version may have written; ``source`` names it in errors."""
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: given {type(values).__name__}, expected the configuration of a search space")
    values, _ = upgraded(values)
    return _space_class(values.get("space"), source).parse(values, source)


def import_table(path: Path, device_name: str | None = None) -> LatencyTable:
    """Import FasterSeg's published latency table (``.npy``).

    ``device_name``: the device it was measured on; None: that of the publication. Raises :class:`UserError` for any
    other file; pickles are not executed.
    """
    return import_published_table(path, device_name=device_name or PUBLISHED_DEVICE)


def _space_class(name: Any, source: str) -> type[SearchSpace[Any]]:
    if isinstance(name, str):
        if name in SPACES:
            return SPACES[name]
        for entry in metadata.entry_points(group=ENTRY_POINTS, name=name):
            loaded = entry.load()
            if not (isinstance(loaded, type) and issubclass(loaded, SearchSpace)):
                raise UserError(f"{source}: space: the entry point {entry.value} is not a subclass of SearchSpace")
            return loaded
    raise UserError(f"{source}: space: given {name!r}, expected one of {', '.join(space_names())}")


def _presets() -> dict[str, Traversable]:
    """Preset files by name."""
    return preset_files(*(resources.files(f"search_spaces.{space}").joinpath("presets") for space in SPACES))
