"""RegSeg's blocks against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.networks import create_network
from dnas.networks.regseg import MANUAL_RATES, SEARCHED_RATES, build_regseg
from dnas.networks.regseg_blocks import DBlock, DilatedConv
from dnas.profile import count_multiply_adds, count_parameters


@pytest.mark.parametrize("rates", [(1, 1), (2, 5), (1, 2, 3, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_dilated_conv_is_a_group_convolution_at_each_rate(rates: tuple[int, ...], stride: int) -> None:
    torch.manual_seed(0)
    layer = DilatedConv(64, rates, stride=stride, group_width=8, split_equal=True).double()
    features = torch.randn(2, 64, 13, 17, dtype=torch.float64)
    weight = torch.cat([branch.weight for branch in layer.branches])  # one group convolution's weight
    width = 64 // len(rates)
    for index, rate in enumerate(rates):
        whole = nn.functional.conv2d(features, weight, None, stride, rate, rate, groups=8)
        share = slice(index * width, (index + 1) * width)
        torch.testing.assert_close(layer(features)[:, share], whole[:, share])


def test_equal_rates_are_one_convolution_unless_asked() -> None:
    assert len(DilatedConv(64, (3, 3)).branches) == 1
    assert len(DilatedConv(64, (3, 3), split_equal=True).branches) == 2
    whole, parts = DilatedConv(64, (3, 3)), DilatedConv(64, (3, 3), split_equal=True)
    weights = whole.branches[0].get_parameter("weight").data
    for branch, weight in zip(parts.branches, weights.chunk(2), strict=True):
        branch.get_parameter("weight").data = weight
    features = torch.randn(1, 64, 9, 9)
    torch.testing.assert_close(parts(features), whole(features))


def test_groups_that_cannot_be_shared_out() -> None:
    with pytest.raises(ValueError, match="3 groups, not divisible among 2 branches"):
        DilatedConv(48, (1, 2))
    with pytest.raises(ValueError, match="groups of width 16"):
        DilatedConv(40, (1, 2))


def test_shortcut_of_a_d_block() -> None:
    assert isinstance(DBlock(64, 64, (1, 2)).shortcut, nn.Identity)
    strided = DBlock(32, 64, stride=2).shortcut
    assert isinstance(strided, nn.Sequential)
    assert isinstance(strided[0], nn.AvgPool2d)
    assert DBlock(32, 64, stride=2)(torch.randn(2, 32, 9, 12)).shape == (2, 64, 5, 6)


def test_squeeze_is_a_quarter_of_the_blocks_input() -> None:
    reduce = DBlock(32, 64).attention.gate[1]
    assert isinstance(reduce, nn.Conv2d)
    assert (reduce.in_channels, reduce.out_channels) == (64, 8)


def test_rates_change_neither_parameters_nor_multiply_adds() -> None:
    """Section 3.2: the D block has exactly the parameters and operations of the Y block, two branches or four."""
    with torch.device("meta"):
        plain = build_regseg(19, [(1, 1)] * 13)
        others = [build_regseg(19, rates) for rates in (MANUAL_RATES, SEARCHED_RATES, [(1, 2, 3, 4)] * 13)]
        others.append(build_regseg(19, [(1, 1)] * 13, split_equal=True))
    for other in others:
        assert count_parameters(other) == count_parameters(plain)
        assert count_multiply_adds(other, (128, 256)) == count_multiply_adds(plain, (128, 256))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([(1, 1)] * 12, "given 12 blocks, RegSeg has 13"),
        ([(1, 1)] * 12 + [(1, 0)], "block 13: given 0, expected an integer >= 1"),
        ([(1, 1.5)] + [(1, 1)] * 12, r"block 1: given 1\.5"),
        ([(1, 2, 3)] * 13, "given 3 branches, expected 1, 2 or 4"),
    ],
)
def test_rates_that_do_not_fit(rates: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_network("regseg", rates=rates)
