"""Weights split into bf16 and low bits: no bit of float32 is lost."""

import pytest
import torch
from torch import nn

from dnas.search.optim import SplitBF16Weight
from dnas.search.optim.split_bf16 import read_all, write_all


def all_upper_halves():
    """Every upper half of a float32 number, as int32."""
    return torch.arange(1 << 16, dtype=torch.int32) << 16


@pytest.mark.parametrize("lower", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_all_numbers_are_kept_bit_by_bit(lower):
    values = (all_upper_halves() + lower).view(torch.float32)
    values = values[values.isfinite()]
    weight = nn.Parameter(values.clone())
    split = SplitBF16Weight(weight)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(split.read(torch.empty_like(values)).view(torch.int32), values.view(torch.int32))
    nearest = values.bfloat16()
    if lower != 0x8000:
        assert torch.equal(weight.detach().view(torch.int16), nearest.view(torch.int16))
    else:
        assert (
            (weight.detach().double() - values.double())
            .abs()
            .sub((nearest.double() - values).abs())[nearest.isfinite() & weight.isfinite()]
            .eq(0)
            .all()
        )  # a tie
    split.join()
    assert weight.dtype == torch.float32
    assert torch.equal(weight.detach().view(torch.int32), values.view(torch.int32))


def test_several_weights_are_read_and_written_as_one_by_one():
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in [(3, 2, 3, 3), (5,), (4, 1, 1, 1)]]
    together, alone = ([SplitBF16Weight(nn.Parameter(one.clone())) for one in values] for _ in range(2))
    for found, split in zip(read_all(together), alone, strict=True):
        assert torch.equal(found, split.read(torch.empty_like(found)))
    changed = [torch.randn(one.numel()) for one in values]
    write_all(together, changed)
    for one, split, value in zip(together, alone, changed, strict=True):
        split.write(value.clone())
        assert torch.equal(one.read(torch.empty_like(value)), value)
        assert torch.equal(one._rounded_bits, split._rounded_bits)


@pytest.mark.parametrize("special", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(special):
    weight = nn.Parameter(torch.tensor([special, 1.0]))
    split = SplitBF16Weight(weight)
    assert torch.equal(weight.isfinite(), torch.tensor([False, True]))
    split.join()
    torch.testing.assert_close(weight.detach(), torch.tensor([special, 1.0]), equal_nan=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_it_takes_no_memory_and_keeps_the_layout(layout):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 5, 3, 3).to(memory_format=layout))
    before, place, stride = weight.detach().clone(), weight.data_ptr(), weight.stride()
    split = SplitBF16Weight(weight)
    assert weight.untyped_storage().nbytes() == before.nbytes
    assert (weight.data_ptr(), weight.stride()) == (place, stride)
    assert torch.equal(weight.detach(), before.bfloat16())
    part = slice(4, 50)
    values = split.read(torch.empty(46), part)
    split.write(values + 1, part)
    split.join()
    assert (weight.data_ptr(), weight.stride()) == (place, stride)
    assert (weight.detach() != before).sum() == 46


def test_only_float32_is_split():
    with pytest.raises(TypeError, match="float64"):
        SplitBF16Weight(nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)))
