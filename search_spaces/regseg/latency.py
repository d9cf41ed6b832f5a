"""Latency of a network as a function of its fractional dilation rates, from measurements at integer rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dnas.errors import UserError


class DilationLatency:
    """A function from rates, scalar tensors by layer name, to the latency of the network in ms.

    ``prices``: per layer, the latency in ms at the rates 1, 2, 3, ..., interpolated linearly, so that the gradient of
    a rate is the slope between the two adjacent integer rates. ``network``: latency in ms of the whole network at the
    ``initial`` rates.

    rest_ms: latency in ms of all other layers.
    """

    def __init__(self, prices: Mapping[str, Sequence[float]], network: float, initial: Mapping[str, float]) -> None:
        if missing := [name for name in prices if not prices[name]]:
            raise UserError(f"no latency for any rate of {', '.join(missing)}")
        self.prices = {name: torch.tensor(list(values), dtype=torch.float64) for name, values in prices.items()}
        start = sum(float(interpolated(self.prices[name], torch.tensor(rate))) for name, rate in initial.items())
        self.rest_ms = network - start

    def __call__(self, rates: Mapping[str, Tensor]) -> Tensor:
        """The latency in ms, a scalar."""
        scalars = torch.stack(list(rates.values())).cpu().unbind()  # the host waits for the device once
        latencies = [interpolated(self.prices[name], rate) for name, rate in zip(rates, scalars, strict=True)]
        return torch.stack(latencies).sum() + self.rest_ms


def interpolated(prices: Tensor, rate: Tensor) -> Tensor:
    """Linear interpolation of ``prices`` (rates,), at the rates 1, 2, ..., at the scalar ``rate`` within this range."""
    last = len(prices)
    if last == 1:
        return prices[0] + 0 * rate
    lower = int(rate.detach().floor().clamp(1, last - 1))
    return torch.lerp(prices[lower - 1], prices[lower], rate.to(prices.dtype) - lower)
