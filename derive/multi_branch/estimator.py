"""An additive model of what each operator, width and downsampling position contributes to a network's mIoU.

It is fitted to random networks that the supernet has judged, after HardCoRe-NAS (Nayman et al. 2021), which estimates
accuracies by such a model and optimises it under a latency limit. Its contributions are returned as logits of an
:class:`~search_spaces.fasterseg.ArchitectureParameters`, so that the network with the largest sum is the most likely
one, and everything that derives networks from logits applies: latency targets by exact dynamic programming, margins
and the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.fasterseg import Grid, NetworkPlan
from search_spaces.fasterseg.selection import Place, Selection

Floats = NDArray[np.float64]
_PENALTIES = np.logspace(-3, 4, 57)
"""Ridge penalties to select from, in units of the variance of one contribution."""


@dataclass(frozen=True)
class Fit:
    """How well the model predicts networks that it was not fitted to (leave-one-out).

    ``tau``, ``rho``: Kendall's and Spearman's rank correlation of predicted contributions and judged mIoU. ``error``:
    standard deviation of the residuals. ``spread``: standard deviation of the judged mIoU. ``penalty``: the ridge
    penalty that minimises the error.
    """

    networks: int
    tau: float
    rho: float
    error: float
    spread: float
    penalty: float


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
        x = np.stack([self.features(one) for one in selections])
        y = np.asarray(scores, dtype=np.float64)
        mean = x.mean(axis=0)
        left, singular, right = np.linalg.svd(x - mean, full_matrices=False)
        projected = left.T @ (y - y.mean())

        def left_out(penalty: float) -> Floats:
            """The prediction of every network by a model of the others, in closed form."""
            shrunk = singular**2 / (singular**2 + penalty)
            leverage = (left**2 * shrunk).sum(axis=1) + 1 / len(y)
            residual = y - y.mean() - left @ (shrunk * projected)
            found: Floats = y - residual / (1 - leverage)
            return found

        def error(penalty: float) -> float:
            return float(((left_out(penalty) - y) ** 2).mean())

        penalty = float(min(_PENALTIES, key=error))
        # Without the mean of the others, which is the lower the higher the network's own mIoU is.
        contributed = left_out(penalty) - (y.sum() - y) / (len(y) - 1)
        weights = right.T @ (singular / (singular**2 + penalty) * projected)
        noise = max(error(penalty), 1e-12)
        # The posterior covariance of Bayesian linear regression whose prior the penalty is: along the right singular
        # vectors noise / (singular**2 + penalty), elsewhere noise / penalty.
        known = right.T * np.sqrt(1 / penalty - 1 / (singular**2 + penalty))
        fit = Fit(
            networks=len(y),
            tau=float(scipy.stats.kendalltau(contributed, y).statistic),
            rho=float(scipy.stats.spearmanr(contributed, y).statistic),
            error=math.sqrt(noise),
            spread=float(y.std()),
            penalty=penalty,
        )
        return Contributions(self, weights, known * math.sqrt(noise), noise / penalty, float(y.mean()), mean, fit)

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
    weights: Floats
    _known: Floats
    _prior: float
    _intercept: float
    _mean: Floats
    fit: Fit

    def predict(self, selection: Selection) -> float:
        """The mIoU in the supernet that the model expects of a selection."""
        return self._intercept + float((self.model.features(selection) - self._mean) @ self.weights)

    def uncertainty(self) -> float:
        """The root mean square of the standard error of a choice's contribution, relative to the others of its cell."""
        plan, variances = self.model.plan, list[float]()
        for place in plan.grid.cells():
            kinds: list[tuple[str, Sequence[object]]] = [("operator", plan.operators)]
            kinds += [("ratio", plan.ratios)] if place[1] else []
            for kind, choices in kinds:
                rows = self.model.columns(kind, place, choices)
                variance = self._prior * (rows**2).sum(axis=1) - ((rows @ self._known) ** 2).sum(axis=1)
                variances += variance.tolist()
        return math.sqrt(max(sum(variances) / len(variances), 1e-24))

    def logits(self, *, ratios: bool) -> dict[str, Tensor]:
        """The contributions as logits, in units of :meth:`uncertainty`; without ``ratios`` there is no gamma.

        Probabilities near 1 mean that the choice is decided, equal ones that it is not.
        """
        plan, grid, unit = self.model.plan, self.model.plan.grid, self.uncertainty()

        def rows(kind: str, level: int, first: int, choices: Sequence[object]) -> Tensor:
            table = [
                [self.model.contribution(self.weights, kind, (level, layer), choice) / unit for choice in choices]
                for layer in range(first, grid.layers)
            ]
            return torch.tensor(table)

        found = {}
        for level, scale in enumerate(grid.scales):
            found[f"alpha_{scale}"] = rows("operator", level, level, plan.operators)
            if ratios:
                found[f"gamma_{scale}"] = rows("ratio", level, max(1, level), plan.ratios)
            if level:
                entries = [self.model.entry(self.weights, (level, layer)) / unit for layer in range(level, grid.layers)]
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
