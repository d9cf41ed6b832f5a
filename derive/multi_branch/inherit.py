"""Weight inheritance from a supernet to a derived network."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from derive.multi_branch.architecture import Cell, MultiBranchArchitecture
from dnas.input_channels import input_channels, with_input_channels
from dnas.networks.multi_branch import MultiBranchNetwork, scales_below
from search_spaces.fasterseg import MultiResolutionSupernet


@torch.no_grad()
def inherit_weights(supernet: MultiResolutionSupernet, architecture: MultiBranchArchitecture) -> MultiBranchNetwork:
    """The derived network with weights copied from the supernet.

    It computes the same function as the supernet with the one-hot sample of the architecture's choices. The
    architecture must have been decoded from logits of this supernet: every cell needs its ``layer`` and ``width``.
    Raises ``ValueError`` for a cell without them.
    """
    network = MultiBranchNetwork(architecture.spec(), supernet.num_classes).to(next(supernet.parameters()))
    with_input_channels(network.stem, input_channels(supernet.stems))
    ratio, grid = architecture.end_ratio, supernet.grid
    ends = cast("Any", supernet.ends[str(ratio)])
    network.stem.load_state_dict(supernet.stems[str(ratio)].state_dict())
    for branch, path in zip(architecture.branches, network.paths, strict=True):
        for cell, index in zip(branch.cells, path, strict=True):
            network.cells[index] = _extract(supernet, grid.level_of(cell.scale), cell)
    for fuses, branch, spec in zip(network.fuses, architecture.branches, architecture.spec().branches, strict=True):
        for scale in scales_below(branch.scale):
            step = ends.fuse(branch.scale, scale)
            cast("nn.ModuleDict", fuses)[str(scale)] = step.extract(spec.skip_channels(scale, 8 * ratio))
    network.head = copy.deepcopy(ends.head(tuple(branch.scale for branch in architecture.branches)))
    return network.train(supernet.training)


def _extract(supernet: MultiResolutionSupernet, level: int, cell: Cell) -> nn.Module:
    if cell.layer is None or cell.width is None:
        raise ValueError(f"cell {cell.operator} at scale {cell.scale} has no layer or width in the supernet")
    mixed = (supernet.keep if cell.stride == 1 else supernet.down)[f"{level}_{cell.layer}"]
    operator: Any = cast("nn.ModuleDict", mixed)[cell.operator]
    module: nn.Module = operator.extract(cell.in_channels, cell.width, cell.channels)
    return module
