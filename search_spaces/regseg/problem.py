"""RegSeg's search problem: one network whose dilation rates are trained jointly with its weights."""

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
"""Name of the only architecture: used for its mIoU in the log, and as prefix of the saved rates."""

RateLatency = Callable[[Mapping[str, Tensor]], Tensor]
"""A differentiable function from the rates of all searched layers, scalars by name, to a latency in ms, a scalar."""


class RateSearch:
    """Joint search of the rates of all fractional convolutions in ``network``.

    Implements :class:`~dnas.search.problem.JointProblem`. ``upper`` is an upper bound per layer name, or one for all.
    Unless ``allow_gaps``, a rate is also bounded by k / s of the layers before it (RegSeg v3, Eq. 3). This bound
    depends on the rates of those layers and is updated before every epoch, by tracing the network on an image of
    ``input_size`` (height, width); the size only matters for networks that do not accept small images. ``latency`` is
    the expected latency of the rates.

    Raises :class:`UserError` if ``network`` has no fractional convolution or an initial rate exceeds its bound.
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

    def begin_epoch(self, progress: float = 0.0) -> None:
        """Update every layer's bound from the rates of the layers before it, and clamp its rate."""
        # Clamping a rate may lower the bounds of later layers; it converges in at most one round per layer.
        for _ in self.layers:
            before = self._values()
            for name, bound in self._bounds().items():
                self.layers[name].upper = bound
            self.project()
            if self._values() == before:
                return

    @torch.no_grad()
    def settle(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Set the rates of all layers, by name, clamped to the bounds; returns the resulting rates."""
        for name, layer in self.layers.items():
            layer.upper = self._upper[name]
            layer.dilation.fill_(rates[name])
        self.begin_epoch()
        return self._values()

    @torch.no_grad()
    def assign(self, rates: Mapping[str, float]) -> None:
        """Set the rates of all layers, by name; bounds below a rate are raised to it."""
        for name, layer in self.layers.items():
            layer.upper = max(layer.upper, rates[name])
            layer.dilation.fill_(rates[name])

    def limits(self, rates: Mapping[str, float]) -> dict[str, float]:
        """The bounds of all layers at the given rates, by name; the rates stay assigned."""
        self.assign(rates)
        return self._bounds()

    def project(self) -> None:
        """Clamp every rate to its bounds."""
        clamp_dilations(self.weights)

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """One pass of the network; there is nothing to sample."""
        return [Pass(ARCHITECTURE, None)]

    def validation_passes(self) -> Mapping[str, Pass]:
        """One pass of the network at its current rates."""
        return {ARCHITECTURE: Pass(ARCHITECTURE, None)}

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """The network's logits."""
        return {"logits": self.weights(images)}

    def latency(self, forward: Pass) -> Tensor | None:
        """The latency in ms at the current rates; None without a latency function."""
        return None if self._latency is None else self._latency(self._rates())

    def monitor(self) -> dict[str, Any]:
        """Rates and their bounds by layer, field of view in pixels, latency in ms (if there is a latency function)."""
        with torch.no_grad():
            latency = None if self._latency is None else float(self._latency(self._rates()))
        return {
            "latency_ms": {} if latency is None else {ARCHITECTURE: latency},
            "rates": self._values(),
            "upper": {name: layer.upper for name, layer in self.layers.items() if math.isfinite(layer.upper)},
            "field_of_view": field_of_view(self.weights, input_size=self._input_size),
        }

    def logits(self) -> dict[str, Tensor]:
        """The rates, scalars named ``network.LAYER``."""
        return {f"{ARCHITECTURE}.{name}": layer.dilation.detach().clone() for name, layer in self.layers.items()}

    def _check_initial(self, bounds: Mapping[str, float], advice: str) -> None:
        for name, layer in self.layers.items():
            rate = layer.dilation.item()
            if not (1 <= rate <= bounds[name] and math.isfinite(rate)):
                raise UserError(
                    f"layer {name}: given initial dilation rate {rate:g}, expected 1 to {bounds[name]:g}, {advice}"
                )

    def _rates(self) -> dict[str, Tensor]:
        return {name: layer.clamped_dilation() for name, layer in self.layers.items()}

    def _values(self) -> dict[str, float]:
        values = torch.stack([layer.dilation.detach() for layer in self.layers.values()]).tolist()
        return {name: layer.clamped(value) for (name, layer), value in zip(self.layers.items(), values, strict=True)}

    def _bounds(self) -> dict[str, float]:
        if self._allow_gaps:
            return dict(self._upper)
        found = dilation_bounds(self.weights, input_size=self._input_size)
        return {name: min(self._upper[name], found.get(name, math.inf)) for name in self.layers}
