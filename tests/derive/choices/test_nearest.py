"""Single changes towards a latency target."""

import itertools

import pytest

from derive.choices.nearest import walk_to_target

PRICES = {"a": (1.0, 2.0, 4.0), "b": (0.5, 3.0), "c": (1.0, 1.5), "unused": (0.0, 0.0)}
SCORES = {"a": (0.0, -1.0, -2.0), "b": (0.0, -9.0), "c": (0.0, -0.1), "unused": (0.0, -5.0)}
START = dict.fromkeys(PRICES, 0)


def latency(options):
    return sum(PRICES[name][index] for name, index in options.items())


@pytest.mark.parametrize("target", [2.5, 3.0, 4.0, 5.5, 6.0])
def test_it_ends_at_the_target_and_leaves_alone_what_does_not_help(target):
    found = walk_to_target(latency, SCORES, START, target, 0.01)
    assert latency(found) == pytest.approx(target, rel=0.01)
    assert found["unused"] == 0
    assert found["b"] == 0 or target > 5.5


def test_where_nothing_helps_it_stops():
    assert walk_to_target(latency, SCORES, START, 1.0, 0.01) == START
    most = max(map(sum, itertools.product(*PRICES.values())))
    assert latency(walk_to_target(latency, SCORES, START, 2 * most, 0.01)) == most
