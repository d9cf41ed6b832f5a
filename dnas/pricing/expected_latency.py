"""The expected latency of a network with choices, exact for independent choices, and its terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnas.latency.spec import OperatorSpec
from dnas.pricing.conditions import ALWAYS, Cube, cube_of
from dnas.pricing.inventory import ChoiceInventory


@dataclass(frozen=True)
class Term:
    """A part of the latency: ``prices`` in ms, one axis for each of ``variables``, where one of ``cubes`` holds.

    The cubes are disjoint and do not name the variables.
    """

    cubes: tuple[Cube, ...]
    variables: tuple[str, ...]
    prices: NDArray[np.float64]

    @property
    def always(self) -> bool:
        """Whether there is no condition."""
        return self.cubes == (ALWAYS,)


def latency_terms(inventory: ChoiceInventory, lookup: Callable[[OperatorSpec], float]) -> list[Term]:
    """The terms whose sum, at one option of every choice, is the latency of that network."""
    sums: dict[tuple[tuple[Cube, ...], tuple[str, ...]], NDArray[np.float64]] = {}
    for unit in inventory.units:
        shape = [inventory.sizes[name] for name in unit.variables]
        prices = np.empty(shape)
        for indices, spec in unit.specs.items():
            prices[indices] = lookup(spec)
        # What a cube says about a variable of the price becomes zeros in the prices.
        parts: dict[Cube, list[Cube]] = {}
        for cube in unit.cubes:
            about = cube_of({name: allowed for name, allowed in cube if name in unit.variables})
            parts.setdefault(about, []).append(
                cube_of({name: allowed for name, allowed in cube if name not in unit.variables})
            )
        for about, cubes in parts.items():
            masked = prices.copy()
            for name, allowed in about:
                axis = unit.variables.index(name)
                np.moveaxis(masked, axis, 0)[[o for o in range(shape[axis]) if o not in allowed]] = 0.0
            key = tuple(cubes), unit.variables
            sums[key] = sums[key] + masked if key in sums else masked
    return [Term(cubes, variables, prices) for (cubes, variables), prices in sums.items()]


class ExpectedLatency:
    """A differentiable function from the probabilities of every choice's options to the latency in ms.

    The latency is a sum of products of a price and the probabilities of independent events; so is its expectation.
    An event is one option of a choice, or one of several, or the condition of a term, whose probability is the sum of
    those of its disjoint cubes. ``weights``: a factor of the gradient for every choice (FasterSeg, Eq. 3), else 1.
    """

    def __init__(
        self, terms: Sequence[Term], sizes: Mapping[str, int], weights: Mapping[str, float] | None = None
    ) -> None:
        self.sizes = dict(sizes)
        self._offsets = {name: int(begin) for name, begin in zip(sizes, np.cumsum([0, *sizes.values()]), strict=False)}
        count = sum(sizes.values())
        self._events: dict[frozenset[int], int] = {frozenset(): 0}
        conditions: dict[tuple[Cube, ...], int] = {}
        monomials: dict[tuple[int, ...], float] = {}
        for term in terms:
            outer = [] if term.always else [-1 - conditions.setdefault(term.cubes, len(conditions))]
            for indices in np.ndindex(term.prices.shape):
                inner = [self._event(name, [index]) for name, index in zip(term.variables, indices, strict=True)]
                key = tuple(sorted(outer + inner))
                monomials[key] = monomials.get(key, 0.0) + float(term.prices[indices])
        cubes = [(cube, number) for of, number in conditions.items() for cube in of]
        factors = [[self._event(name, allowed) for name, allowed in cube] for cube, _ in cubes]
        # Conditions are numbered from -1 downwards; they come after the events.
        behind = len(self._events) - 1
        kept = {tuple(one if one >= 0 else behind - one for one in key): ms for key, ms in monomials.items() if ms}
        gradient = [(weights or {}).get(name, 1.0) for name, size in sizes.items() for _ in range(size)]
        membership = torch.zeros(len(self._events), count, dtype=torch.float64)
        for options, row in self._events.items():
            membership[row, sorted(options)] = 1.0
        constant = torch.zeros(len(self._events), dtype=torch.float64)
        constant[0] = 1.0  # the event without options always holds
        self._tensors = {
            "gradient": torch.tensor(gradient, dtype=torch.float64),
            "membership": membership,
            "constant": constant,
            "cubes": _padded(factors),
            "owners": torch.tensor([number for _, number in cubes], dtype=torch.long),
            "conditions": torch.zeros(len(conditions), dtype=torch.float64),
            "factors": _padded([list(key) for key in kept]),
            "prices": torch.tensor(list(kept.values()), dtype=torch.float64),
        }

    def _event(self, name: str, options: Iterable[int]) -> int:
        key = frozenset(self._offsets[name] + option for option in options)
        return self._events.setdefault(key, len(self._events))

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """The expected latency in ms, a scalar in float64."""
        flat = torch.cat([probabilities[name] for name in self.sizes]).double()
        if self._tensors["prices"].device != flat.device:
            self._tensors = {name: tensor.to(flat.device) for name, tensor in self._tensors.items()}
        found = self._tensors
        # The value stays what it is; only the gradient is scaled.
        flat = flat.detach() + found["gradient"] * (flat - flat.detach())
        events = found["membership"] @ flat + found["constant"]
        cubes = _products(events, found["cubes"])
        conditions = found["conditions"].index_add(0, found["owners"], cubes)
        return (found["prices"] * _products(torch.cat([events, conditions]), found["factors"])).sum()

    def at(self, options: Mapping[str, int]) -> float:
        """The latency in ms of the network with these options, indices by name; missing ones are the first."""
        one_hot = {name: torch.zeros(size, dtype=torch.float64) for name, size in self.sizes.items()}
        for name, values in one_hot.items():
            values[options.get(name, 0)] = 1.0
        with torch.no_grad():
            return float(self({name: values.to(self._tensors["prices"].device) for name, values in one_hot.items()}))


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(rows, longest row): indices of events; 0 is the event that always holds."""
    longest = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long).reshape(-1, longest)


def _products(events: Tensor, factors: Tensor) -> Tensor:
    """(rows,): the product of the events in every row of ``factors``."""
    product = events.new_ones(len(factors))
    for column in factors.unbind(1):
        product = product * events[column]
    return product
