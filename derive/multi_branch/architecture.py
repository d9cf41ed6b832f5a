"""The architecture of a discrete multi-branch network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import networkx as nx
from torch import nn

from derive.architecture import VERSION, Architecture, Count
from derive.multi_branch.graph import architecture_graph
from dnas.config import Field, config
from dnas.errors import UserError
from dnas.input_channels import RGB
from dnas.latency.spec import OperatorSpec
from dnas.networks.multi_branch import BranchSpec, CellSpec, MultiBranchNetwork, MultiBranchSpec
from dnas.ops import OPERATORS
from search_spaces.fasterseg.signatures import network_signatures

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_MOST_WEIGHTS, _MOST_CELLS = 10**9, 500
Scale = Annotated[int, Field(ge=8, le=32, multiple_of=8)]


@config
class Cell:
    """One cell: ``operator`` with ``in_channels`` input and ``channels`` output channels.

    ``scale`` is the downsampling rate of its input, as in FasterSeg's Table 7; with stride 2 the output has twice that
    rate. ``in_channels`` may be less than the output channels of the cell before: the leading ones are read. ``layer``
    and ``width`` are its layer and its width in the supernet; ``margin`` is the probability of the operator minus that
    of the runner-up.
    """

    operator: str
    scale: Scale
    in_channels: Count
    channels: Count
    stride: Annotated[int, Field(ge=1, le=2)] = 1
    layer: int | None = None
    width: Count | None = None
    margin: float | None = None

    @property
    def out_scale(self) -> int:
        """Downsampling rate of the output."""
        return self.scale * self.stride

    @property
    def ratio(self) -> int | float:
        """Expansion ratio: output channels divided by the output scale."""
        ratio = self.channels / self.out_scale
        return int(ratio) if ratio.is_integer() else ratio


@config
class Branch:
    """The cells from the stem to the branch's end at downsampling rate ``scale``, where ``channels`` are read.

    ``path_margin`` is the score of the second best path relative to the selected one: 1 is a tie.
    """

    scale: Scale
    channels: Count
    cells: tuple[Cell, ...]
    path_margin: float | None = None


@config
class MultiBranchArchitecture(Architecture):
    """A discrete multi-branch network: its branches, with stem and head at the expansion ratio ``end_ratio``.

    ``num_classes`` and ``input_size`` (height, width) are those of the search.
    """

    end_ratio: Count
    branches: Annotated[tuple[Branch, ...], Field(min_length=1)]
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    kind: Literal["multi_branch"] = "multi_branch"
    num_classes: Count | None = None
    input_size: tuple[Count, Count] | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

    def check(self) -> None:
        """Raise :class:`UserError` if a cell does not fit the one before it, or if the cells have too many weights."""
        cells = [cell for branch in self.branches for cell in branch.cells]
        weights = 9 * sum(cell.channels * (cell.in_channels + cell.channels) for cell in cells)
        weights += 9 * sum(branch.channels**2 for branch in self.branches) + 9 * (8 * self.end_ratio) ** 2
        if weights > _MOST_WEIGHTS or len(cells) > _MOST_CELLS:
            raise UserError(
                f"given {len(cells)} cells with {weights} weights, expected at most {_MOST_CELLS} and {_MOST_WEIGHTS}"
            )
        for number, branch in enumerate(self.branches):
            scale, channels = 8, 8 * self.end_ratio
            for index, cell in enumerate(branch.cells):
                where = f"branches.{number}.cells.{index}"
                if cell.operator not in OPERATORS:
                    raise UserError(
                        f"{where}.operator: given {cell.operator!r}, expected one of {', '.join(OPERATORS)}"
                    )
                if cell.scale != scale or cell.out_scale > 32:
                    raise UserError(
                        f"{where}.scale: given {cell.scale} with stride {cell.stride}, expected {scale}, the output "
                        "scale of the cell before, and at most 32 after the stride"
                    )
                if cell.in_channels > channels:
                    raise UserError(
                        f"{where}.in_channels: given {cell.in_channels}, expected at most {channels}, the output "
                        "channels of the cell before"
                    )
                if cell.operator == "skip" and cell.stride == 1:
                    raise UserError(f"{where}.operator: a skip of stride 1 does nothing, leave the cell out")
                if cell.operator == "skip" and cell.channels < 2:
                    raise UserError(
                        f"{where}.channels: given {cell.channels}, expected at least 2 for a skip of stride 2"
                    )
                scale, channels = cell.out_scale, cell.channels
            if scale != branch.scale:
                raise UserError(
                    f"branches.{number}.scale: given {branch.scale}, expected {scale}, the scale of its last cell"
                )
            if branch.channels > channels:
                raise UserError(
                    f"branches.{number}.channels: given {branch.channels}, expected at most {channels}, the output "
                    "channels of its last cell"
                )

    def spec(self) -> MultiBranchSpec:
        """The specification that the network is built from."""
        return MultiBranchSpec(
            self.end_ratio,
            tuple(
                BranchSpec(
                    branch.scale,
                    branch.channels,
                    tuple(CellSpec(c.operator, c.out_scale, c.in_channels, c.channels, c.stride) for c in branch.cells),
                )
                for branch in self.branches
            ),
        )

    def build(self, num_classes: int) -> nn.Module:
        """The network: (N, 3, H, W) images -> logits (N, num_classes, H, W). Shared prefixes are built once."""
        return MultiBranchNetwork(self.spec(), num_classes)

    def signatures(self, num_classes: int, input_size: tuple[int, int], channels: int = RGB) -> list[OperatorSpec]:
        """The signatures of its operators; its latency is the sum of their table entries."""
        return list(network_signatures(self.spec(), num_classes, input_size, channels))

    def drawing(self, title: str = "") -> Drawing:
        """A drawing of the cells by depth and scale, coloured by branch."""
        from derive.multi_branch.drawing import architecture_drawing

        return architecture_drawing(self.graph(), title)

    def caption(self, name: str) -> str:
        """Caption of the drawing."""
        text = (
            f"{name}: each box is a cell with its operator and output channels; its height grows with the channels. "
            "Depth increases from left to right; each row down halves the resolution. "
        )
        if any(len(data["branches"]) > 1 for _, data in self.graph().nodes(data=True)):
            text += "Cells with a grey frame are shared by several branches; coloured ones belong to a single branch. "
        return text + self._note()

    def _note(self) -> str:
        margins = [cell.margin for branch in self.branches for cell in branch.cells if cell.margin is not None]
        # Negative where the latency target overruled the most likely operator.
        argmax_margins = [margin for margin in margins if margin >= 0]
        rule = self.provenance.get("rule", "given")
        if not argmax_margins:
            return f"Rule: {rule}."
        return f"Rule: {rule}; smallest probability margin of an operator choice: {min(argmax_margins):.3f}."

    def graph(self) -> nx.DiGraph:
        """The architecture as a graph for drawing; see :func:`derive.multi_branch.graph.architecture_graph`."""
        layers = [[cell.layer for cell in branch.cells] for branch in self.branches]
        return architecture_graph(self.spec(), layers)

    def summary(self) -> list[dict[str, Any]]:
        """The branches as plain data, with cells as in FasterSeg's Table 7, where ``channels`` is scale * ratio.

        ``out_channels`` is the cell's number of output channels: twice ``channels`` with stride 2.
        """
        return [
            {
                "scale": branch.scale,
                "cells": [
                    {
                        "operator": cell.operator,
                        "scale": cell.scale,
                        "ratio": cell.ratio,
                        "channels": cell.channels // cell.stride,
                        "stride": cell.stride,
                        "out_channels": cell.channels,
                    }
                    for cell in branch.cells
                ],
            }
            for branch in self.branches
        ]
