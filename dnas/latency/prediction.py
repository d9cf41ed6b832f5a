"""A latency table of a new device from few measurements and the tables of other devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import NDArray

from dnas.latency.spec import OperatorSpec

Floats = NDArray[np.float64]
Latencies = Mapping[str, float]
"""Latency in ms by key of the entry."""

FEWEST = 10
"""Fewest entries to measure; with fewer the error could not be estimated."""
_FOLDS = 5
_PRIOR = 0.25
"""Weight of the factor of all operators in that of one operator, in entries."""


@dataclass(frozen=True)
class Prediction:
    """Predicted latencies in ms.

    error: mean absolute relative error of measured entries that were left out (cross-validation). method: the one with
    the smallest error. devices: indices of the other tables that it uses.
    """

    latencies: dict[str, float]
    error: float
    method: str
    devices: tuple[int, ...]


@dataclass(frozen=True)
class _Data:
    """Latencies of other devices, (entries, devices) in ms, and the kinds of operator of the entries."""

    others: Floats
    operators: Sequence[str]

    def of(self, rows: Sequence[int]) -> _Data:
        """A part of the entries."""
        return _Data(self.others[list(rows)], [self.operators[row] for row in rows])


_Method = Callable[[_Data, Floats, _Data], Floats]
"""From measured entries, their latencies and other entries to the latencies of the others."""


def choose_entries(others: Sequence[Latencies], share: float) -> list[str]:
    """The entries to measure: a ``share`` of those that all other tables have, at least ten.

    They are evenly spread over the kinds of operator, and within one over its latencies (geometric mean of the tables).
    """
    shared = shared_entries(others)
    means = {key: float(np.mean(np.log([table[key] for table in others]))) for key in shared}
    ordered = sorted(shared, key=lambda key: (OperatorSpec.from_key(key).operator, means[key]))
    count = min(len(ordered), max(FEWEST, round(share * len(ordered))))
    places = np.round(np.linspace(0, len(ordered) - 1, count)).astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def shared_entries(tables: Sequence[Latencies]) -> list[str]:
    """The keys with a positive latency in all tables, sorted."""
    common = set.intersection(*(set(table) for table in tables))
    return sorted(key for key in common if all(table[key] > 0 for table in tables))


def predict_entries(measured: Latencies, others: Sequence[Latencies]) -> Prediction:
    """Predict the entries of the other tables that are not measured; at least ten measured ones must be in all tables.

    Three methods compete by cross-validation: a linear map with non-negative weights from all devices, a monotone map
    from the nearest device (the one that ranks the measured entries most alike), and a factor for each kind of operator
    from the nearest device.
    """
    shared = shared_entries(others)
    data = _Data(
        np.array([[table[key] for table in others] for key in shared], dtype=np.float64),
        [OperatorSpec.from_key(key).operator for key in shared],
    )
    known = [row for row, key in enumerate(shared) if measured.get(key, 0.0) > 0]
    if len(known) < FEWEST:
        raise ValueError(f"{len(known)} measured entries are in all tables, expected at least {FEWEST}")
    known.sort(key=lambda row: measured[shared[row]])
    latencies = np.array([measured[shared[row]] for row in known])
    given = data.of(known)
    nearest = int(np.argmax([_rank_correlation(column, latencies) for column in given.others.T]))
    only = (nearest,)
    methods: dict[str, tuple[_Method, tuple[int, ...]]] = {
        "linear map": (_linear, tuple(range(len(others)))),
        "monotone map": (_monotone, only),
        "factor by operator": (_by_operator, only),
    }
    errors = {
        name: _left_out_error(method, _columns(given, devices), latencies)
        for name, (method, devices) in methods.items()
    }
    best = min(errors, key=errors.__getitem__)
    method, devices = methods[best]
    rest = [row for row in range(len(shared)) if row not in set(known)]
    found = method(_columns(given, devices), latencies, _columns(data.of(rest), devices)) if rest else np.empty(0)
    predicted = {shared[row]: float(value) for row, value in zip(rest, found, strict=True)}
    return Prediction(predicted, errors[best], best, devices)


def _columns(data: _Data, devices: Sequence[int]) -> _Data:
    return _Data(data.others[:, list(devices)], data.operators)


def _rank_correlation(first: Floats, second: Floats) -> float:
    return float(scipy.stats.spearmanr(first, second).statistic)


def _left_out_error(method: _Method, data: _Data, latencies: Floats) -> float:
    """Mean absolute relative error of entries that the method did not see, over interleaved folds."""
    rows = range(len(latencies))
    errors: list[float] = []
    for fold in range(_FOLDS):
        kept = [row for row in rows if row % _FOLDS != fold]
        left = [row for row in rows if row % _FOLDS == fold]
        found = method(data.of(kept), latencies[kept], data.of(left))
        errors += np.abs(found / latencies[left] - 1).tolist()
    return float(np.mean(errors))


def _linear(data: _Data, latencies: Floats, wanted: _Data) -> Floats:
    """A sum of the devices' latencies and a constant with non-negative weights, least squares of relative errors."""

    def columns(part: _Data) -> Floats:
        return np.column_stack([part.others, np.ones(len(part.others))])

    weights, _ = scipy.optimize.nnls(columns(data) / latencies[:, None], np.ones(len(latencies)))
    return np.asarray(columns(wanted) @ weights, dtype=np.float64)


def _monotone(data: _Data, latencies: Floats, wanted: _Data) -> Floats:
    """Isotonic regression on logarithms, interpolated; outside of the measured range with the factor at its end."""
    order = np.argsort(data.others[:, 0], kind="stable")
    x, y = np.log(data.others[order, 0]), np.log(latencies[order])
    fitted = scipy.optimize.isotonic_regression(y).x
    asked = np.log(wanted.others[:, 0])
    inside = np.clip(asked, x[0], x[-1])
    return np.asarray(np.exp(np.interp(inside, x, fitted) + asked - inside), dtype=np.float64)


def _by_operator(data: _Data, latencies: Floats, wanted: _Data) -> Floats:
    """A factor for each kind of operator; that of few entries is drawn towards the factor of all."""
    ratios = np.log(latencies / data.others[:, 0])
    overall = float(ratios.mean())
    factors = {}
    for operator in set(data.operators):
        own = ratios[[name == operator for name in data.operators]]
        factors[operator] = (own.sum() + _PRIOR * overall) / (len(own) + _PRIOR)
    logs = np.array([factors.get(operator, overall) for operator in wanted.operators])
    return np.asarray(wanted.others[:, 0] * np.exp(logs), dtype=np.float64)
