"""One discrete network of the space, by its choices in the supernet, and random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from dnas.choices import fair_draws
from search_spaces.fasterseg.grid import Grid
from search_spaces.fasterseg.plan import NetworkPlan

Place = tuple[int, int]
"""(level, layer) of a cell, or of the cell that a connection leads into."""


@dataclass(frozen=True)
class Selection:
    """One choice of everything that a derived network is made of.

    ``entered``: by final scale, the layers at which its branch enters the levels from 1. ``operators``: of every cell.
    ``ratios``: expansion ratio of every searched connection, by the cell that it leads into. Choices of cells that no
    branch visits may be missing.
    """

    entered: Mapping[int, tuple[int, ...]]
    operators: Mapping[Place, str]
    ratios: Mapping[Place, int]

    @property
    def branches(self) -> tuple[int, ...]:
        """The final scales."""
        return tuple(self.entered)

    def paths(self, grid: Grid) -> dict[int, list[int]]:
        """By final scale, the level of its cell in every layer."""
        return {scale: levels_of(entered, grid) for scale, entered in self.entered.items()}

    def places(self, grid: Grid) -> set[Place]:
        """The cells of all branches."""
        return {(level, layer) for path in self.paths(grid).values() for layer, level in enumerate(path)}


def levels_of(entered: Sequence[int], grid: Grid) -> list[int]:
    """The level of every layer's cell on a branch that enters the levels from 1 at the layers ``entered``."""
    return [sum(at <= layer for at in entered) for layer in range(grid.layers)]


def branch_paths(grid: Grid, level: int) -> list[tuple[int, ...]]:
    """All paths to a level, as the layers at which they enter the levels from 1."""
    chosen = itertools.combinations(range(1, grid.layers), level)
    return [layers for layers in chosen if all(layer > number for number, layer in enumerate(layers))]


def joint_paths(grid: Grid, branches: Sequence[int]) -> list[dict[int, tuple[int, ...]]]:
    """All paths of branches that end at the scales ``branches``, such that every cell has one predecessor.

    Two branches in one cell have come there the same way: the branch to 1/32 leaves the first level together with
    that to 1/16, or has left the second level by the time at which the other enters it.
    """
    each = [branch_paths(grid, grid.level_of(scale)) for scale in branches]
    found = [dict(zip(branches, paths, strict=True)) for paths in itertools.product(*each)]
    return [entered for entered in found if _one_predecessor(entered, grid)]


def _one_predecessor(entered: Mapping[int, tuple[int, ...]], grid: Grid) -> bool:
    came_from: dict[Place, int] = {}
    for layers in entered.values():
        path = levels_of(layers, grid)
        for layer in range(1, grid.layers):
            if came_from.setdefault((path[layer], layer), path[layer - 1]) != path[layer - 1]:
                return False
    return True


class FairSampler:
    """Random selections in which every choice of a cell occurs equally often.

    Over each ``len(operators)`` selections in a row every operator of every cell is drawn once, and likewise every
    ratio of every connection (strict fairness; Chu et al. 2021, "FairNAS"). Combinations of branches take turns. All
    joint paths of a combination are equally likely.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        self._plan = plan
        self._paths = {branches: joint_paths(plan.grid, branches) for branches in plan.combinations()}

    def draw(self, count: int, generator: torch.Generator) -> list[Selection]:
        """``count`` selections."""
        plan = self._plan
        combinations = self._permuted(plan.combinations(), count, generator)
        cells = list(plan.grid.cells())
        operators = {place: self._permuted(plan.operators, count, generator) for place in cells}
        ratios = {place: self._permuted(plan.ratios, count, generator) for place in cells if place[1]}
        found = []
        for _ in range(count):
            paths = self._paths[next(combinations)]
            entered = paths[int(torch.randint(len(paths), (), generator=generator))]
            found.append(
                Selection(
                    entered,
                    {place: next(names) for place, names in operators.items()},
                    {place: next(values) for place, values in ratios.items()},
                )
            )
        return found

    @staticmethod
    def _permuted(values: Sequence, count: int, generator: torch.Generator) -> Iterator:  # type: ignore[type-arg]
        return iter([values[index] for index in fair_draws(len(values), count, generator)])
