"""From logits to a discrete architecture: FasterSeg section 3.4, as a pure function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch.nn.functional as F
from torch import Tensor

from derive.architecture import Architecture, Branch, Cell
from dnas.supernet import Grid


@dataclass(frozen=True)
class Choices:
    """What the searched logits are over: the grid, the operators, the ratios and the ratio of stem and head."""

    grid: Grid
    operators: tuple[str, ...]
    ratios: tuple[int, ...]
    end_ratio: int


def decode(
    logits: Mapping[str, Tensor], choices: Choices, branches: Sequence[int], provenance: Mapping[str, object] = {}
) -> Architecture:
    """The discrete architecture of the branches that end at the scales ``branches``.

    ``logits`` are those of :meth:`ArchitectureParameters.named_logits`; without gamma every ratio is the widest.
    Operators and ratios are the argmax of alpha and gamma; a branch goes coarser where the product of its beta_0 is
    largest (footnote 2); skips of stride 1 are left out, and their neighbours meet at the narrowest width in between.
    """
    found = [_decode_branch(logits, choices, scale) for scale in branches]
    return Architecture(
        end_ratio=choices.end_ratio, branches=_trim(found), provenance={str(k): str(v) for k, v in provenance.items()}
    )


def downsampling_layers(logits: Mapping[str, Tensor], grid: Grid, level: int) -> tuple[tuple[int, ...], float]:
    """The layers at which the branch of ``level`` enters levels 1 to ``level``, and the margin to the second best.

    The joint argmax of the product of beta_0. The margin is the ratio of the second best product to the best, from 0
    (no doubt) to 1 (a tie). The first cell of a level has no choice, so no beta: it is entered there only if the grid
    leaves nothing else.
    """
    finer = {
        (lower, grid.layers - rows + row): float(probability)
        for lower in range(1, level + 1)
        for rows in [grid.beta_rows(lower)]
        if rows
        for row, probability in enumerate(F.log_softmax(logits[f"beta_{grid.scales[lower]}"].double(), -1)[:, 0])
    }
    unsearched = -1e6
    scored = sorted(
        (
            (sum(finer.get((i + 1, layer), unsearched) for i, layer in enumerate(layers)), layers)
            for layers in combinations(range(1, grid.layers), level)
            if all(layer > i for i, layer in enumerate(layers))
        ),
        key=lambda pair: (-pair[0], pair[1]),
    )
    margin = math.exp(scored[1][0] - scored[0][0]) if len(scored) > 1 else 0.0
    return scored[0][1], margin


@dataclass(frozen=True)
class _Found:
    """A cell on a branch's path before skips narrowed it: ``read`` of its ``width`` channels are used further on."""

    operator: str
    level: int
    layer: int
    stride: int
    scale: int
    in_channels: int
    width: int
    read: int
    margin: float


def _decode_branch(logits: Mapping[str, Tensor], choices: Choices, scale: int) -> tuple[int, float, int, list[_Found]]:
    grid = choices.grid
    entered, margin = downsampling_layers(logits, grid, grid.level_of(scale))
    cells: list[_Found] = []
    channels = 8 * choices.end_ratio
    for layer in range(grid.layers):
        level = sum(at <= layer for at in entered)
        target = sum(at <= layer + 1 for at in entered)
        weights = F.softmax(logits[f"alpha_{grid.scales[level]}"][grid.alpha_row(level, layer)].double(), -1)
        operator = choices.operators[int(weights.argmax())]
        width = _width(logits, choices, target, layer + 1)
        if operator == "skip" and target == level:
            channels = min(channels, width)
            cells[-1:] = [_narrow(cell, channels) for cell in cells[-1:]]
            continue
        best, second = sorted([*weights.tolist(), 0.0], reverse=True)[:2]
        cells.append(
            _Found(
                operator=operator,
                level=level,
                layer=layer,
                stride=1 if target == level else 2,
                scale=grid.scales[target],
                in_channels=channels,
                width=width,
                read=width,
                margin=best - second,
            )
        )
        channels = width
    return scale, margin, channels, cells


def _width(logits: Mapping[str, Tensor], choices: Choices, level: int, layer: int) -> int:
    """Channels of the connection into cell (level, layer); behind the last layer stands the head."""
    grid = choices.grid
    if layer == grid.layers:
        ratio = choices.end_ratio
    elif f"gamma_{grid.scales[0]}" in logits:
        ratio = choices.ratios[int(logits[f"gamma_{grid.scales[level]}"][grid.gamma_row(level, layer)].argmax())]
    else:
        ratio = max(choices.ratios)
    return ratio * grid.scales[level]


def _narrow(cell: _Found, channels: int) -> _Found:
    return _Found(**{**cell.__dict__, "read": channels})


def _trim(found: Sequence[tuple[int, float, int, list[_Found]]]) -> tuple[Branch, ...]:
    """Branches whose cells make no more channels than somebody reads; cells of a shared prefix stay equal."""

    def prefix(cells: Sequence[_Found]) -> tuple[tuple[object, ...], ...]:
        return tuple((c.operator, c.scale, c.stride, c.in_channels, c.width) for c in cells)

    read: dict[tuple[tuple[object, ...], ...], int] = {}
    for _, _, _, cells in found:
        for index, cell in enumerate(cells):
            key = prefix(cells[: index + 1])
            read[key] = max(read.get(key, 0), cell.read)
    branches = []
    for scale, margin, channels, cells in found:
        trimmed = []
        for index, cell in enumerate(cells):
            # The channels of a skip of stride 2 come from two halves and are cheap: its readers take a slice.
            made = cell.width if cell.operator == "skip" else read[prefix(cells[: index + 1])]
            trimmed.append(
                Cell(
                    operator=cell.operator,
                    scale=cell.scale // cell.stride,
                    stride=cell.stride,
                    in_channels=cell.in_channels,
                    channels=made,
                    layer=cell.layer,
                    width=cell.width,
                    margin=round(cell.margin, 6),
                )
            )
        branches.append(Branch(scale=scale, channels=channels, cells=tuple(trimmed), path_margin=round(margin, 6)))
    return tuple(branches)
