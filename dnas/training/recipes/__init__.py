"""The papers' training recipes: one YAML file for a paper and a dataset."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib import resources
from typing import TYPE_CHECKING

from dnas.config import Field, config, parse_config
from dnas.errors import UserError
from dnas.presets import preset_files, read_preset
from dnas.training.config import RetrainConfig

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


_SAME_IMAGES = {"camvid701": "camvid", "camvid701_unmerged": "camvid", "mapillary_v2": "mapillary"}
"""Other names under which the images of a dataset are read, with other files or labels."""


@config
class Recipe:
    """How a paper trains its networks on a dataset.

    paper: paper and section.
    networks: names of networks, with wildcards.
    data: the dataset, as in :class:`~dnas.data.DataConfig`.
    by_itself: whether a training of such a network on such data takes it without being asked.
    begins_with: the initial weights of the paper, for the user; empty: random ones.
    left_open: what the paper does not say and how it is settled here; empty: nothing.
    retrain: the settings.
    """

    paper: str
    networks: tuple[str, ...]
    data: str
    by_itself: bool = True
    begins_with: str = ""
    left_open: str = ""
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)


def recipe_names() -> tuple[str, ...]:
    """Names of all recipes, sorted."""
    return tuple(_files())


def load_recipe(name: str) -> Recipe:
    """The recipe ``name``; :class:`UserError` for an unknown name, listing the known ones."""
    files = _files()
    if name not in files:
        raise UserError(f"unknown recipe {name!r}; known recipes: {', '.join(files)}")
    return parse_config(Recipe, read_preset(files[name]), name)


def recipe_for(network: str, data: str) -> str | None:
    """The name of the recipe that a training of ``network`` on the dataset ``data`` takes by itself, if any."""
    images = _SAME_IMAGES.get(data, data)
    for name in recipe_names():
        recipe = load_recipe(name)
        if recipe.by_itself and recipe.data == images and any(fnmatch(network, known) for known in recipe.networks):
            return name
    return None


def _files() -> dict[str, Traversable]:
    return preset_files(resources.files("dnas.training.recipes"))
