"""From searched dilation rates to integer ones."""

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
    """Whole rates by RegSeg's rule, floor of the smaller and ceil of the larger of a block (v3, section 3.4).

    Of four branches the smaller two are rounded down and the larger two up; see :func:`dnas.ops.floor_and_ceil`. So the
    derived network sees at least as far as the searched one. A rate that came to rest at its bound k / s may exceed it
    by less than 1: the paper's rule does not cut it. The problem is left at the whole rates. Raises :class:`UserError`
    for rates of other layers.
    """
    if searched.keys() != problem.layers.keys():
        raise UserError(
            f"searched rates of {', '.join(sorted(searched)) or 'no layer'}: "
            f"expected those of {', '.join(sorted(problem.layers))}"
        )
    whole = floor_and_ceil(searched)
    problem.assign(whole)
    return whole


def by_block(rates: Mapping[str, Number]) -> dict[str, tuple[Number, ...]]:
    """Rates by layer name -> those of each block; see :func:`dnas.ops.block_of`."""
    return {block: tuple(rates[layer] for layer in layers) for block, layers in layers_by_block(rates).items()}


def round_to_target(
    searched: Mapping[str, float],
    rounded: Mapping[str, int],
    prices: Mapping[str, Sequence[float]],
    bounds: tuple[float, float],
) -> dict[str, int] | None:
    """Integer rates nearest to the searched ones whose prices sum to within ``bounds`` (ms); None where there are none.

    ``prices``: of each layer, the ms of the rates 1, 2, 3 and so on. ``rounded``: what RegSeg's rule gives, which is
    what a layer keeps where the latency does not ask for another rate. An integer programme minimises the sum of the
    distances |log(rate / searched)|, those of ``rounded`` counting as zero.
    """
    places = [(name, rate) for name, values in prices.items() for rate in range(1, len(values) + 1)]
    cost = [0.0 if rate == rounded[name] else abs(math.log(rate / searched[name])) + 1e-3 for name, rate in places]
    ms = np.array([prices[name][rate - 1] for name, rate in places])
    one_each = np.array([[float(name == layer) for name, _ in places] for layer in prices])
    found = milp(
        cost,
        integrality=np.ones(len(places), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(ms[None], *bounds)],
    )
    if found.x is None:
        return None
    return {name: rate for (name, rate), chosen in zip(places, found.x, strict=True) if chosen > 0.5}
