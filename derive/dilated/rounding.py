"""Rounding of searched dilation rates to integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from dnas.errors import UserError
from dnas.ops import floor_and_ceil, layers_by_block
from search_spaces.regseg import RateSearch

Number = TypeVar("Number", int, float)


def round_rates(problem: RateSearch, searched: Mapping[str, float]) -> dict[str, int]:
    """Integer rates by RegSeg's rule: floor of a block's smaller rate, ceil of the larger one (v3, section 3.4).

    With four branches the smaller two are rounded down and the larger two up; see :func:`dnas.ops.floor_and_ceil`. So
    the field of view does not shrink. A rate at its bound k / s may exceed it by less than 1 after rounding: the
    paper's rule does not clip. Assigns the integer rates to ``problem``. Raises :class:`UserError` for rates of other
    layers.
    """
    if searched.keys() != problem.layers.keys():
        raise UserError(
            f"searched rates of {', '.join(sorted(searched)) or 'no layer'}: "
            f"expected those of {', '.join(sorted(problem.layers))}"
        )
    rounded = floor_and_ceil(searched)
    problem.assign(rounded)
    return rounded


def by_block(rates: Mapping[str, Number]) -> dict[str, tuple[Number, ...]]:
    """Group rates by block: layer name -> rate becomes block name -> rates; see :func:`dnas.ops.block_of`."""
    return {block: tuple(rates[layer] for layer in layers) for block, layers in layers_by_block(rates).items()}


def round_to_target(
    searched: Mapping[str, float],
    rounded: Mapping[str, int],
    prices: Mapping[str, Sequence[float]],
    bounds: tuple[float, float],
) -> dict[str, int] | None:
    """The integer rates nearest to the searched ones whose total latency is within ``bounds``; None if infeasible.

    ``prices``: per layer, the latency in ms at the rates 1, 2, 3, .... ``bounds``: lowest and highest sum in ms.
    ``rounded``: the rates by RegSeg's rule, preferred where the latency allows. Solved as an integer linear program
    that minimises the sum of |log(rate / searched)| over the layers, counting rates of ``rounded`` as zero.
    """
    variables = [(name, rate) for name, values in prices.items() for rate in range(1, len(values) + 1)]
    cost = [0.0 if rate == rounded[name] else abs(math.log(rate / searched[name])) + 1e-3 for name, rate in variables]
    ms = np.array([prices[name][rate - 1] for name, rate in variables])
    one_rate_per_layer = np.array([[float(name == layer) for name, _ in variables] for layer in prices])
    solution = milp(
        cost,
        integrality=np.ones(len(variables), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_rate_per_layer, 1, 1), LinearConstraint(ms[None], *bounds)],
    )
    if solution.x is None:
        return None
    return {name: rate for (name, rate), chosen in zip(variables, solution.x, strict=True) if chosen > 0.5}
