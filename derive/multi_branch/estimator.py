"""An additive model of what each operator, width and downsampling position contributes to a network's mIoU.

Its contributions are returned as logits of an :class:`~search_spaces.fasterseg.ArchitectureParameters`, so that the
network with the largest sum is the most likely one, and everything that derives networks from logits applies: latency
targets by exact dynamic programming, margins and the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from derive.estimator import Floats, RidgeModel, fit_ridge
from search_spaces.fasterseg import Grid, NetworkPlan
from search_spaces.fasterseg.selection import Place, Selection


class ContributionModel:
    """A linear model with a contribution of every choice, by ridge regression.

    The contribution of an operator in a cell is the sum of one term for all cells, one for the cells of its level and
    one for the cell; likewise that of an expansion ratio. So a choice that was rarely seen in one cell is judged by how
    it did in others. Each branch adds a contribution of the layer at which it enters each level, and the combination of
    branches one of its own. A cell that two branches share counts once.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        self.plan, self._index = plan, dict[tuple[object, ...], int]()
        grid = plan.grid
        for place in grid.cells():
            for name in plan.operators:
                self._register(*_terms("operator", place, name))
            if place[1]:
                for ratio in plan.ratios:
                    self._register(*_terms("ratio", place, ratio))
            if place[0]:
                self._register(("entry", place))
        for combination in plan.combinations():
            self._register(("branches", combination))

    def _register(self, *terms: tuple[object, ...]) -> None:
        for term in terms:
            self._index.setdefault(term, len(self._index))

    def features(self, selection: Selection) -> Floats:
        """How often every term occurs in a selection; (terms,)."""
        row = np.zeros(len(self._index))
        for place in selection.places(self.plan.grid):
            terms = _terms("operator", place, selection.operators[place])
            if place[1]:
                terms += _terms("ratio", place, selection.ratios[place])
            for term in terms:
                row[self._index[term]] += 1
        for entered in selection.entered.values():
            for level, layer in enumerate(entered, start=1):
                row[self._index["entry", (level, layer)]] += 1
        row[self._index["branches", selection.branches]] = 1
        return row

    def fit(self, selections: Sequence[Selection], scores: Sequence[float]) -> Contributions:
        """The contributions that explain ``scores``; at least three selections."""
        features = np.stack([self.features(one) for one in selections])
        return Contributions(self, fit_ridge(features, np.asarray(scores, dtype=np.float64)))

    def contribution(self, weights: Floats, kind: str, place: Place, choice: object) -> float:
        """The contribution of one choice."""
        return float(sum(weights[self._index[term]] for term in _terms(kind, place, choice)))

    def columns(self, kind: str, place: Place, choices: Sequence[object]) -> Floats:
        """The terms of each choice of a cell, relative to their mean; (choices, terms)."""
        rows = np.zeros((len(choices), len(self._index)))
        for row, choice in zip(rows, choices, strict=True):
            row[[self._index[term] for term in _terms(kind, place, choice)]] = 1
        centred: Floats = rows - rows.mean(axis=0)
        return centred

    def entry(self, weights: Floats, place: Place) -> float:
        """The contribution of a branch that enters a level at a cell."""
        return float(weights[self._index["entry", place]])


@dataclass(frozen=True)
class Contributions:
    """A fitted model. Contributions are in mIoU, as fractions."""

    model: ContributionModel
    ridge: RidgeModel

    def predict(self, selection: Selection) -> float:
        """The mIoU in the supernet that the model expects of a selection."""
        return self.ridge.predict(self.model.features(selection))

    def uncertainty(self) -> float:
        """The root mean square of the standard error of a choice's contribution, relative to the others of its cell."""
        plan, variances = self.model.plan, list[float]()
        for place in plan.grid.cells():
            kinds: list[tuple[str, Sequence[object]]] = [("operator", plan.operators)]
            kinds += [("ratio", plan.ratios)] if place[1] else []
            for kind, choices in kinds:
                rows = self.model.columns(kind, place, choices)
                variances += self.ridge.variances(rows).tolist()
        return math.sqrt(max(sum(variances) / len(variances), 1e-24))

    def logits(self, *, ratios: bool) -> dict[str, Tensor]:
        """The contributions as logits, in units of :meth:`uncertainty`; without ``ratios`` there is no gamma.

        Probabilities near 1 mean that the choice is decided, equal ones that it is not.
        """
        plan, grid, unit = self.model.plan, self.model.plan.grid, self.uncertainty()
        weights = self.ridge.weights

        def rows(kind: str, level: int, first: int, choices: Sequence[object]) -> Tensor:
            table = [
                [self.model.contribution(weights, kind, (level, layer), choice) / unit for choice in choices]
                for layer in range(first, grid.layers)
            ]
            return torch.tensor(table)

        found = {}
        for level, scale in enumerate(grid.scales):
            found[f"alpha_{scale}"] = rows("operator", level, level, plan.operators)
            if ratios:
                found[f"gamma_{scale}"] = rows("ratio", level, max(1, level), plan.ratios)
            if level:
                entries = [self.model.entry(weights, (level, layer)) / unit for layer in range(level, grid.layers)]
                found[f"beta_{scale}"] = torch.tensor(beta_logits(entries, grid, level)).reshape(-1, 2)
        return {name: table for name, table in found.items() if table.numel()}


def beta_logits(entries: Sequence[float], grid: Grid, level: int) -> list[list[float]]:
    """Logits of beta by which the paths to a level are scored like ``entries``, up to a constant.

    A branch that enters the level at a cell has the score log(beta_0) of that cell, at the level's first cell the sum
    of log(beta_1) over all others (:func:`derive.multi_branch.decode.downsampling_layers`). The constant is that for
    which both are probabilities.
    """
    first, others = entries[0], np.asarray(entries[1:])
    if not len(others):
        return []
    below = others - others.max()

    def mismatch(log_gap: float) -> float:
        # By gap the largest log(beta_0) is below 0. The mismatch rises with it.
        gap = math.exp(log_gap)
        return float(np.log(-np.expm1(below - gap)).sum() - (first - others.max() - gap))

    low, high = -700.0, 1.0
    while mismatch(high) < 0:
        high += 1
    gap = math.exp(scipy.optimize.brentq(mismatch, low, high, xtol=1e-13) if mismatch(low) < 0 else low)
    return [[float(log - math.log(-math.expm1(log))), 0.0] for log in below - gap]


def _terms(kind: str, place: Place, choice: object) -> list[tuple[object, ...]]:
    """The terms whose sum is the contribution of a choice."""
    return [(kind, choice), (kind, place[0], choice), (kind, place, choice)]
