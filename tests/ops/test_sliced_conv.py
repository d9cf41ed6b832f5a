"""Convolutions with leading slices of weights, against ``F.conv2d`` with the slice."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dnas.ops import GradientBuffer, sliced_conv, sliced_conv2d


@pytest.fixture(params=[0, sliced_conv.FUSE_UP_TO_VALUES], ids=["apart", "fused"], autouse=True)
def fusing(request, monkeypatch):
    """Convolve small maps with weights above and below the limit for concatenation."""
    monkeypatch.setattr(sliced_conv, "FUSE_UP_TO_VALUES", request.param)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def gradients(result, leaves, upstream):
    """The gradients after ``backward()``."""
    for leaf in leaves:
        leaf.grad = None
    result.backward(upstream)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("size", [(3, 4), (2, 3), (20, 21)], ids=str)  # fused on the large map only
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_fused_convolutions_equal_single_ones(size, stride, kernel):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(out, 5, kernel, kernel, dtype=torch.float64, requires_grad=True) for out in (4, 7, 1)]
    found = sliced_conv2d(x, weights, stride)
    expected = torch.cat([F.conv2d(x, weight, None, stride, kernel // 2) for weight in weights], dim=1)
    close(found, expected)
    upstream = torch.randn_like(found)
    for mine, plain in zip(
        gradients(found, [x, *weights], upstream),
        gradients(expected, [x, *weights], upstream),
        strict=True,
    ):
        close(mine, plain)


def test_a_view_that_lies_apart_in_memory_is_read_as_it_is():
    wide = torch.randn(2, 6, 8, 9, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    x = wide[:, 2:4, 1:, 1:]
    for layout in (x, x.to(memory_format=torch.channels_last)):
        (mine,) = gradients(sliced_conv2d(layout, [weight], 2).sin().sum(), [weight], None)
        (plain,) = gradients(F.conv2d(x, weight, None, 2, 1).sin().sum(), [weight], None)
        close(mine, plain)


@pytest.mark.parametrize("size", [(3, 4), (20, 21)], ids=str)  # fused on the large map only
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_slices_add_up_in_the_whole_weights(size, layout):
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(o, 5, 3, 3).double().to(memory_format=layout)) for o in (6, 4)]
    plain = [torch.nn.Parameter(weight.detach().clone()) for weight in mine]
    for widths, channels in (((2, 3), 3), ((6, 4), 5), ((4, 4), 5), ((6, 1), 1), ((2, 3), 3)):
        x = torch.randn(2, channels, *size, dtype=torch.float64)
        sliced_conv2d(x, mine, 1, widths).sin().sum().backward()
        slices = [weight[:width, :channels] for weight, width in zip(plain, widths, strict=True)]
        torch.cat([F.conv2d(x, part, padding=1) for part in slices], dim=1).sin().sum().backward()
        for a, b in zip(mine, plain, strict=True):
            close(a.grad, b.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_buffer_accumulates_on_top_of_its_initial_content(layout):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).double().to(memory_format=layout))
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    sliced_conv2d(x, [weight], 1, [3]).sin().sum().backward()
    expected, weight.grad = weight.grad, None
    for initial in (0.5, None):
        buffer = GradientBuffer(weight, None if initial is None else torch.full_like(weight, initial))
        assert not buffer.filled
        for _ in range(2):
            sliced_conv2d(x, [weight], 1, [3], [buffer]).sin().sum().backward()
        assert buffer.filled
        assert weight.grad is None
        close(buffer.tensor, (initial or 0.0) + 2 * expected)


@pytest.mark.parametrize("widths", [(3, 2), (4, 5)], ids=["slices", "whole"])
def test_both_gradients_by_one_call_are_those_of_two(widths):
    """A GPU computes the first, a CPU the second."""
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(out, 4, 3, 3, dtype=torch.float64, requires_grad=True) for out in (4, 5)]
    result = sliced_conv2d(x, weights, widths=widths)
    upstream = torch.randn_like(result)
    expected = torch.autograd.grad(result, (x, *weights), upstream)
    for buffered in (False, True):
        buffers = [GradientBuffer(weight) if buffered else None for weight in weights]
        context = SimpleNamespace(weights=weights, widths=widths, buffers=buffers, stride=1)
        with torch.no_grad():
            found, *_, first, second = sliced_conv._both_gradients(context, x, None, upstream, 1)
        of_weights = [buffer.tensor for buffer in buffers] if buffered else [first, second]
        for one, other in zip((found, *of_weights), expected, strict=True):
            close(one, other)


def test_weights_with_and_without_a_buffer_share_a_convolution():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(width, 3, 3, 3, dtype=torch.float64)) for width in (4, 2)]
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = gradients(sliced_conv2d(x, weights).sin().sum(), weights, None)
    buffer = GradientBuffer(weights[0])
    found = gradients(sliced_conv2d(x, weights, buffers=[buffer, None]).sin().sum(), weights, None)
    assert found[0] is None
    close(buffer.tensor, expected[0])
    close(found[1], expected[1])


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_buffer_of_lower_precision_holds_the_rounded_gradient(compute):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 6, 3, 3))
    buffer = GradientBuffer(weight, dtype=torch.bfloat16)
    x, plain = torch.randn(2, 6, 7, 7), weight.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32):
        sliced_conv2d(x, [weight], buffers=[buffer]).float().sin().sum().backward()
        sliced_conv2d(x, [plain]).float().sin().sum().backward()
    assert buffer.tensor.dtype == torch.bfloat16
    torch.testing.assert_close(buffer.tensor.float(), plain.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("size", [(3, 4), (20, 21)], ids=str)
def test_frozen_weights_among_others_get_no_gradient(size):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    weights = [torch.randn(width, 5, 3, 3, dtype=torch.float64, requires_grad=width != 4) for width in (3, 4, 2)]
    sliced_conv2d(x, weights).sin().sum().backward()
    assert weights[1].grad is None
    for weight in weights[::2]:
        (plain,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).sin().sum(), weight)
        close(weight.grad, plain)


@pytest.mark.parametrize("width", [2, 4])
def test_a_computed_weight_passes_its_gradient_on(width):
    x, source = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 2, 3, 3), (4, 2, 1, 1)))
    source.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: sliced_conv2d(x, [w * 2], 1, [width]), source)


def test_gradients_towards_other_tensors_leave_frozen_weights_alone():
    weight = torch.nn.Parameter(torch.randn(4, 3, 1, 1), requires_grad=False)
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    sliced_conv2d(x, [weight], 1, [2]).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


def test_what_wants_no_gradient_is_not_kept():
    """With frozen weights the input, needed only for their gradients, is not saved."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    for wanted in (True, False):
        weight = torch.randn(4, 3, 3, 3, requires_grad=wanted)
        saved = set()

        def save(tensor, saved=saved):
            saved.add(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            sliced_conv2d(x, [weight])
        assert (tuple(x.shape) in saved) == wanted


def test_autocast_computes_in_the_lower_precision():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(4, 8, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, plain = sliced_conv2d(x, [weight]), F.conv2d(x, weight, padding=1)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, plain)
    upstream = torch.randn_like(mine)
    # How far gradients in bf16 are off depends on the CPU; ours may hardly be further off than PyTorch's own.
    exact = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (x, weight)]
    reference = gradients(F.conv2d(*exact, padding=1), exact, upstream.double())
    ours, others = gradients(mine, [x, weight], upstream), gradients(plain, [x, weight], upstream)
    for found, other, expected in zip(ours, others, reference, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 1.25 * (other - expected).norm()
