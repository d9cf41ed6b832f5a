"""Predicted against measured latencies of whole networks: do a table's entries add up?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import nn

from dnas.errors import UserError
from dnas.input_channels import RGB
from dnas.latency.measure import WorkItem, measure_many
from dnas.latency.setup import MeasurementSetup
from dnas.latency.statistics import Effort, Measurement
from dnas.progress import NoProgress, Progress


@dataclass(frozen=True)
class Agreement:
    """The agreement of predictions with measurements of ``networks`` networks.

    ``pearson`` and ``spearman`` are correlations (FasterSeg, Figure 3, reports 0.993), ``mape`` is the mean of
    |predicted - measured| / measured in percent.
    """

    networks: int
    pearson: float
    spearman: float
    mape: float

    def to_mapping(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def agreement(predicted: Sequence[float], measured: Sequence[float]) -> Agreement:
    """Compare predicted with measured latencies (ms) of the same networks in the same order.

    Raises :class:`UserError` for fewer than two networks, for a latency that is not positive, and for latencies that
    are all equal, whose correlation is undefined.
    """
    if len(predicted) != len(measured) or len(measured) < 2:
        raise UserError(
            f"latency check: given {len(predicted)} predicted and {len(measured)} measured latencies, expected as many "
            "of each and at least 2; check more networks"
        )
    from scipy import stats  # takes half a second and is needed only here

    first, second = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    for name, values in (("predicted", first), ("measured", second)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UserError(f"latency check: a {name} latency is not a positive number of ms; check the table")
        if np.ptp(values) == 0:
            raise UserError(f"latency check: all {name} latencies are equal; check networks of different size")
    return Agreement(
        networks=len(first),
        pearson=float(stats.pearsonr(first, second).statistic),
        spearman=float(stats.spearmanr(first, second).statistic),
        mape=float(100 * np.mean(np.abs(first - second) / second)),
    )


@dataclass(frozen=True)
class Correction:
    """A correction of the predicted latency of whole networks: ``factor`` x predicted + ``offset_ms``.

    Fitted on ``networks`` networks, which must differ from those that it is checked on.
    """

    factor: float
    offset_ms: float
    networks: int

    def apply(self, predicted: Sequence[float]) -> list[float]:
        """Corrected latencies in ms."""
        return [self.factor * value + self.offset_ms for value in predicted]

    def to_mapping(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def fit_correction(predicted: Sequence[float], measured: Sequence[float]) -> Correction:
    """The correction of least squared relative error, for latencies (ms) of the same networks in the same order.

    Raises :class:`UserError` as :func:`agreement` does.
    """
    agreement(predicted, measured)
    first, second = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    columns = np.stack([first / second, 1 / second], axis=1)
    factor, offset = np.linalg.lstsq(columns, np.ones(len(second)), rcond=None)[0]
    return Correction(float(factor), float(offset), len(first))


def spread_evenly(values: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` of the ``values``, in rising order of value, spread evenly from the smallest to the largest.

    Each of ``count`` evenly spaced marks takes the nearest value that is not taken yet. All indices are returned if
    there are at most ``count`` values.
    """
    order = [int(index) for index in np.argsort(values, kind="stable")]
    if len(order) <= count:
        return order
    chosen: set[int] = set()
    # The ends first: they have only one neighbour, and a correlation depends on the range.
    marks = np.linspace(values[order[0]], values[order[-1]], count)
    for mark in sorted(marks.tolist(), key=lambda mark: -abs(mark - (marks[0] + marks[-1]) / 2)):
        chosen.add(min((index for index in order if index not in chosen), key=lambda index: abs(values[index] - mark)))
    return [index for index in order if index in chosen]


def measure_networks(
    networks: Mapping[str, Callable[[], nn.Module]],
    input_size: tuple[int, int],
    setup: MeasurementSetup,
    *,
    effort: Effort | None = None,
    channels: int = RGB,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Latency in ms of whole networks by name, in interleaved rounds, at images of (height, width) ``input_size``.

    Each value of ``networks`` is a function that builds the network, which takes images (batch, channels, H, W).
    """
    shapes = ((channels, *input_size),)
    progress = progress or NoProgress()
    progress.begin(f"measure {len(networks)} networks")
    items = [WorkItem(name, shapes, build) for name, build in networks.items()]
    return measure_many(items, setup, effort=effort, seed=seed, progress=progress)


def noise_floor(first: Mapping[str, Measurement], second: Mapping[str, Measurement]) -> Agreement:
    """The agreement of two measurements of the same networks, which no prediction can be expected to exceed."""
    names = [name for name in first if name in second]
    return agreement([first[name].median for name in names], [second[name].median for name in names])
