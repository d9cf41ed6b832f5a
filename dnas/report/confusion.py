"""The confusion matrix as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dnas.report.style import BLUE, INK, label_axes, new_figure, styled

_CELLS_WITH_NUMBERS = 24
"""A matrix of more classes has no numbers in its cells: they would not be legible."""


@styled
def confusion_chart(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """Which classes are taken for which: the pixels of each true class (rows) by predicted class, in percent.

    ``counts``: pixels by true and predicted class, a square matrix in the order of ``names``. A class without pixels
    has an empty row.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"given {matrix.shape} counts for {len(names)} classes")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100 * matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    side = 1.8 + max(2.4, 0.32 * min(len(names), 40))
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("shares", ["#ffffff", BLUE])
    drawn = axes.imshow(shares, cmap=colours, vmin=0, vmax=100, aspect="equal")
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="% of the true class")
    axes.grid(visible=False)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90)
    axes.set_yticks(ticks, names)
    if len(names) <= _CELLS_WITH_NUMBERS:
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            share = shares[row, column]
            colour = "#ffffff" if share > 55 else INK
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=6.5)
    label_axes(axes, title="Confusion matrix", x="predicted", y="true")
    return figure
