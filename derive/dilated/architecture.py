"""The architecture of a named network with integer dilation rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import networkx as nx
import pydantic
from torch import nn
from typing_extensions import Self

from derive.architecture import VERSION, Architecture, Count
from derive.dilated.graph import dilated_graph
from derive.dilated.rounding import by_block
from dnas.config import Field, config
from dnas.latency.spec import OperatorSpec
from dnas.networks import field_of_view, network_by_name
from dnas.networks.regseg_blocks import DilatedConv
from dnas.ops import fractional_layers, make_fractional, round_dilations
from search_spaces.regseg.space import dilated_signature, input_shapes

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Rate = Annotated[int, Field(ge=1, le=4096)]


@config
class BaseNetwork:
    """Name and options of a network, as in :func:`dnas.networks.network_by_name`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


@config
class DilatedArchitecture(Architecture):
    """A network and the dilation rates of its convolutions, by layer name.

    ``searched_rates`` are the rates before rounding. ``num_classes`` and ``input_size`` (height, width) are those of
    the search.
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

    def check(self) -> None:
        """Raise :class:`UserError` if the network does not exist or lacks one of the layers."""
        self.build(self.num_classes or 2)

    def build(self, num_classes: int) -> nn.Module:
        """The network: (N, 3, H, W) images -> logits (N, num_classes, H, W).

        Branches of a D block with equal rates are merged into one convolution (RegSeg, section 3.2). Raises
        :class:`UserError` for an unknown network or layer.
        """
        network = with_rates(self._plain(num_classes), self.rates)
        for module in network.modules():
            if isinstance(module, DilatedConv):
                module.merge_equal()
        return network

    def signatures(self, num_classes: int, input_size: tuple[int, int]) -> list[OperatorSpec]:
        """The dilated convolutions at their rates; the latency of all other layers is a constant of the space."""
        network = make_fractional(self._plain(num_classes), list(self.rates), upper=math.inf)
        shapes = input_shapes(network, fractional_layers(network), input_size)
        layers = fractional_layers(network)
        return [dilated_signature(layers[name], shapes[name], rate) for name, rate in self.rates.items()]

    def summary(self) -> list[dict[str, Any]]:
        """The rates of every block, before and after rounding."""
        searched, rounded = by_block(self.searched_rates), by_block(self.rates)
        return [
            {"block": block, "searched_rates": searched.get(block, []), "rates": rates}
            for block, rates in rounded.items()
        ]

    def drawing(self, title: str = "") -> Drawing:
        """The dilated blocks with their rates and fields of view."""
        from derive.dilated.drawing import dilated_drawing

        return dilated_drawing(self.graph(), title)

    def caption(self, name: str) -> str:
        """Caption of the drawing."""
        return (
            f"{name}: the dilated blocks with the dilation rates of their branches, from the stem (left) to the head "
            "(right); darker blue means a larger rate. The bar below a block is the field of view of its output in "
            f"pixels. Field of view of the network: {self.field_of_view()} pixels."
        )

    def graph(self) -> nx.DiGraph:
        """The dilated blocks as a graph for drawing; see :func:`derive.dilated.graph.dilated_graph`."""
        return dilated_graph(with_rates(self._plain(self.num_classes or 2), self.rates), self.rates)

    def field_of_view(self) -> int:
        """Field of view in pixels; that of the backbone if the network has one."""
        return field_of_view(self.build(self.num_classes or 2))

    def _plain(self, num_classes: int) -> nn.Module:
        return network_by_name(self.network.name, num_classes, self.network.options)


def with_rates(network: nn.Module, rates: Mapping[str, int]) -> nn.Module:
    """A copy of ``network`` in which the convolutions named in ``rates`` have these dilation rates."""
    return round_dilations(make_fractional(network, list(rates), upper=math.inf), lambda _: rates)
