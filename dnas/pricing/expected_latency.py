"""The expected latency of a network with choices, exact for independent choices, and its terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnas.latency.spec import OperatorSpec
from dnas.pricing.conditions import Cube, cube_of
from dnas.pricing.inventory import ChoiceInventory


@dataclass(frozen=True)
class Term:
    """A part of the latency: ``prices`` in ms, one axis for each of ``variables``, where ``cube`` holds."""

    cube: Cube
    variables: tuple[str, ...]
    prices: NDArray[np.float64]


def latency_terms(inventory: ChoiceInventory, lookup: Callable[[OperatorSpec], float]) -> list[Term]:
    """The terms whose sum, at one option of every choice, is the latency of that network."""
    sums: dict[tuple[Cube, tuple[str, ...]], NDArray[np.float64]] = {}
    for unit in inventory.units:
        shape = [inventory.sizes[name] for name in unit.variables]
        prices = np.empty(shape)
        for indices, spec in unit.specs.items():
            prices[indices] = lookup(spec)
        for cube in unit.cubes:
            masked = prices.copy()
            for axis, name in enumerate(unit.variables):
                excluded = [o for o in range(shape[axis]) if o not in dict(cube).get(name, {o})]
                np.moveaxis(masked, axis, 0)[excluded] = 0.0
            rest = cube_of({name: allowed for name, allowed in cube if name not in unit.variables})
            key = rest, unit.variables
            sums[key] = sums[key] + masked if key in sums else masked
    return [Term(cube, variables, prices) for (cube, variables), prices in sums.items()]


class ExpectedLatency:
    """A differentiable function from the probabilities of every choice's options to the latency in ms.

    The latency is a sum of products of a price and the probabilities of independent events; so is its expectation.
    ``weights``: a factor of the gradient for every choice (FasterSeg, Eq. 3); 1 where it is missing.
    """

    def __init__(
        self, terms: Sequence[Term], sizes: Mapping[str, int], weights: Mapping[str, float] | None = None
    ) -> None:
        self.sizes = dict(sizes)
        offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
        self._count = sum(sizes.values())
        self._events: dict[frozenset[int], int] = {frozenset(): 0}
        monomials: dict[tuple[int, ...], float] = {}
        for term in terms:
            outer = [self._event(int(offsets[name]) + o for o in allowed) for name, allowed in term.cube]
            for indices in np.ndindex(term.prices.shape):
                inner = [self._event([int(offsets[n]) + i]) for n, i in zip(term.variables, indices, strict=True)]
                key = tuple(sorted(outer + inner))
                monomials[key] = monomials.get(key, 0.0) + float(term.prices[indices])
        self._build(monomials)
        factors = [(weights or {}).get(name, 1.0) for name, size in sizes.items() for _ in range(size)]
        self._gradient_factors = torch.tensor(factors, dtype=torch.float64)

    def _event(self, options: Iterable[int]) -> int:
        key = frozenset(options)
        return self._events.setdefault(key, len(self._events))

    def _build(self, monomials: Mapping[tuple[int, ...], float]) -> None:
        kept = {key: price for key, price in monomials.items() if price != 0.0}
        longest = max(map(len, kept), default=0)
        padded = [[*key, *[0] * (longest - len(key))] for key in kept]
        self._factors = torch.tensor(padded, dtype=torch.long).reshape(len(kept), longest)
        self._prices = torch.tensor(list(kept.values()), dtype=torch.float64)
        membership = torch.zeros(len(self._events), self._count, dtype=torch.float64)
        for options, row in self._events.items():
            membership[row, sorted(options)] = 1.0
        self._membership = membership
        self._constant = torch.zeros(len(self._events), dtype=torch.float64)
        self._constant[0] = 1.0  # the event without options always holds

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """The expected latency in ms, a scalar in float64."""
        flat = torch.cat([probabilities[name] for name in self.sizes]).double()
        self._move(flat.device)
        # The value stays what it is; only the gradient is scaled.
        flat = flat.detach() + self._gradient_factors * (flat - flat.detach())
        events = self._membership @ flat + self._constant
        products = self._prices
        for column in self._factors.unbind(1):
            products = products * events[column]
        return products.sum()

    def at(self, options: Mapping[str, int]) -> float:
        """The latency in ms of the network with these options, indices by name; missing ones are the first."""
        one_hot = {name: torch.zeros(size, dtype=torch.float64) for name, size in self.sizes.items()}
        for name, values in one_hot.items():
            values[options.get(name, 0)] = 1.0
        with torch.no_grad():
            return float(self({name: values.to(self._prices.device) for name, values in one_hot.items()}))

    def _move(self, device: torch.device) -> None:
        if self._prices.device != device:
            self._prices, self._factors = self._prices.to(device), self._factors.to(device)
            self._membership, self._constant = self._membership.to(device), self._constant.to(device)
            self._gradient_factors = self._gradient_factors.to(device)
