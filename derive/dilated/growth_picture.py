"""What a search of dilation rates did to the predictions, and to the places of the image that they are made from."""

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
_FAINTEST = 0.02
"""Of the strongest weight of a picture: what is weaker is not drawn."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A search after ``step`` steps: a prediction (H, W), the rates of each block, the field of view in pixels.

    ``note`` is a line under the prediction.
    """

    step: int
    prediction: NDArray[np.integer[Any]]
    rates: Sequence[Sequence[float]]
    field_of_view: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One image (H, W, 3) uint8 with its labels (H, W), and a search's stages in their order.

    The dilated blocks work at ``scale``: one value for so many pixels, on both axes. ``pixel`` (row, column) is the
    output whose sampling positions are shown.
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
    """Where on a map of ``shape`` blocks in a row read for the output at ``position`` (row, column): weights (H, W).

    Each block of ``rates`` passes every value on and reads it at the nine places of each of its branches, interpolated
    between four cells where a rate is not whole, all of them with the same share. What is read beyond the map's edge is
    lost, as it is zero. The sum of the weights is at most 1.
    """
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    weights = _one_at(position, shape)[None, None]
    for block in rates:
        read = [fractional_conv2d(weights, kernel, torch.tensor(rate, dtype=torch.float64)) for rate in block]
        weights = weights / 2 + torch.stack(read).mean(0) / 2
    return weights[0, 0].numpy()


def _one_at(position: tuple[float, float], shape: tuple[int, int]) -> torch.Tensor:
    """A map of zeros with a 1 at ``position``, shared out to the four cells around it."""
    rows, columns = (
        (1 - (torch.arange(size, dtype=torch.float64) - place).abs()).clamp(min=0)
        for place, size in zip(position, shape, strict=True)
    )
    return rows[:, None] * columns


@styled
def growth_picture(growth: Growth, width: float = 8.6) -> Figure:
    """Predictions over the steps of a search and, under each, the sampling positions of one output, ``width`` inches.

    The first column holds the image and its labels. A dot is a cell of the map that the blocks work on, the larger the
    greater the weight with which :func:`sampled_weights` reads it for the output at the cross. Raises ``ValueError``
    without stages.
    """
    if not growth.stages:
        raise ValueError("no stages to draw")
    columns = 1 + len(growth.stages)
    height, broad = growth.truth.shape
    figure = new_figure(width, 2 * width / columns * height / broad + 0.66)
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
        below.set_xlabel(f"sees {stage.field_of_view} px", fontsize=_FONT, color=INK)
    return figure


def _show(axes: Axes, picture: NDArray[np.uint8], caption: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_xlabel(caption, fontsize=_FONT, color=INK)


def _draw_positions(axes: Axes, growth: Growth, stage: Stage) -> None:
    """The image in pale grey, dots where the output at the cross reads it."""
    height, width = growth.truth.shape
    scale = growth.scale
    pale = 255 - (255 - growth.image.astype(np.float64)) * 0.42
    axes.imshow(pale.astype(np.uint8), interpolation="nearest")
    shape = (-(-height // scale), -(-width // scale))
    row, column = growth.pixel
    weights = sampled_weights(stage.rates, shape, ((row + 0.5) / scale - 0.5, (column + 0.5) / scale - 0.5))
    strength = np.sqrt(weights / weights.max())
    rows, columns = np.nonzero(strength > _FAINTEST)
    sizes = 1.5 + 18.0 * strength[rows, columns]
    axes.scatter(
        (columns + 0.5) * scale - 0.5, (rows + 0.5) * scale - 0.5, s=sizes, color=_DOT, alpha=0.85, linewidths=0
    )
    axes.scatter([column], [row], marker="x", s=38, color=VERMILION, linewidths=2.0, zorder=4)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
