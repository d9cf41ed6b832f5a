"""BatchNorm, ReLU and weight as one function for concatenated maps, against separate modules."""

import pytest
import torch
import torch.nn.functional as F

from dnas.ops import fused_bn_relu
from dnas.ops.fused_bn_relu import weight_gradients_together


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def norms(widths, momentum=0.1):
    result = []
    for width in widths:
        norm = torch.nn.BatchNorm2d(width, momentum=momentum).double()
        for values in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.uniform_(values, -1.5, 1.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
        result.append(norm)
    return result


def test_a_single_value_of_each_channel_is_refused_as_by_torch():
    x = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    for normalise in (lambda: norms((3,))[0](x), lambda: fused_bn_relu(x, norms((3,)), [[None]])):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            normalise()


@pytest.mark.parametrize("widths", [(3,), (2, 5, 4)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_concatenated_norms_equal_single_ones(widths, training, momentum):
    torch.manual_seed(0)
    mine, plain = norms(widths, momentum), norms(widths, momentum)
    for a, b in zip(mine, plain, strict=True):
        a.load_state_dict(b.state_dict())
        a.train(training), b.train(training)
    x = torch.randn(2, sum(widths), 4, 3, dtype=torch.float64, requires_grad=True)
    weights = [None, *(torch.tensor(0.3 * i, dtype=torch.float64, requires_grad=True) for i in (1, 2))][: len(widths)]
    leaves = [x, *(w for w in weights if w is not None)]
    for _ in range(2):
        found = fused_bn_relu(x * 1.0, mine, [[weight] for weight in weights])
        parts = zip(x.split(widths, dim=1), plain, weights, strict=True)
        expected = torch.cat([F.relu(norm(part)) * (1.0 if w is None else w) for part, norm, w in parts], dim=1)
        close(found, expected)
    upstream = torch.randn_like(found)
    found_gradients = torch.autograd.grad(found, [*leaves, *(p for n in mine for p in n.parameters())], upstream)
    references = torch.autograd.grad(expected, [*leaves, *(p for n in plain for p in n.parameters())], upstream)
    for a, b in zip(found_gradients, references, strict=True):
        close(a, b)
    for a, b in zip(mine, plain, strict=True):
        for key, value in a.state_dict().items():
            close(value, b.state_dict()[key])


@pytest.mark.parametrize("training", [True, False])
def test_parts_of_a_batch_are_normalised_as_if_alone(training):
    torch.manual_seed(0)
    widths, parts = (2, 5), 3
    mine, plain = norms(widths), norms(widths)
    for a, b in zip(mine, plain, strict=True):
        a.load_state_dict(b.state_dict())
        a.train(training), b.train(training)
    x = torch.randn(2 * parts, sum(widths), 4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(len(widths), parts, dtype=torch.float64, requires_grad=True)
    found = fused_bn_relu(x, mine, [own.unbind() for own in weights])
    alone = zip(x.chunk(parts), weights.unbind(1), strict=True)
    expected = torch.cat([fused_bn_relu(part, plain, [[one] for one in own]) for part, own in alone])
    close(found, expected)
    upstream = torch.randn_like(found)
    results = torch.autograd.grad(found, [x, weights, *(p for n in mine for p in n.parameters())], upstream)
    references = torch.autograd.grad(expected, [x, weights, *(p for n in plain for p in n.parameters())], upstream)
    for a, b in zip(results, references, strict=True):
        close(a, b)
    for a, b in zip(mine, plain, strict=True):
        close(a.running_mean, b.running_mean), close(a.running_var, b.running_var)


def test_statistics_may_be_left_alone():
    (norm,) = norms((3,))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    norm.track_running_stats = False
    found = fused_bn_relu(x, [norm], [[None]])
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    close(found, fused_bn_relu(x, [norm], [[None]]))


@pytest.mark.parametrize("widths", [(3, 3, 5, 3), (4, 4, 4), (7,)], ids=str)
def test_gradients_of_the_weights_together_are_those_of_each_map(widths):
    to_scale, to_shift = torch.randn(2, sum(widths), dtype=torch.float64).unbind()
    plain = torch.randn(2, sum(widths), dtype=torch.float64).unbind()
    found = weight_gradients_together(to_scale, to_shift, plain, widths)
    parts = zip(*(tensor.split(widths) for tensor in (to_scale, to_shift, *plain)), strict=True)
    close(torch.stack(found), torch.stack([a @ scale + b @ shift for a, b, scale, shift in parts]))
