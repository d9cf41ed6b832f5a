"""Finding the settings of a training: a paper's recipe, those of a search space, or the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.config import to_mapping
from dnas.errors import UserError
from dnas.training import RetrainConfig
from dnas.training.recipes import load_recipe, recipe_for, recipe_names
from search_spaces import load_space, preset_names


@dataclass(frozen=True)
class FoundRecipe:
    """Settings of a training, and lines that tell the user where they come from."""

    settings: dict[str, Any]
    notes: tuple[str, ...]


def find_recipe(
    reference: str | None, *, network: str | None = None, data: str = "", space: str | None = None
) -> FoundRecipe:
    """The settings that ``reference`` names; without it those for the ``network`` (a name) or the searched ``space``.

    ``reference``: a paper's recipe, or a search space (preset or YAML file), whose settings of the retraining are
    taken. A network by name takes the recipe of its paper for the dataset ``data``, if there is one. Raises
    :class:`UserError` for an unknown reference, listing the known ones.
    """
    if reference is not None:
        if reference in recipe_names():
            return _of_paper(reference)
        if reference in preset_names() or reference.endswith((".yaml", ".yml")) or Path(reference).is_file():
            return FoundRecipe(to_mapping(load_space(reference).retrain), ())
        raise UserError(
            f"recipe {reference!r}: expected a YAML file of a search space, one of the recipes "
            f"{', '.join(recipe_names())}, or one of the search spaces {', '.join(preset_names())}"
        )
    fitting = None if network is None else recipe_for(network, data)
    if fitting is not None:
        return _of_paper(fitting)
    if space and (space in preset_names() or Path(space).is_file()):
        return FoundRecipe(to_mapping(load_space(space).retrain), ())
    note = "retrain: default training settings; choose others with --recipe NAME (--recipe list) or --set KEY=VALUE"
    return FoundRecipe(to_mapping(RetrainConfig()), (note,))


def recipe_lines() -> list[str]:
    """One line for each recipe: name, networks, dataset and paper."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    width = max(map(len, recipes))
    return [
        f"{name:<{width}}  {', '.join(recipe.networks)} on {recipe.data}: {recipe.paper}"
        for name, recipe in recipes.items()
    ]


def _of_paper(name: str) -> FoundRecipe:
    recipe = load_recipe(name)
    notes = [f"recipe {name}: {recipe.paper}"]
    if recipe.begins_with:
        notes.append(f"  the paper begins with {recipe.begins_with}")
    if recipe.left_open:
        notes.append(f"  not in the paper: {recipe.left_open}")
    return FoundRecipe(to_mapping(recipe.retrain), tuple(notes))
