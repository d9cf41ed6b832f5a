"""Integer rates for a latency target, compared with all possible ones."""

import itertools
import math

import pytest

from derive.dilated import round_to_target

SEARCHED = {"a": 1.3, "b": 3.6, "c": 2.2}
ROUNDED = {"a": 1, "b": 4, "c": 2}
PRICES = {"a": [1.0, 1.7, 2.9, 4.0], "b": [2.0, 2.2, 1.9, 5.0], "c": [0.5, 1.5]}


def cost(rates):
    return sum(0.0 if rates[n] == ROUNDED[n] else abs(math.log(rates[n] / r)) + 1e-3 for n, r in SEARCHED.items())


@pytest.mark.parametrize("bounds", [(3.0, 3.5), (4.9, 5.2), (9.0, 11.0), (7.4, 7.6)])
def test_the_nearest_rates_within_the_bounds_are_found(bounds):
    every = [
        dict(zip(PRICES, chosen, strict=True))
        for chosen in itertools.product(*(range(1, len(p) + 1) for p in PRICES.values()))
    ]
    allowed = [r for r in every if bounds[0] <= sum(PRICES[n][k - 1] for n, k in r.items()) <= bounds[1]]
    assert cost(round_to_target(SEARCHED, ROUNDED, PRICES, bounds)) == pytest.approx(min(map(cost, allowed)))


def test_rounding_stays_where_it_reaches_the_target():
    assert round_to_target(SEARCHED, ROUNDED, PRICES, (7.0, 8.0)) == ROUNDED


def test_no_rates_within_the_bounds():
    assert round_to_target(SEARCHED, ROUNDED, PRICES, (20.0, 21.0)) is None
