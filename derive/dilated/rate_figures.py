"""Figures of a search of dilation rates: the rates over the epochs, and the sampling positions of the kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from derive.dilated.rounding import by_block
from dnas.ops import layers_by_block
from dnas.report.curves import Floats, epoch_series, step_series
from dnas.report.data import Record
from dnas.report.style import BLUE, GRID, INK, MUTED, VERMILION, label_axes, line_style, new_figure, styled

_MAX_COLUMNS = 5


def short_name(block: str) -> str:
    """The name of a block without the prefix of the backbone."""
    return block.rpartition("backbone.")[2]


@styled
def rate_curves(records: Sequence[Record], initial: Mapping[str, float], initial_field: int) -> Figure:
    """Loss, validation mIoU and field of view over the epochs, and a panel per block with its rates and their bound.

    ``records`` are those of the run's log. ``initial`` are the rates and ``initial_field`` is the field of view in
    pixels before the first step.
    """
    epochs = [record for record in records if record.get("kind") == "epoch"]
    times = np.array([0, *(int(record["epoch"]) + 1 for record in epochs)], dtype=np.float64)
    blocks = layers_by_block(initial)
    rows, columns = _grid_of(len(blocks))
    figure = new_figure(10.4, 2.4 + 1.75 * rows)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.4, 1.75 * rows])
    top, bottom = parts.ravel()
    loss, miou, field = top.subplots(1, 3)
    _line(loss, step_series(records, "loss_weights"), "Training loss", "loss")
    x, y = epoch_series(records, "miou.network")
    _line(miou, (x, 100 * y), "Validation mIoU", "mIoU (%)")
    pixels = np.array([initial_field, *(record["field_of_view"] for record in epochs)], dtype=np.float64)
    _line(field, (times, pixels), "Field of view", "pixels")
    panels = np.atleast_1d(bottom.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    for axes, (block, layers) in zip(panels, blocks.items(), strict=False):
        bounds = [record.get("upper", {}).get(layers[0], math.nan) for record in epochs]
        axes.plot(times[1:], bounds, color=MUTED, linewidth=0.9, alpha=0.6)
        for index, layer in enumerate(layers):
            values = [initial[layer], *(record["rates"][layer] for record in epochs)]
            axes.plot(times, values, lw=1.6, **line_style(index))
        label_axes(axes, title=short_name(block), x="", y="")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    largest = max(max(record["rates"].values()) for record in epochs)
    panels[0].set_ylim(0.5, 1.15 * max(largest, 2.0))
    for axes in panels[len(blocks) :]:
        axes.set_visible(False)
    bottom.supxlabel("epoch", fontsize=8.5, color=MUTED)
    bottom.supylabel("dilation rate", fontsize=8.5, color=MUTED)
    return figure


def _grid_of(panels: int) -> tuple[int, int]:
    """Rows and columns of a grid for ``panels`` panels, with few empty places."""
    rows = math.ceil(panels / _MAX_COLUMNS)
    return rows, math.ceil(panels / rows)


def _line(axes: Axes, series: tuple[Floats, Floats], title: str, unit: str) -> None:
    axes.plot(*series, marker="o" if len(series[0]) <= 25 else None, markersize=3.2, **line_style(0))
    label_axes(axes, title=title, x="epoch", y=unit)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


@styled
def sampling_positions(searched: Mapping[str, float], rounded: Mapping[str, int]) -> Figure:
    """Sampling positions of 3x3 kernels at the ``searched`` and ``rounded`` rates, one panel per block.

    After RegSeg v3, Fig. 7. Both arguments map layer names to rates. The grid shows the pixels; circles are positions
    of searched rates, dots those of rounded rates.
    """
    before, after = by_block(searched), by_block(rounded)
    rows, columns = _grid_of(len(before))
    figure = new_figure(2.08 * columns, 2.35 * rows + 0.3)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    reach = math.ceil(max([*searched.values(), *rounded.values()])) + 0.8
    for axes, (block, rates) in zip(panels, before.items(), strict=False):
        for index, (rate, integer_rate) in enumerate(zip(rates, after[block], strict=True)):
            colour = (BLUE, VERMILION, INK, MUTED)[index % 4]
            size = 46 - 18 * (index % 2)
            axes.scatter(*_positions(rate), s=size, facecolors="none", edgecolors=colour, linewidths=1.1)
            axes.scatter(*_positions(integer_rate), s=0.28 * size, color=colour, linewidths=0)
        _draw_pixels(axes, reach)
        searched_text = ", ".join(f"{rate:.1f}" for rate in rates)
        rounded_text = ", ".join(map(str, after[block]))
        axes.set_title(f"{short_name(block)}\n({searched_text}) → ({rounded_text})", fontsize=8)
    for axes in panels[len(before) :]:
        axes.set_visible(False)
    return figure


def _positions(rate: float) -> tuple[Floats, Floats]:
    steps = np.array([-1.0, 0.0, 1.0]) * rate
    x, y = np.meshgrid(steps, steps)
    return x.ravel(), y.ravel()


def _draw_pixels(axes: Axes, reach: float) -> None:
    """Grid lines between pixels; pixel centres are at integer coordinates."""
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    for line in np.arange(math.floor(-reach) + 0.5, reach, 1.0):
        axes.axhline(line, color=GRID, linewidth=0.5, zorder=0)
        axes.axvline(line, color=GRID, linewidth=0.5, zorder=0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
