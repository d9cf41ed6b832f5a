"""The architecture of a discrete multi-branch network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import networkx as nx
from torch import nn

from derive.base import VERSION, Architecture, Count
from derive.multi_branch.graph import architecture_graph
from dnas.config import Field, config
from dnas.errors import UserError
from dnas.latency.spec import OperatorSpec
from dnas.networks.multi_branch import BranchSpec, CellSpec, MultiBranchNetwork, MultiBranchSpec
from dnas.ops import OPERATORS
from search_spaces.fasterseg.signatures import network_signatures

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Scale = Annotated[int, Field(ge=8, le=32, multiple_of=8)]


@config
class Cell:
    """One cell: ``operator`` from ``in_channels`` to ``channels``, standing at downsample rate ``scale``.

    As in FasterSeg's Table 7, ``scale`` is the rate of the maps that it reads; with stride 2 it writes at twice that.

    ``in_channels`` may be less than the cell before makes: the leading ones are read. ``layer`` and ``width`` say where
    in the supernet it came from and how wide it was there; ``margin`` is the probability of the operator less that of
    the runner-up.
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
        """Downsample rate of the maps that it writes."""
        return self.scale * self.stride

    @property
    def ratio(self) -> int | float:
        """Expansion ratio: channels per unit of the scale that it writes at."""
        ratio = self.channels / self.out_scale
        return int(ratio) if ratio.is_integer() else ratio


@config
class Branch:
    """The cells from the stem to the branch's end at downsample rate ``scale``, where ``channels`` are read.

    ``path_margin`` is the score of the second best path relative to the chosen one: 1 is a tie.
    """

    scale: Scale
    channels: Count
    cells: tuple[Cell, ...]
    path_margin: float | None = None


@config
class MultiBranchArchitecture(Architecture):
    """A discrete multi-branch network: its stem and head at ``end_ratio``, its branches, and where it came from.

    ``num_classes`` and ``input_size`` (height, width) are those it was searched for.
    """

    end_ratio: Count
    branches: Annotated[tuple[Branch, ...], Field(min_length=1)]
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    kind: Literal["multi_branch"] = "multi_branch"
    num_classes: Count | None = None
    input_size: tuple[Count, Count] | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

    def check(self) -> None:
        """Raise :class:`UserError` unless every cell fits the one before it."""
        for number, branch in enumerate(self.branches):
            scale, channels = 8, 8 * self.end_ratio
            for index, cell in enumerate(branch.cells):
                where = f"branches.{number}.cells.{index}"
                if cell.operator not in OPERATORS:
                    raise UserError(
                        f"{where}.operator: given {cell.operator!r}, expected one of {', '.join(OPERATORS)}"
                    )
                if cell.scale != scale or cell.out_scale > 32:
                    raise UserError(f"{where}.scale: given {cell.scale}, stride {cell.stride}, after maps at {scale}")
                if cell.in_channels > channels:
                    raise UserError(f"{where}.in_channels: given {cell.in_channels}, the cell before makes {channels}")
                if cell.operator == "skip" and cell.stride == 1:
                    raise UserError(f"{where}.operator: a skip of stride 1 does nothing, leave the cell out")
                if cell.operator == "skip" and cell.channels < 2:
                    raise UserError(f"{where}.channels: given {cell.channels}, a skip of stride 2 makes at least 2")
                scale, channels = cell.out_scale, cell.channels
            if scale != branch.scale:
                raise UserError(f"branches.{number}.scale: given {branch.scale}, its cells end at {scale}")
            if branch.channels > channels:
                raise UserError(f"branches.{number}.channels: given {branch.channels}, its last cell makes {channels}")

    def spec(self) -> MultiBranchSpec:
        """What the network is built from."""
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

    def signatures(self, num_classes: int, input_size: tuple[int, int]) -> list[OperatorSpec]:
        """The table entries that its latency is the sum of."""
        return list(network_signatures(self.spec(), num_classes, input_size))

    def drawing(self, title: str = "") -> Drawing:
        """Cells by depth and scale, with the branches that they serve."""
        from derive.multi_branch.drawing import architecture_drawing

        return architecture_drawing(self.graph(), title)

    def caption(self, name: str) -> str:
        """What the drawing shows."""
        text = (
            f"{name}: each box is a cell, with its operator and its output channels (also the box's height). "
            "Left to right is depth; a step down halves the resolution. "
        )
        if any(len(data["branches"]) > 1 for _, data in self.graph().nodes(data=True)):
            text += (
                "Cells with a grey frame are computed once and shared by the branches; coloured ones belong to one. "
            )
        return text + self._note()

    def _note(self) -> str:
        # Below zero where the latency target decided against the likeliest operator.
        margins = [cell.margin for branch in self.branches for cell in branch.cells if cell.margin is not None]
        doubts = [margin for margin in margins if margin >= 0]
        rule = self.provenance.get("rule", "given")
        if not doubts:
            return f"Rule: {rule}."
        return f"Rule: {rule}; the closest choice of an operator was decided by {min(doubts):.3f} in probability."

    def graph(self) -> nx.DiGraph:
        """The architecture as a graph for drawing; see :func:`derive.multi_branch.graph.architecture_graph`."""
        layers = [[cell.layer for cell in branch.cells] for branch in self.branches]
        return architecture_graph(self.spec(), layers)

    def summary(self) -> list[dict[str, Any]]:
        """The branches as plain data, cells in the terms of FasterSeg's Table 7: there ``channels`` is scale * ratio.

        ``out_channels`` is what the cell really makes: twice that where it has stride 2.
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
