"""Registry of derivers (by search space) and architecture classes (by the ``kind`` in the file).

Other packages add theirs by entry points: group ``dnas.derivers``, named after the search space, and group
``dnas.architectures``, named after the ``kind``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from derive.architecture import VERSION, Architecture
from derive.base import Derivation, DeriveOptions, Deriver
from derive.choices import ChoiceDeriver, ChoicesArchitecture, PointWiseDeriver
from derive.dilated.architecture import DilatedArchitecture
from derive.dilated.deriver import DilatedDeriver
from derive.multi_branch.architecture import MultiBranchArchitecture
from derive.multi_branch.deriver import MultiBranchDeriver
from derive.multi_branch.published_files import derive_published
from dnas.config import parse_config
from dnas.errors import UserError
from dnas.files import read_yaml
from search_spaces import SearchSpace
from search_spaces.choices import ChoiceSpace

DERIVER_ENTRY_POINTS = "dnas.derivers"
ARCHITECTURE_ENTRY_POINTS = "dnas.architectures"
DERIVERS: Mapping[str, type[Deriver[Any]]] = {
    "fasterseg": MultiBranchDeriver,
    "regseg": DilatedDeriver,
    "dwrseg": PointWiseDeriver,
    "dwrseg_modules": ChoiceDeriver,
    "eseg": ChoiceDeriver,
    "fasterseg_dilated": ChoiceDeriver,
}
ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "multi_branch": MultiBranchArchitecture,
    "dilated": DilatedArchitecture,
    "choices": ChoicesArchitecture,
}


def deriver_of(space: SearchSpace[Any]) -> Deriver[Any]:
    """The deriver of ``space``: its own, or for a network with choices the common one.

    Raises :class:`UserError` if none is installed.
    """
    name = str(space.settings.space)
    found = DERIVERS.get(name) or _entry_point(DERIVER_ENTRY_POINTS, name, Deriver)
    if found is None and isinstance(space, ChoiceSpace):
        found = ChoiceDeriver
    if found is None:
        raise UserError(
            f"{space.name}: no deriver for the search space {name}: its package has no entry point {name} in the "
            f"group {DERIVER_ENTRY_POINTS}"
        )
    return found(space)


def derive_file(path: Path, options: DeriveOptions) -> Derivation:
    """The discrete network of a file of FasterSeg's published logits."""
    return derive_published(path, options)


def load_architecture(path: str | Path) -> Architecture:
    """Read and check an architecture file; see :meth:`Architecture.load`."""
    return architecture_from(read_yaml(path, "architecture file"), str(path))


def architecture_from(values: Mapping[str, Any], source: str) -> Architecture:
    """Parse an architecture from plain containers; raises :class:`UserError`, prefixed by ``source``, for a mistake."""
    version, kind = values.get("version"), values.get("kind", "multi_branch")
    if version is None:
        raise UserError(
            f"{source}: no version: not an architecture file, or truncated; write it again with dnas derive"
        )
    if version != VERSION:
        raise UserError(f"{source}: given architecture version {version!r}, expected {VERSION}")
    found = None
    if isinstance(kind, str):
        found = ARCHITECTURES.get(kind) or _entry_point(ARCHITECTURE_ENTRY_POINTS, kind, Architecture)
    if found is None:
        known = sorted(
            {*ARCHITECTURES, *(entry.name for entry in metadata.entry_points(group=ARCHITECTURE_ENTRY_POINTS))}
        )
        raise UserError(f"{source}: kind: given {json.dumps(kind)}, expected one of {', '.join(known)}")
    architecture: Architecture = parse_config(found, values, source)
    try:
        architecture.check()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return architecture


def _entry_point(group: str, name: str, expected: type) -> Any:
    """The class that another package registered under ``name``; None if there is none."""
    for entry in metadata.entry_points(group=group, name=name):
        loaded = entry.load()
        if not (isinstance(loaded, type) and issubclass(loaded, expected)):
            raise UserError(f"entry point {name} of {group}: {entry.value} is not a subclass of {expected.__name__}")
        return loaded
    return None
