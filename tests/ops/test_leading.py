"""Convolutions by leading blocks of weights, and norms side by side, against the plain modules."""

import pytest
import torch
import torch.nn.functional as F

from dnas.ops import joint_conv2d, joint_norm_act, leading_block


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(3, 4), (2, 3), (20, 21)], ids=str)  # joined on the large map only
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_joint_convolution_is_the_single_ones(size, stride, kernel):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(out, 5, kernel, kernel, dtype=torch.float64, requires_grad=True) for out in (4, 7, 1)]
    found = joint_conv2d(x, weights, stride)
    expected = torch.cat([F.conv2d(x, weight, None, stride, kernel // 2) for weight in weights], dim=1)
    close(found, expected)
    upstream = torch.randn_like(found)
    for mine, plain in zip(
        torch.autograd.grad(found, [x, *weights], upstream),
        torch.autograd.grad(expected, [x, *weights], upstream),
        strict=True,
    ):
        close(mine, plain)


def test_a_view_that_lies_apart_in_memory_is_read_as_it_is():
    wide = torch.randn(2, 6, 8, 9, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    x = wide[:, 2:4, 1:, 1:]
    for layout in (x, x.to(memory_format=torch.channels_last)):
        (mine,) = torch.autograd.grad(joint_conv2d(layout, [weight], 2).sin().sum(), weight)
        (plain,) = torch.autograd.grad(F.conv2d(x, weight, None, 2, 1).sin().sum(), weight)
        close(mine, plain)


def test_gradients_of_blocks_gather_in_the_whole_weight():
    torch.manual_seed(0)
    mine = torch.nn.Parameter(torch.randn(6, 5, 3, 3, dtype=torch.float64))
    plain = torch.nn.Parameter(mine.detach().clone())
    for width, channels in ((2, 3), (6, 5), (4, 1), (2, 3)):
        (leading_block(mine, width, channels).sin().sum() * width).backward()
        (plain[:width, :channels].sin().sum() * width).backward()
        close(mine.grad, plain.grad)


def test_a_block_of_a_computed_weight_passes_its_gradient_on():
    source = torch.randn(4, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: leading_block(w * 2, 2, 2), source)


def test_gradients_towards_other_tensors_leave_the_weight_alone():
    weight = torch.nn.Parameter(torch.randn(4, 3, 1, 1))
    strength = torch.ones((), requires_grad=True)
    loss = (leading_block(weight, 2, 2) * strength).sum()
    torch.autograd.grad(loss, strength, retain_graph=True)
    assert weight.grad is None
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss, weight)


def test_what_wants_no_gradient_is_not_kept():
    """Frozen weights: the input, which only their gradients read, is not saved."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    for wanted in (True, False):
        weight = torch.randn(4, 3, 3, 3, requires_grad=wanted)
        saved = set()

        def save(tensor, saved=saved):
            saved.add(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            joint_conv2d(x, [weight])
        assert (tuple(x.shape) in saved) == wanted


def test_autocast_computes_in_the_lower_precision():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(4, 8, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, plain = joint_conv2d(x, [weight]), F.conv2d(x, weight, padding=1)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, plain)
    upstream = torch.randn_like(mine)
    for found, expected in zip(
        torch.autograd.grad(mine, [x, weight], upstream), torch.autograd.grad(plain, [x, weight], upstream), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def norms(widths, momentum=0.1):
    result = []
    for width in widths:
        norm = torch.nn.BatchNorm2d(width, momentum=momentum).double()
        for values in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.uniform_(values, -1.5, 1.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
        result.append(norm)
    return result


@pytest.mark.parametrize("widths", [(3,), (2, 5, 4)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_norms_side_by_side_are_the_single_ones(widths, training, momentum):
    torch.manual_seed(0)
    mine, plain = norms(widths, momentum), norms(widths, momentum)
    for a, b in zip(mine, plain, strict=True):
        a.load_state_dict(b.state_dict())
        a.train(training), b.train(training)
    x = torch.randn(2, sum(widths), 4, 3, dtype=torch.float64, requires_grad=True)
    weights = [None, *(torch.tensor(0.3 * i, dtype=torch.float64, requires_grad=True) for i in (1, 2))][: len(widths)]
    leaves = [x, *(w for w in weights if w is not None)]
    for _ in range(2):
        found = joint_norm_act(x * 1.0, mine, weights)
        parts = zip(x.split(widths, dim=1), plain, weights, strict=True)
        expected = torch.cat([F.relu(norm(part)) * (1.0 if w is None else w) for part, norm, w in parts], dim=1)
        close(found, expected)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, [*leaves, *(p for n in mine for p in n.parameters())], upstream)
    references = torch.autograd.grad(expected, [*leaves, *(p for n in plain for p in n.parameters())], upstream)
    for a, b in zip(gradients, references, strict=True):
        close(a, b)
    for a, b in zip(mine, plain, strict=True):
        for key, value in a.state_dict().items():
            close(value, b.state_dict()[key])


def test_statistics_may_be_left_alone():
    (norm,) = norms((3,))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = joint_norm_act(x, [norm], [None], update_statistics=False)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    close(found, joint_norm_act(x, [norm], [None]))
