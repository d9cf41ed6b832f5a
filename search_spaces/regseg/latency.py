"""The latency of a network as a function of its dilation rates, from a table of integer rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dnas.errors import UserError


class DilationLatency:
    """Rates, scalar tensors by layer name -> latency of the network in ms.

    ``prices`` holds for each layer its latency in ms at the rates 1, 2, 3 and so on, between which it is interpolated;
    ``network`` is the latency of the whole network in ms at ``initial`` rates. The gradient of a rate is the slope
    between the two integer rates around it.

    rest_ms: the latency in ms of everything but the priced layers.
    """

    def __init__(self, prices: Mapping[str, Sequence[float]], network: float, initial: Mapping[str, float]) -> None:
        if short := [name for name in prices if not prices[name]]:
            raise UserError(f"no latency for any rate of {', '.join(short)}")
        self.prices = {name: torch.tensor(list(values), dtype=torch.float64) for name, values in prices.items()}
        start = sum(float(interpolated(self.prices[name], torch.tensor(rate))) for name, rate in initial.items())
        self.rest_ms = network - start

    def __call__(self, rates: Mapping[str, Tensor]) -> Tensor:
        """The latency in ms, a scalar."""
        changed = [interpolated(self.prices[name].to(rate.device), rate) for name, rate in rates.items()]
        return torch.stack(changed).sum() + self.rest_ms


def interpolated(prices: Tensor, rate: Tensor) -> Tensor:
    """``prices`` (rates,), of the rates 1, 2, ..., linearly interpolated at ``rate``, a scalar within them."""
    last = len(prices)
    if last == 1:
        return prices[0] + 0 * rate
    lower = int(rate.detach().floor().clamp(1, last - 1))
    return torch.lerp(prices[lower - 1], prices[lower], rate.to(prices.dtype) - lower)
