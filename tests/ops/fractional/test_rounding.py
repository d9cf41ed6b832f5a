import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.ops import block_of, floor_and_ceil, layers_by_block, nearest


def test_rules():
    rates = {"a.0": 3.6, "a.1": 1.4, "b.0": 2.0, "b.1": 2.0, "c": 1.5, "d.0": 7.5, "d.1": 2.4, "d.2": 2.6}
    assert nearest(rates) == {"a.0": 4, "a.1": 1, "b.0": 2, "b.1": 2, "c": 2, "d.0": 8, "d.1": 2, "d.2": 3}
    assert floor_and_ceil({"a.0": 3.2, "a.1": 1.9}) == {"a.0": math.ceil(3.2), "a.1": math.floor(1.9)}
    assert floor_and_ceil(rates) == {"a.0": 4, "a.1": 1, "b.0": 2, "b.1": 2, "c": 2, "d.0": 8, "d.1": 2, "d.2": 3}


@pytest.mark.parametrize(
    ("rates", "rounded"),
    [
        ((1.9, 2.1, 7.01, 3.99), (1, 2, 8, 4)),
        ((7.2, 1.5, 6.7, 1.2), (8, 1, 7, 1)),
        ((2.5, 2.5, 2.5, 2.5), (2, 2, 3, 3)),
        ((1.0, 4.0, 1.0, 14.0), (1, 4, 1, 14)),
    ],
)
def test_of_four_branches_two_are_rounded_down_and_two_up(rates, rounded):
    names = [f"block.dilated.branches.{index}" for index in range(4)]
    assert floor_and_ceil(dict(zip(names, rates, strict=True))) == dict(zip(names, rounded, strict=True))


@given(st.sampled_from([2, 4]).flatmap(lambda n: st.lists(st.floats(1, 40), min_size=n, max_size=n)))
def test_the_largest_rate_never_decreases_and_the_smallest_never_increases(rates):
    rounded = list(floor_and_ceil({f"block.{index}": rate for index, rate in enumerate(rates)}).values())
    assert max(rounded) == math.ceil(max(rates))
    assert min(rounded) == math.floor(min(rates))
    assert all(abs(after - before) < 1 for after, before in zip(rounded, rates, strict=True))


def test_blocks_of_layers():
    names = ["stem", "blocks.0.dilated.branches.0", "blocks.0.dilated.branches.1", "blocks.1.branches.0", "aspp.1"]
    assert [block_of(name) for name in names] == ["stem", "blocks.0", "blocks.0", "blocks.1", "aspp"]
    assert layers_by_block(names) == {
        "stem": ["stem"],
        "blocks.0": names[1:3],
        "blocks.1": ["blocks.1.branches.0"],
        "aspp": ["aspp.1"],
    }
