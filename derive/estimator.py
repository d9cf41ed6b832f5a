"""An additive model of what choices contribute to a network's mIoU, by ridge regression on judged networks.

After HardCoRe-NAS (Nayman et al. 2021), which estimates accuracies by such a model and optimises it under a latency
limit.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from dnas.config import Field, parse_config, record
from dnas.files import read_json, write_json
from dnas.runs import RunFolder

ESTIMATOR = "estimator.json"
"""File name of the quality of the fit, in the run folder of a search."""

Floats = NDArray[np.float64]
_Number = Annotated[float, Field(ge=-1e6, le=1e6)]
_PENALTIES = np.logspace(-3, 4, 57)
"""Ridge penalties to select from, in units of the variance of one contribution."""


@record
class Fit:
    """How well the model predicts networks that it was not fitted to (leave-one-out).

    ``tau``, ``rho``: Kendall's and Spearman's rank correlation of predicted contributions and judged mIoU. ``error``:
    standard deviation of the residuals. ``spread``: standard deviation of the judged mIoU. ``penalty``: the ridge
    penalty that minimises the error.
    """

    networks: Annotated[int, Field(ge=0)]
    tau: _Number
    rho: _Number
    error: _Number
    spread: _Number
    penalty: _Number = 0.0

    def save(self, run: RunFolder) -> None:
        """Write it to a run folder."""
        write_json(run.path / ESTIMATOR, dataclasses.asdict(self))


def read_fit(run: RunFolder) -> Fit:
    """The fit in a run folder."""
    path = run.path / ESTIMATOR
    content = read_json(path, "fit of the estimator")
    return parse_config(Fit, content if isinstance(content, dict) else {}, str(path))


@dataclass(frozen=True)
class RidgeModel:
    """A fitted linear model of the mIoU (a fraction): the ``weights`` of its terms."""

    weights: Floats
    fit: Fit
    _intercept: float
    _mean: Floats
    _known: Floats
    _prior: float

    def predict(self, features: Floats) -> float:
        """The mIoU that the model expects; ``features`` (terms,)."""
        return self._intercept + float((features - self._mean) @ self.weights)

    def variances(self, rows: Floats) -> Floats:
        """The squared standard errors of the sums of terms that ``rows`` (n, terms) are; (n,)."""
        found: Floats = self._prior * (rows**2).sum(axis=1) - ((rows @ self._known) ** 2).sum(axis=1)
        return found


def fit_ridge(features: Floats, scores: Floats) -> RidgeModel:
    """The weights that explain ``scores`` (n,) by ``features`` (n, terms); at least three networks."""
    x, y = features, scores
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
        tau=_correlation(scipy.stats.kendalltau(contributed, y).statistic),
        rho=_correlation(scipy.stats.spearmanr(contributed, y).statistic),
        error=math.sqrt(noise),
        spread=float(y.std()),
        penalty=penalty,
    )
    return RidgeModel(weights, fit, float(y.mean()), mean, known * math.sqrt(noise), noise / penalty)


def _correlation(found: float) -> float:
    """0 where all networks have the same mIoU, for which no correlation is defined."""
    return float(found) if math.isfinite(found) else 0.0
