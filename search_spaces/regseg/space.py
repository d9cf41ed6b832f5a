"""RegSeg's search space (v3, section 3.4): fractional dilation rates of a network's convolutions."""

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
from dnas.input_channels import input_channels, with_input_channels
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
    """The network to search: name and options as in :func:`dnas.networks.network_by_name`."""

    name: str = "regseg"
    options: dict[str, Any] = Field(default_factory=dict)


@config
class RatesConfig:
    """The searched dilation rates, their initial values and their bounds.

    layers: one or more glob patterns of convolution names, with odd square kernels; null: all dilated convolutions.
    initial: initial rate of all layers; null: the rates of the given network.
    upper: upper bound of all rates; null: no bound other than that of ``allow_gaps``.
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

    task: input size and classes.
    latency_target_ms: target, within 5 %, for the predicted latency of the network with integer rates; null: no target.
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
        """Settings of the search."""
        return self.settings.search

    def network(self) -> nn.Module:
        """A newly initialised network with fractional convolutions at their initial rates, without bounds."""
        network, initial = self._fractional(), self.settings.rates.initial
        if initial is not None:
            with torch.no_grad():
                for layer in fractional_layers(network).values():
                    layer.dilation.fill_(initial)
        return network

    def problem(self, table: LatencyTable | None, seed: int) -> RateSearch:
        """The search problem, with weights initialised from ``seed`` and latencies from ``table`` if there is one."""
        seed_everything(mix_seed("weights", seed))
        return self.bounded(self.network(), None if table is None else self.latency(table))

    def bounded(self, network: nn.Module, latency: DilationLatency | None = None) -> RateSearch:
        """The search problem of a network with fractional convolutions, with the bounds of this space."""
        rates = self.settings.rates
        try:
            return RateSearch(network, upper=rates.upper or math.inf, allow_gaps=rates.allow_gaps, latency=latency)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    def inventory(self) -> list[InventoryItem]:
        """The base network, and each searched convolution at every integer rate up to ``rates.upper``."""
        network = InventoryItem(self._network_signature(), self._plain)
        specs = [spec for layer in self._signatures().values() for spec in layer]
        return [network, *(InventoryItem(spec, partial(_convolution, spec)) for spec in dict.fromkeys(specs))]

    def rate_choices(self) -> dict[str, int]:
        """The largest measured rate of each searched layer, by name; the smallest is 1."""
        return {name: len(specs) for name, specs in self._signatures().items()}

    def latency(self, table: LatencyTable) -> DilationLatency:
        """The latency of the network as a function of its rates, from the entries of ``table``."""
        prices = {name: [table.lookup(spec) for spec in specs] for name, specs in self._signatures().items()}
        # The base network is measured at its own rates, not at rates.initial.
        initial = {name: layer.rate() for name, layer in fractional_layers(self._fractional()).items()}
        return DilationLatency(prices, table.lookup(self._network_signature()), initial)

    def _plain(self) -> nn.Module:
        network_config = self.settings.network
        try:
            network = network_by_name(network_config.name, self.num_classes, network_config.options)
            return with_input_channels(network, self.channels)
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
        network_config = self.settings.network
        # Table keys are short, so a checksum represents the options.
        digest = zlib.crc32(json.dumps(network_config.options, sort_keys=True).encode()) % 10**9
        name = re.sub(r"[^a-z0-9]+", "_", f"network_{network_config.name.lower()}")
        return OperatorSpec(
            name[:64], ((self.channels, *self.input_size),), self.num_classes, extras=(("options", digest),)
        )

    def _signatures(self) -> dict[str, list[OperatorSpec]]:
        """The signatures of each searched layer, by name, at the rates 1 to ``rates.upper``."""
        upper = self.settings.rates.upper
        if upper is None:
            raise UserError(f"{self.name}: rates.upper: given null, expected a number: latencies are measured up to it")
        network = self._fractional()
        layers = fractional_layers(network)
        shapes = input_shapes(network, layers, self.input_size)
        rates = range(1, math.ceil(upper) + 1)
        return {
            name: [dilated_signature(layer, shapes[name], rate) for rate in rates] for name, layer in layers.items()
        }


def dilated_signature(layer: FractionalConv2d, shape: tuple[int, int, int], rate: int) -> OperatorSpec:
    """The signature of a convolution at an integer rate; ``shape`` is its input, (channels, height, width)."""
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
    """Input shape (channels, height, width) of each layer for an image of ``size``."""
    found: dict[nn.Module, tuple[int, int, int]] = {}

    def record(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        _, channels, height, width = inputs[0].shape
        found[layer] = (channels, height, width)

    with ExitStack() as hooks:
        for layer in layers.values():
            hooks.callback(layer.register_forward_pre_hook(record).remove)
        network.eval()(torch.zeros(1, input_channels(network), *size))
    return {name: found[layer] for name, layer in layers.items()}
