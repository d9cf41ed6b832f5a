"""Presets: named YAML files that ship in the folders of a package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dnas.files import parse_yaml

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def preset_files(*folders: Traversable) -> dict[str, Traversable]:
    """The YAML files in ``folders``, as :func:`importlib.resources.files` gives them, by sorted name without suffix."""
    files = [file for folder in folders for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file for file in sorted(files, key=lambda file: file.name)}


def read_preset(file: Traversable) -> dict[str, Any]:
    """The mapping in the file of a preset."""
    values: dict[str, Any] = parse_yaml(file.read_text(encoding="utf-8"), file.name.removesuffix(".yaml"))
    return values
