"""A figure of predictions and sampling positions at several steps of a search of dilation rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dnas.ops import fractional_conv2d
from dnas.report.data import ClassLabels
from dnas.report.pictures import colour_map
from dnas.report.style import INK, MUTED, VERMILION, new_figure, styled

_DOT = "#0b5c8f"
_FONT = 9.0
_MIN_STRENGTH = 0.02
"""Smallest square root of a weight, relative to the largest, that is drawn."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A search after ``step`` steps: a prediction (H, W), the rates of each block, the field of view in pixels.

    ``note`` is shown below the prediction.
    """

    step: int
    prediction: NDArray[np.integer[Any]]
    rates: Sequence[Sequence[float]]
    field_of_view: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One image (H, W, 3) uint8 with its labels (H, W), and the stages of a search in order.

    ``scale`` is the downsampling rate of the maps that the dilated blocks read. ``pixel`` (row, column) is the output
    whose sampling positions are shown.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.integer[Any]]
    stages: Sequence[Stage]
    scale: int
    pixel: tuple[int, int]
    labels: ClassLabels = field(repr=False)


def sampled_weights(
    rates: Sequence[Sequence[float]], shape: tuple[int, int], position: tuple[float, float]
) -> NDArray[np.float64]:
    """Weights (H, W) with which a sequence of blocks samples a map of ``shape`` for the output at ``position``.

    Each block of ``rates`` is modelled as the mean of its shortcut and its convolutions, with nine equal weights per
    branch; fractional rates interpolate bilinearly. Samples outside the map are zero padding and count as zero, so the
    sum of the weights is at most 1. ``position`` is (row, column) and may be fractional.
    """
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    weights = _impulse(position, shape)[None, None]
    for block in rates:
        sampled = [fractional_conv2d(weights, kernel, torch.tensor(rate, dtype=torch.float64)) for rate in block]
        weights = weights / 2 + torch.stack(sampled).mean(0) / 2
    return weights[0, 0].numpy()


def _impulse(position: tuple[float, float], shape: tuple[int, int]) -> torch.Tensor:
    """A unit impulse at ``position``, distributed bilinearly to the four nearest pixels."""
    rows, columns = (
        (1 - (torch.arange(size, dtype=torch.float64) - place).abs()).clamp(min=0)
        for place, size in zip(position, shape, strict=True)
    )
    return rows[:, None] * columns


@styled
def growth_picture(growth: Growth, width: float = 8.6) -> Figure:
    """Draw the predictions at several steps of a search and, below each, the sampling positions of one output.

    The first column shows the image and its labels. Each dot is a position of the map that the blocks read, for the
    output at the cross; its size grows with the weight from :func:`sampled_weights`. ``width`` is in inches. Raises
    ``ValueError`` if there are no stages.
    """
    if not growth.stages:
        raise ValueError("no stages to draw")
    columns = 1 + len(growth.stages)
    height, image_width = growth.truth.shape
    figure = new_figure(width, 2 * width / columns * height / image_width + 0.66)
    grid = figure.subplots(2, columns)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=MUTED, linewidth=0.6)
    _show(grid[0, 0], growth.image, "image")
    _show(grid[1, 0], colour_map(growth.truth, growth.labels), "labels")
    for stage, above, below in zip(growth.stages, grid[0, 1:], grid[1, 1:], strict=True):
        _show(above, colour_map(stage.prediction, growth.labels), stage.note)
        above.set_title(f"step {stage.step}", loc="center")
        _draw_positions(below, growth, stage)
        below.set_xlabel(f"FoV {stage.field_of_view} px", fontsize=_FONT, color=INK)
    return figure


def _show(axes: Axes, picture: NDArray[np.uint8], caption: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_xlabel(caption, fontsize=_FONT, color=INK)


def _draw_positions(axes: Axes, growth: Growth, stage: Stage) -> None:
    """The faded image with dots at the sampling positions of the output at the cross."""
    height, width = growth.truth.shape
    scale = growth.scale
    faded = 255 - (255 - growth.image.astype(np.float64)) * 0.42
    axes.imshow(faded.astype(np.uint8), interpolation="nearest")
    shape = (-(-height // scale), -(-width // scale))
    row, column = growth.pixel
    weights = sampled_weights(stage.rates, shape, ((row + 0.5) / scale - 0.5, (column + 0.5) / scale - 0.5))
    strength = np.sqrt(weights / weights.max())
    rows, columns = np.nonzero(strength > _MIN_STRENGTH)
    sizes = 1.5 + 18.0 * strength[rows, columns]
    axes.scatter(
        (columns + 0.5) * scale - 0.5, (rows + 0.5) * scale - 0.5, s=sizes, color=_DOT, alpha=0.85, linewidths=0
    )
    axes.scatter([column], [row], marker="x", s=38, color=VERMILION, linewidths=2.0, zorder=4)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
