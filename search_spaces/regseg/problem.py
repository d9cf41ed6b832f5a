"""RegSeg's problem: one network whose dilation rates are trained with its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.networks import dilation_bounds, field_of_view
from dnas.ops import clamp_dilations, fractional_layers
from dnas.search.problem import Pass

ARCHITECTURE = "network"
"""Name of the one architecture: of its mIoU in the log, and the first part of the name of every rate that is kept."""

RateLatency = Callable[[Mapping[str, Tensor]], Tensor]
"""From the rates of all searched layers, scalars by name, to a latency in ms, a scalar with gradient."""


class RateSearch:
    """The rates of all fractional convolutions in ``network``; see :class:`~dnas.search.problem.JointProblem`.

    ``upper`` holds a bound for each layer by name, or one for all. Unless ``allow_gaps``, a rate is kept below k / s of
    the layers before it too (RegSeg v3, Eq. 3). That depends on the rates before, so it is found anew before every
    epoch, on an image of ``input_size`` (height, width), which matters only to networks that refuse small ones.
    ``latency`` prices the rates.

    Raises :class:`UserError` when ``network`` has no fractional convolution, or a bound excludes a rate as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        upper: float | Mapping[str, float] = math.inf,
        allow_gaps: bool = False,
        input_size: tuple[int, int] = (64, 64),
        latency: RateLatency | None = None,
    ) -> None:
        self.layers = fractional_layers(network)
        if not self.layers:
            raise UserError("the network has no fractional convolution to search: call make_fractional first")
        self._upper = {name: upper if isinstance(upper, (int, float)) else upper[name] for name in self.layers}
        self._allow_gaps, self._input_size, self._latency = allow_gaps, input_size, latency
        self.weights: nn.Module = network
        self.architecture: nn.Module = nn.ParameterList(layer.dilation for layer in self.layers.values())
        self._check_initial(self._upper, "rates.upper: lower the initial rate, or raise the bound")
        if not allow_gaps:
            advice = "k / s of the layers before it (Eq. 3): lower the initial rate, or set rates.allow_gaps=true"
            self._check_initial(self._bounds(), advice)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Set every layer's bound to what the rates before it allow now, and put its rate within."""
        # A rate that its new bound lowers may lower bounds behind it; a chain of layers settles in as many rounds.
        for _ in self.layers:
            before = self._values()
            for name, bound in self._bounds().items():
                self.layers[name].upper = bound
            self.project()
            if self._values() == before:
                return

    @torch.no_grad()
    def settle(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Set the rates of all layers, by name, as near to ``rates`` as the bounds allow; returns what they are now."""
        for name, layer in self.layers.items():
            layer.upper = self._upper[name]
            layer.dilation.fill_(rates[name])
        self.begin_epoch()
        return self._values()

    @torch.no_grad()
    def assign(self, rates: Mapping[str, float]) -> None:
        """Set the rates of all layers, by name; a bound that a rate exceeds is moved to it."""
        for name, layer in self.layers.items():
            layer.upper = max(layer.upper, rates[name])
            layer.dilation.fill_(rates[name])

    def limits(self, rates: Mapping[str, float]) -> dict[str, float]:
        """The bounds of all layers where they have these rates, by name; the problem is left at them."""
        self.assign(rates)
        return self._bounds()

    def project(self) -> None:
        """Put every rate within its bounds."""
        clamp_dilations(self.weights)

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """The network as it is."""
        return [Pass(ARCHITECTURE, None)]

    def validation_passes(self) -> Mapping[str, Pass]:
        """The network as it is."""
        return {ARCHITECTURE: Pass(ARCHITECTURE, None)}

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """The network's logits."""
        return {"logits": self.weights(images)}

    def latency(self, forward: Pass) -> Tensor | None:
        """The price of the rates, where they have one."""
        return None if self._latency is None else self._latency(self._rates())

    def monitor(self) -> dict[str, Any]:
        """Rates and their bounds by layer, field of view in pixels, latency in ms (nothing where there is no price)."""
        with torch.no_grad():
            latency = None if self._latency is None else float(self._latency(self._rates()))
        return {
            "latency_ms": {} if latency is None else {ARCHITECTURE: latency},
            "rates": self._values(),
            "upper": {name: layer.upper for name, layer in self.layers.items() if math.isfinite(layer.upper)},
            "field_of_view": field_of_view(self.weights, input_size=self._input_size),
        }

    def logits(self) -> dict[str, Tensor]:
        """The rates as ``network.LAYER``, scalars."""
        return {f"{ARCHITECTURE}.{name}": layer.dilation.detach().clone() for name, layer in self.layers.items()}

    def _check_initial(self, bounds: Mapping[str, float], advice: str) -> None:
        for name, layer in self.layers.items():
            rate = layer.dilation.item()
            if not (1 <= rate <= bounds[name] and math.isfinite(rate)):
                raise UserError(
                    f"layer {name}: its initial dilation rate {rate:g} is outside of 1 to {bounds[name]:g}, {advice}"
                )

    def _rates(self) -> dict[str, Tensor]:
        return {name: layer.clamped_dilation() for name, layer in self.layers.items()}

    def _values(self) -> dict[str, float]:
        return {name: layer.rate() for name, layer in self.layers.items()}

    def _bounds(self) -> dict[str, float]:
        if self._allow_gaps:
            return dict(self._upper)
        found = dilation_bounds(self.weights, input_size=self._input_size)
        return {name: min(self._upper[name], found.get(name, math.inf)) for name in self.layers}
