"""Statistics of a study: noise, rank correlations, and derived networks against random ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Row = Mapping[str, Any]
Floats = NDArray[np.float64]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Noise:
    """Standard deviations of mIoU: between seeds of one network, and between the mIoUs of networks with one seed.

    ``reliability``: share of the variance between networks that is not noise of the training.
    """

    networks: int
    trainings: int
    within: float
    between: float

    @property
    def reliability(self) -> float:
        """1 without noise, 0 if networks do not differ."""
        return max(0.0, 1 - self.within**2 / self.between**2)


@dataclass(frozen=True)
class Comparison:
    """Derived networks against random ones of the same latency; mIoU as fractions.

    percentile: share of the random networks below the derived mean. difference, low, high: difference of the means and
    its 95 % bootstrap interval over random networks and search seeds. best_of: expected mIoU of the best by validation
    of ``trained`` random networks, as many as could be trained in the time of search, derivation and one training; 0 if
    this time is not known.
    """

    derived: float
    spread: float
    seeds: int
    random: float
    networks: int
    percentile: float
    difference: float
    low: float
    high: float
    trained: int
    best_of: float


def noise(rows: Sequence[Row], score: str) -> Noise:
    """From the networks of ``rows`` that were trained with several seeds, and all with one."""
    by_network: dict[str, list[float]] = {}
    for row in rows:
        by_network.setdefault(row["network"], []).append(float(row[score]))
    repeated = [values for values in by_network.values() if len(values) > 1]
    trainings = sum(map(len, repeated))
    squares = sum(float(np.var(values) * len(values)) for values in repeated)
    within = math.sqrt(squares / max(1, trainings - len(repeated)))
    between = float(np.std([values[0] for values in by_network.values()], ddof=1))
    return Noise(len(repeated), trainings, within, between)


def means(rows: Sequence[Row], *keys: str) -> list[dict[str, Any]]:
    """One row for each network, with the mean of ``keys`` over its seeds."""
    by_network: dict[str, list[Row]] = {}
    for row in rows:
        by_network.setdefault(row["network"], []).append(row)
    return [
        {**group[0], **{key: float(np.mean([row[key] for row in group])) for key in keys}}
        for group in by_network.values()
    ]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Kendall's tau and Spearman's rho."""
    return (
        float(scipy.stats.kendalltau(first, second).statistic),
        float(scipy.stats.spearmanr(first, second).statistic),
    )


def highest_tau(rows: Sequence[Row], within: float, score: str) -> float:
    """Kendall's tau between the true and the observed ``score`` of networks: no ranking can be expected to do better.

    rows: one for each training. within: standard deviation between the seeds of a network. For normal distributions tau
    is 2/pi asin(r), where r^2 is the share of the observed variance that is not noise (Kendall and Gibbons, "Rank
    Correlation Methods").
    """
    by_network: dict[str, list[float]] = {}
    for row in rows:
        by_network.setdefault(row["network"], []).append(float(row[score]))
    observed = float(np.var([np.mean(values) for values in by_network.values()], ddof=1))
    noise_variance = float(np.mean([within**2 / len(values) for values in by_network.values()]))
    return 2 / math.pi * math.asin(math.sqrt(max(0.0, 1 - noise_variance / observed)))


def within_band(rows: Sequence[Row], target_ms: float, tolerance: float) -> list[Row]:
    """The rows whose predicted latency is within ``tolerance`` (a fraction) of the target."""
    return [row for row in rows if abs(row["predicted_ms"] / target_ms - 1) <= tolerance]


def best_of(values: Sequence[float], scores: Sequence[float], count: int) -> float:
    """The expected entry of ``values`` at the largest entry of ``scores`` among ``count`` drawn without replacement."""
    total, count = len(values), max(1, min(count, len(values)))
    order = np.argsort(scores, kind="stable")
    weights = [math.comb(rank, count - 1) / math.comb(total, count) for rank in range(total)]
    return float(np.dot(weights, np.asarray(values)[order]))


def bootstrap(
    derived: Sequence[float], random: Sequence[float], statistic: Callable[[Floats, Floats], Floats]
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of both samples, each resampled with replacement.

    ``statistic`` gets arrays (resamples, size).
    """
    generator = np.random.default_rng(0)
    samples = [
        np.asarray(values)[generator.integers(len(values), size=(RESAMPLES, len(values)))]
        for values in (derived, random)
    ]
    low, high = np.percentile(statistic(*samples), [2.5, 97.5])
    return float(low), float(high)


def search_seconds(derived: Sequence[Row]) -> float:
    """Mean processor time of the searches and derivations of derived networks; NaN if none is known.

    That of an interrupted one is not known, and is left out.
    """
    known = [
        search + derive
        for row in derived
        if (search := row["search_cpu_seconds"]) is not None
        and (derive := row.get("derive_cpu_seconds", 0.0)) is not None
    ]
    return float(np.mean(known)) if known else math.nan


def compare(derived: Sequence[Row], random: Sequence[Row], score: str) -> Comparison:
    """Derived networks of one target and method against the random networks around the target, by ``score``."""
    mine = [float(row[score]) for row in derived]
    theirs = [float(row[score]) for row in random]
    low, high = bootstrap(mine, theirs, lambda a, b: a.mean(axis=1) - b.mean(axis=1))
    search = search_seconds(derived)
    timed = [float(row["cpu_seconds"]) for row in random if row["cpu_seconds"] is not None]
    trained = 0 if math.isnan(search) else 1 + int(search / float(np.median(timed)))
    mean = float(np.mean(mine))
    return Comparison(
        derived=mean,
        spread=float(np.std(mine, ddof=1)) if len(mine) > 1 else 0.0,
        seeds=len(mine),
        random=float(np.mean(theirs)),
        networks=len(theirs),
        percentile=float(np.mean([value < mean for value in theirs])),
        difference=mean - float(np.mean(theirs)),
        low=low,
        high=high,
        trained=min(trained, len(theirs)),
        best_of=best_of(theirs, [float(row["val_miou"]) for row in random], trained) if trained else math.nan,
    )
