"""An architecture that is a known network with whole dilation rates, and how searched rates become whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import networkx as nx
import pydantic
from torch import nn
from typing_extensions import Self

from derive.dilated_graph import dilated_graph
from dnas.config import Field, config, to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml, write_text
from dnas.networks import field_of_view, network_by_name
from dnas.networks.regseg_blocks import DilatedConv
from dnas.ops import floor_and_ceil, make_fractional, round_dilations
from dnas.search import RateSearch

VERSION = 1
Count = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[int, Field(ge=1, le=4096)]


@config
class BaseNetwork:
    """A network by a name that :func:`dnas.networks.network_by_name` knows, with its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


@config
class DilatedArchitecture:
    """A network whose convolutions named in ``rates`` have these dilation rates, and where it came from.

    ``searched_rates`` are those that were rounded. ``num_classes`` and ``input_size`` (height, width) are those it was
    searched for.
    """

    network: BaseNetwork
    rates: Annotated[dict[str, Rate], Field(min_length=1)]
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    kind: Literal["dilated"] = "dilated"
    searched_rates: dict[str, float] = Field(default_factory=dict)
    num_classes: Count | None = None
    input_size: tuple[Count, Count] | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.searched_rates and self.searched_rates.keys() != self.rates.keys():
            raise ValueError("searched_rates: expected the same layers as in rates, or none")
        return self

    def save(self, path: str | Path) -> None:
        """Write the architecture as YAML, atomically."""
        values = {key: value for key, value in to_mapping(self).items() if value is not None}
        write_text(path, dump_yaml(values))

    def check(self) -> None:
        """Raise :class:`UserError` unless the network exists and has the layers."""
        self.build(self.num_classes or 2)

    def build(self, num_classes: int) -> nn.Module:
        """The network: (N, 3, H, W) images -> logits (N, num_classes, H, W).

        Branches of a D block whose rates have become equal are one convolution (RegSeg, section 3.2). Raises
        :class:`UserError` for an unknown network or layer.
        """
        network = with_rates(network_by_name(self.network.name, num_classes, self.network.options), self.rates)
        for part in network.modules():
            if isinstance(part, DilatedConv):
                part.merge_equal()
        return network

    def graph(self) -> nx.DiGraph:
        """The dilated blocks as a graph for drawing; see :func:`derive.dilated_graph.dilated_graph`."""
        network = network_by_name(self.network.name, self.num_classes or 2, self.network.options)
        return dilated_graph(with_rates(network, self.rates), self.rates)

    def field_of_view(self) -> int:
        """Field of view in pixels; of the backbone where the network has one."""
        return field_of_view(self.build(self.num_classes or 2))


def with_rates(network: nn.Module, rates: Mapping[str, int]) -> nn.Module:
    """A copy of ``network`` whose convolutions named in ``rates`` are dilated so; other rates stay."""
    return round_dilations(make_fractional(network, list(rates), upper=math.inf), lambda _: rates)


def round_rates(problem: RateSearch, searched: Mapping[str, float]) -> dict[str, int]:
    """Whole rates by RegSeg's rule, floor of the smaller and ceil of the larger of a block (v3, section 3.4).

    Of four branches the smaller two are rounded down and the larger two up; see :func:`dnas.ops.floor_and_ceil`. So the
    derived network sees at least as far as the searched one. A rate that came to rest at its bound k / s may exceed it
    by less than 1: the paper's rule does not cut it. The problem is left at the whole rates. Raises :class:`UserError`
    for rates of other layers.
    """
    if searched.keys() != problem.layers.keys():
        raise UserError(
            f"searched rates of {', '.join(sorted(searched)) or 'no layer'}: "
            f"expected those of {', '.join(sorted(problem.layers))}"
        )
    whole = floor_and_ceil(searched)
    problem.assign(whole)
    return whole
