"""RegSeg's search space (v3, section 3.4): the dilation rates of a network's convolutions, as real numbers."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import nn
from typing_extensions import Self

from dnas.config import Field, config
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.latency.spec import InventoryItem, OperatorSpec
from dnas.latency.table import LatencyTable
from dnas.networks import network_by_name
from dnas.ops import FractionalConv2d, fractional_layers, make_fractional
from dnas.runs import seed_everything
from dnas.search import JointSearchConfig
from dnas.training import RetrainConfig
from search_spaces.base import SearchSpace, TaskConfig
from search_spaces.regseg.latency import DilationLatency
from search_spaces.regseg.problem import ARCHITECTURE, RateSearch

_Rate = Annotated[float, Field(ge=1, le=4096)]


@config
class SearchedNetwork:
    """The network to search: a name that :func:`dnas.networks.network_by_name` knows, and its options."""

    name: str = "regseg"
    options: dict[str, Any] = Field(default_factory=dict)


@config
class RatesConfig:
    """Which dilation rates are searched, from where, and how far.

    layers: glob or globs of the names of convolutions, of odd square kernels; null for all that are dilated.
    initial: the rate at which all of them begin; null for those of the network as it is.
    upper: the largest rate; null leaves it to ``allow_gaps``.
    allow_gaps: whether a rate may exceed k / s of the layers before it (Eq. 3).
    """

    layers: str | tuple[str, ...] | None = None
    initial: _Rate | None = None
    upper: _Rate | None = None
    allow_gaps: bool = False

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.initial is not None and self.upper is not None and self.initial > self.upper:
            raise ValueError(f"the upper bound {self.upper:g} excludes the initial rate {self.initial:g}")
        return self


@config
class RegSegConfig:
    """A preset of this space.

    task: what its networks are for.
    latency_target_ms: the latency that the network of whole rates is to have by the table, within 5 %; null for none.
    """

    space: Literal["regseg"]
    task: TaskConfig
    latency_target_ms: float | None = Field(default=None, gt=0)
    network: SearchedNetwork = Field(default_factory=SearchedNetwork)
    rates: RatesConfig = Field(default_factory=RatesConfig)
    search: JointSearchConfig = Field(default_factory=JointSearchConfig)
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)


class RegSegSpace(SearchSpace[RegSegConfig]):
    """The space of a :class:`RegSegConfig`."""

    settings_type = RegSegConfig
    requires_table = False
    steered = ARCHITECTURE

    @property
    def search(self) -> JointSearchConfig:
        """How to search."""
        return self.settings.search

    def network(self) -> nn.Module:
        """The network with fresh weights and fractional convolutions at their initial rates, not yet bounded."""
        network, initial = self._fractional(), self.settings.rates.initial
        if initial is not None:
            with torch.no_grad():
                for layer in fractional_layers(network).values():
                    layer.dilation.fill_(initial)
        return network

    def problem(self, table: LatencyTable | None, seed: int) -> RateSearch:
        """The network whose rates are searched, initialised by ``seed``; priced by ``table``, if there is one."""
        seed_everything(mix_seed("weights", seed))
        return self.bounded(self.network(), None if table is None else self.latency(table))

    def bounded(self, network: nn.Module, latency: DilationLatency | None = None) -> RateSearch:
        """The problem of a network with fractional convolutions, within the bounds of this space."""
        wanted = self.settings.rates
        try:
            return RateSearch(network, upper=wanted.upper or math.inf, allow_gaps=wanted.allow_gaps, latency=latency)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    def inventory(self) -> list[InventoryItem]:
        """The network as it begins, and each searched convolution at every whole rate up to ``rates.upper``."""
        network = InventoryItem(self._network_signature(), self._plain)
        specs = [spec for layer in self._signatures().values() for spec in layer]
        return [network, *(InventoryItem(spec, partial(_convolution, spec)) for spec in dict.fromkeys(specs))]

    def rate_choices(self) -> dict[str, int]:
        """Of each searched layer, by name, the largest whole rate that is measured; the smallest is 1."""
        return {name: len(specs) for name, specs in self._signatures().items()}

    def latency(self, table: LatencyTable) -> DilationLatency:
        """The latency of the network as a function of its rates, by ``table``."""
        prices = {name: [table.lookup(spec) for spec in specs] for name, specs in self._signatures().items()}
        # The network was measured as it is built, before rates.initial is put into it.
        initial = {name: layer.rate() for name, layer in fractional_layers(self._fractional()).items()}
        return DilationLatency(prices, table.lookup(self._network_signature()), initial)

    def _plain(self) -> nn.Module:
        described = self.settings.network
        try:
            return network_by_name(described.name, self.num_classes, described.options)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    def _fractional(self) -> nn.Module:
        layers = self.settings.rates.layers
        plain = self._plain()
        try:
            return make_fractional(plain, [layers] if isinstance(layers, str) else layers, upper=math.inf)
        except UserError as error:
            raise UserError(f"{self.name}: rates.layers: {error}") from None

    def _network_signature(self) -> OperatorSpec:
        described = self.settings.network
        # The table's keys are short: options are told apart by a checksum.
        digest = zlib.crc32(json.dumps(described.options, sort_keys=True).encode()) % 10**9
        name = re.sub(r"[^a-z0-9]+", "_", f"network_{described.name.lower()}")
        return OperatorSpec(name[:64], ((3, *self.input_size),), self.num_classes, extras=(("options", digest),))

    def _signatures(self) -> dict[str, list[OperatorSpec]]:
        """Of each searched layer, by name, the signatures at the rates 1 to ``rates.upper``."""
        upper = self.settings.rates.upper
        if upper is None:
            raise UserError(f"{self.name}: rates.upper: latencies are measured up to it, give a number")
        network = self._fractional()
        layers = fractional_layers(network)
        shapes = input_shapes(network, layers, self.input_size)
        rates = range(1, math.ceil(upper) + 1)
        return {
            name: [dilated_signature(layer, shapes[name], rate) for rate in rates] for name, layer in layers.items()
        }


def dilated_signature(layer: FractionalConv2d, shape: tuple[int, int, int], rate: int) -> OperatorSpec:
    """The entry of a convolution that reads (channels, height, width) at an integer rate."""
    extras = (("dilation", rate), ("groups", layer.groups), ("kernel", layer.kernel_size))
    return OperatorSpec("dilated_conv", (shape,), layer.out_channels, layer.stride, extras)


def _convolution(spec: OperatorSpec) -> nn.Module:
    extras = dict(spec.extras)
    rate, kernel = extras["dilation"], extras["kernel"]
    return nn.Conv2d(
        spec.inputs[0][0],
        spec.out_channels,
        kernel,
        spec.stride,
        rate * (kernel // 2),
        rate,
        extras["groups"],
        bias=False,
    )


@torch.no_grad()
def input_shapes(
    network: nn.Module, layers: Mapping[str, nn.Module], size: tuple[int, int]
) -> dict[str, tuple[int, int, int]]:
    """(channels, height, width) of what each layer reads when the network runs on an image of ``size``."""
    found: dict[nn.Module, tuple[int, int, int]] = {}

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        _, channels, height, width = inputs[0].shape
        found[layer] = (channels, height, width)

    with ExitStack() as hooks:
        for layer in layers.values():
            hooks.callback(layer.register_forward_pre_hook(note).remove)
        network.eval()(torch.zeros(1, 3, *size))
    return {name: found[layer] for name, layer in layers.items()}
