"""The Architecture: a discrete network as an explicit, versioned YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import networkx as nx
from torch import nn

from derive.dilated import DilatedArchitecture
from derive.graph import architecture_graph
from dnas.config import Field, config, parse_config, to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml, read_yaml, write_text
from dnas.latency.spec import OperatorSpec
from dnas.networks.multi_branch import BranchSpec, CellSpec, MultiBranchNetwork, MultiBranchSpec
from dnas.networks.signatures import network_signatures
from dnas.ops import OPERATORS

VERSION = 1
Count = Annotated[int, Field(ge=1, le=100_000)]
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
class Architecture:
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

    @classmethod
    def load(cls, path: str | Path) -> AnyArchitecture:
        """Read and check an architecture file of either kind; see :func:`architecture_from`."""
        return architecture_from(read_yaml(path, "architecture file"), str(path))

    def save(self, path: str | Path) -> None:
        """Write the architecture as YAML, atomically."""
        write_text(path, dump_yaml(_without_none(to_mapping(self))))

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

    def graph(self) -> nx.DiGraph:
        """The architecture as a graph for drawing; see :func:`derive.graph.architecture_graph`."""
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


AnyArchitecture: TypeAlias = Architecture | DilatedArchitecture
"""Whatever an architecture file describes: both have ``save``, ``build``, ``num_classes``, ``input_size``."""


def architecture_from(values: Mapping[str, Any], source: str) -> AnyArchitecture:
    """What plain containers describe; a mistake in them is a :class:`UserError` that begins with ``source``."""
    version, kind = values.get("version"), values.get("kind", "multi_branch")
    if version is None:
        raise UserError(f"{source}: no version, so no architecture, or a truncated one; dnas derive makes it anew")
    if version != VERSION:
        raise UserError(f"{source}: architecture version {version!r}, this dnas reads version {VERSION}")
    architecture: AnyArchitecture
    if kind == "dilated":
        architecture = parse_config(DilatedArchitecture, values, source)
    else:
        architecture = parse_config(Architecture, values, source)
    try:
        architecture.check()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return architecture


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
