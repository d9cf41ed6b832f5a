"""Charts of latency tables: one table by operator, and a comparison of two tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from dnas.report.style import INK, MUTED, SERIES, label_axes, legend_text, new_figure, styled

Pairs = Sequence[tuple[float, float]]
Values = NDArray[np.float64]


@styled
def table_chart(latencies: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """All entries of a latency table: (median, 10th, 90th percentile) in ms by kind of operator.

    The left panel shows every median on a logarithmic axis, one row per operator, with the median of the row. The right
    panel shows the spread of the percentiles in percent of the median, a measure of the uncertainty.
    """
    names = list(latencies)
    figure = new_figure(8.6, 1.4 + 0.42 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, name in enumerate(names):
        values = np.asarray(latencies[name], dtype=np.float64).reshape(-1, 3)
        medians = values[:, 0]
        known = medians > 0
        _strip(left, row, medians[known], row)
        _strip(right, row, 100 * (values[known, 2] - values[known, 1]) / medians[known], row)
    left.set_xscale("log")
    _plain_numbers(left.xaxis)
    right.set_xlim(left=0)
    _name_rows(left, names)
    label_axes(left, title="Latency of each operator", x="median (ms)", y="")
    label_axes(right, title="Spread", x="10th to 90th percentile (% of the median)", y="")
    return figure


@styled
def table_comparison(latencies: Mapping[str, Pairs], first: str, second: str) -> Figure:
    """Comparison of two tables, named ``first`` and ``second``.

    ``latencies`` holds the pairs of latencies (ms) of the entries in both tables, by kind of operator. The left panel
    shows the pairs on logarithmic axes with the line of equality, the right panel the ratios second / first, one row
    per operator.
    """
    names = list(latencies)
    figure = new_figure(9.0, max(3.8, 1.4 + 0.42 * len(names)))
    left, right = figure.subplots(1, 2)
    everything: list[float] = []
    for row, name in enumerate(names):
        pairs = np.asarray([pair for pair in latencies[name] if min(pair) > 0], dtype=np.float64).reshape(-1, 2)
        everything += pairs.ravel().tolist()
        colour = SERIES[row % len(SERIES)]
        left.scatter(pairs[:, 0], pairs[:, 1], s=14, color=colour, alpha=0.7, linewidths=0, label=legend_text(name))
        _strip(right, row, pairs[:, 1] / pairs[:, 0], row)
    limits = (0.8 * min(everything, default=0.1), 1.25 * max(everything, default=1.0))
    left.plot(limits, limits, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    left.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    _plain_numbers(left.xaxis)
    _plain_numbers(left.yaxis)
    right.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    _name_rows(right, names)
    label_axes(left, title="Latency of each entry", x=f"{first} (ms)", y=f"{second} (ms)")
    label_axes(right, title="Ratio by operator", x=f"{second} / {first}", y="")
    return figure


def _strip(axes: Axes, row: int, values: Values, colour: int) -> None:
    """A row of points, jittered to keep them distinguishable, and their median."""
    if not len(values):
        return
    offsets = 0.5 * (np.arange(len(values)) * 0.618 % 1 - 0.5)
    axes.scatter(values, row + offsets, s=9, color=SERIES[colour % len(SERIES)], alpha=0.6, linewidths=0)
    axes.plot([np.median(values)] * 2, [row - 0.38, row + 0.38], color=INK, linewidth=1.6)


def _plain_numbers(axis: Axis) -> None:
    """Label 1, 2 and 5 times each power of ten as plain numbers on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [legend_text(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")
