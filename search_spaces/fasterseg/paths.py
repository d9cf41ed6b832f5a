"""Probabilities of the paths of branches through the grid.

Every cell samples one predecessor: the cell of the finer level (beta's first column) or that of its own level. So a
branch, from its last cell backwards, is a random walk to the stem. The walks of two branches coalesce in the first cell
that they share. All functions are exact and differentiable with respect to beta.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from search_spaces.fasterseg.grid import Grid


def finer_probabilities(beta: Sequence[Tensor], grid: Grid) -> list[Tensor]:
    """Probabilities that a cell reads the finer level: (levels,) for every layer.

    0 at level 0, which has no finer level; 1 for the first cell of every other level, which has no other predecessor.
    """
    reference = beta[-1] if len(beta) > 1 else torch.zeros(())
    zeros, one = reference.new_zeros(grid.layers), reference.new_ones(1)
    # A level that has only its first cell has no beta.
    rows = [table.reshape(-1, 2) for table in beta]
    columns = [torch.cat([zeros[:level], one, rows[level][:, 0]]) for level in grid.levels[1:]]
    return list(torch.stack([zeros, *columns], dim=1).unbind())


def visits_together(finer: Sequence[Tensor]) -> Tensor:
    """:func:`visits` of all branches by few kernels, as launches are what a GPU would wait for.

    (layers, levels, levels): for every layer, by the level at which a branch ends, the probabilities of its cells.
    """
    table = torch.stack(list(finer))
    # Rows are cells, columns are their predecessors: the cell of the same level and that of the finer one.
    steps = torch.diag_embed(1 - table) + torch.diag_embed(table[:, 1:], offset=-1)
    current = torch.eye(table.shape[1], dtype=table.dtype, device=table.device)
    layers = [current]
    for step in steps[1:].flip(0).unbind():
        current = current @ step
        layers.append(current)
    return torch.stack(layers[::-1])


def visits(finer: Sequence[Tensor], level: int, grid: Grid) -> list[Tensor]:
    """Probabilities that the branch ending at ``level`` visits each cell: (levels,) for every layer."""
    current = finer[-1].new_zeros(len(grid.scales))
    current[level].fill_(1)  # on the device of beta, without a copy
    layers = [current]
    for layer in range(grid.last, 0, -1):
        moved = current * finer[layer]
        stayed = current - moved
        current = stayed + torch.cat([moved[1:], moved.new_zeros(1)])
        layers.append(current)
    return layers[::-1]


def downsampling(finer: Sequence[Tensor], visited: Sequence[Tensor], level: int) -> list[Tensor]:
    """The probability, for every layer from 1, that the branch enters ``level`` there from the finer level."""
    return [v[level] * f[level] for v, f in zip(visited[1:], finer[1:], strict=True)]


def meetings(finer: Sequence[Tensor], fine: int, coarse: int, grid: Grid) -> list[Tensor]:
    """Probabilities that each cell is the last shared cell of two branches: (levels,) for every layer.

    The branches end at the levels ``fine`` < ``coarse``. From the stem to that cell they have the same path.
    """
    size = len(grid.scales)
    apart = finer[-1].new_zeros(size, size)
    apart[fine, coarse].fill_(1)
    layers = [finer[-1].new_zeros(size)]
    for layer in range(grid.last, 0, -1):
        step = torch.diag(1 - finer[layer]) + torch.diag(finer[layer][1:], -1)
        apart = step.T @ apart @ step
        layers.append(torch.diagonal(apart))
        apart = apart - torch.diag(torch.diagonal(apart))
    return layers[::-1]
