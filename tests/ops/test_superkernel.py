"""Every operator: the superkernel at each width against the plain operator that it extracts."""

import pytest
import torch

from dnas.errors import UserError
from dnas.ops import OPERATORS, SuperConvNormAct, SwitchableBatchNorm2d, fit_channels, make_operator, make_superkernel

WIDTHS = (6, 10, 16)
IN_CHANNELS = 12
SIZES = [(8, 10), (7, 9), (5, 6), (1, 3)]
WEIGHTED = [(name, stride) for name in OPERATORS for stride in (1, 2) if (name, stride) != ("skip", 1)]


def trained(module):
    """In float64, with BatchNorms that differ by channel and width, as after training."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(norm.weight, -1.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module.double()


def superkernel(name, stride, widths=WIDTHS):
    torch.manual_seed(1)
    return trained(make_superkernel(name, IN_CHANNELS, widths, stride))


def out_size(size, stride):
    return tuple(-(-side // stride) for side in size)


@pytest.mark.parametrize(("name", "stride"), WEIGHTED)
@pytest.mark.parametrize("training", [True, False])
def test_a_superkernel_is_its_extract_at_every_width(name, stride, training):
    module = superkernel(name, stride)
    for size in SIZES:
        for channels in (3, IN_CHANNELS):
            for width in WIDTHS:
                x = torch.randn(2, channels, *size, dtype=torch.float64)
                plain = module.extract(channels, width).train(training)
                module.train(training)
                expected = module(x, width)
                assert expected.shape == (2, width, *out_size(size, stride))
                torch.testing.assert_close(plain(x), expected, rtol=1e-12, atol=1e-12)
                after = module.extract(channels, width).state_dict()  # the running statistics are updated equally, too
                for key, value in plain.state_dict().items():
                    torch.testing.assert_close(value, after[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "stride"), WEIGHTED)
def test_an_extract_is_built_like_the_operator_and_shares_no_memory(name, stride):
    module = superkernel(name, stride)
    plain = module.extract(3, 10)
    built = make_operator(name, 3, 10, stride)
    shapes = {key: value.shape for key, value in built.state_dict().items()}
    assert {key: value.shape for key, value in plain.state_dict().items()} == shapes
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in plain.parameters():
            assert parameter.requires_grad
            parameter.add_(1.0)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(("name", "stride"), [pair for pair in WEIGHTED if pair[0] != "skip"])
def test_outputs_that_nobody_reads_can_be_left_out(name, stride):
    module = superkernel(name, stride).eval()
    x = torch.randn(2, 5, 7, 9, dtype=torch.float64)
    cut = module.extract(5, 16, 6).eval()
    torch.testing.assert_close(cut(x), module(x, 16)[:, :6], rtol=1e-12, atol=1e-12)


def test_a_reducing_skip_makes_all_of_its_channels():
    with pytest.raises(ValueError, match="has all of its 16 channels"):
        superkernel("skip", 2).extract(5, 16, 6)
    assert superkernel("skip", 2).extract(5, 16, 16).even.weight.shape == (8, 5, 1, 1)


@pytest.mark.parametrize(("name", "stride"), WEIGHTED)
def test_gradients_reach_the_used_weights_and_only_those(name, stride):
    torch.manual_seed(1)
    module = make_superkernel(name, IN_CHANNELS, WIDTHS, stride).double()
    module(torch.randn(4, 3, 16, 16, dtype=torch.float64), 6).square().sum().backward()
    parameters = dict(module.named_parameters())
    weights = [p for key, p in parameters.items() if p.ndim == 4]
    for index, weight in enumerate(weights):
        part = 3 if name == "skip" else 6  # the reducing skip has two convolutions of half the width
        inputs = 3 if index == 0 or name == "skip" else 6
        assert weight.grad[:part, :inputs].abs().min() > 0
        assert weight.grad.count_nonzero() == weight.grad[:part, :inputs].numel()
    for key, parameter in parameters.items():
        if ".6." in key:
            assert parameter.grad.abs().max() > 0
        elif parameter.ndim == 1:
            assert parameter.grad is None


def test_a_stride_1_skip_is_the_identity_cut_or_filled():
    x = torch.randn(2, 10, 5, 3)
    skip = superkernel("skip", 1)
    assert torch.equal(skip(x, 10), x)
    assert torch.equal(skip(x, 6), x[:, :6])
    assert torch.equal(skip(x, 16), torch.cat([x, torch.zeros(2, 6, 5, 3)], dim=1))
    assert torch.equal(make_operator("skip", 10, 10)(x), x)
    assert not list(skip.parameters())


def test_widths_may_be_odd_or_one():
    for name in OPERATORS:
        module = make_superkernel(name, 3, (5, 5, 7), stride=2)
        assert module(torch.randn(2, 3, 7, 7), 5).shape == (2, 5, 4, 4)
        assert make_superkernel(name, 3, (4,), stride=2)(torch.randn(2, 2, 8, 8), 4).shape == (2, 4, 4, 4)


def test_norms_of_widths_keep_separate_statistics():
    norm = SwitchableBatchNorm2d((4, 2, 4))
    assert list(norm) == ["2", "4"]
    norm(torch.randn(2, 4, 3, 3) + 5)
    assert norm["4"].running_mean.abs().min() > 0
    assert norm["2"].running_mean.abs().max() == 0
    with pytest.raises(ValueError, match="width 3 is none of the choices 2, 4"):
        norm(torch.randn(2, 3, 3, 3))


def test_chosen_inputs_need_not_be_the_leading_ones():
    module = trained(SuperConvNormAct(6, [4])).eval()
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    chosen = [0, 1, 4]
    plain = module.extract(chosen, 4).eval()
    zeroed = torch.zeros_like(x)
    zeroed[:, chosen] = x[:, chosen]
    torch.testing.assert_close(plain(x[:, chosen]), module(zeroed, 4), rtol=1e-12, atol=1e-12)


def test_fit_channels():
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    assert fit_channels(x, 4) is x
    assert torch.equal(fit_channels(x, 3), x[:, :3])
    filled = fit_channels(x, 6)
    assert torch.equal(filled[:, :4], x)
    assert filled[:, 4:].abs().sum() == 0
    filled.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_unknown_operators_list_the_known_ones():
    for make in (lambda: make_operator("pool", 4, 4), lambda: make_superkernel("pool", 4, (4,))):
        with pytest.raises(UserError, match=r"unknown operator 'pool', expected one of skip, conv, conv_x2, zoomed"):
            make()


def test_a_skip_of_stride_1_between_widths_is_refused():
    with pytest.raises(UserError, match="cannot turn 4 channels into 6: leave it out"):
        make_operator("skip", 4, 6)
