import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import deform_conv2d

from dnas.errors import UserError
from dnas.ops import fractional_conv2d
from dnas.ops.fractional.exportable import gather_conv2d
from dnas.ops.fractional.separable import separable_conv2d, separable_gradients

NEAR_AND_FAR = (1.0, 1.25, 1.5, 2.0, 2.7, 3.999, 6.0, 30.4)


def reference(x: Tensor, weight: Tensor, rate: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """RegSeg v3, section 3.4, written out: with the offset of each tap."""
    kernel = weight.shape[-1]
    half = kernel // 2
    offsets = [
        offset
        for row in range(-half, half + 1)
        for column in range(-half, half + 1)
        for offset in (row * (rate - 1), column * (rate - 1))
    ]
    size = [-(-length // stride) for length in x.shape[-2:]]
    offsets = torch.stack(offsets).view(1, -1, 1, 1).expand(x.shape[0], -1, *size)
    return deform_conv2d(x, offsets, weight, bias, stride=stride, padding=half)


def case(
    *, kernel=3, groups=1, stride=1, size=(9, 12), rate=2.3, width=4, out=4, bias=True, dtype=torch.float64, seed=0
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    dilation = torch.tensor(rate, dtype=dtype, requires_grad=True)
    tensors = [draw(2, width, *size), draw(out, width // groups, kernel, kernel), dilation]
    return tensors, draw(out) if bias else None, stride, groups


def results(function, tensors, bias):
    """Output and the gradients of input, weight, rate and bias."""
    output = function(*tensors, bias)
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    wanted = [*tensors, *([] if bias is None else [bias])]
    return [output, *torch.autograd.grad(output, wanted, grad_output)]


def assert_close(found, expected, tolerance):
    for name, one, other in zip(("output", "input", "weight", "rate", "bias"), found, expected, strict=False):
        scale = other.abs().max().item() + 1e-6
        assert (one - other).abs().max().item() <= tolerance * scale, name


def compare(tensors, bias, stride, groups, tolerance=1e-9):
    exact = results(lambda x, w, r, b: fractional_conv2d(x, w, r, b, stride, groups), tensors, bias)
    expected = results(lambda x, w, r, b: reference(x, w, r, b, stride), tensors, bias)
    assert_close(exact, expected, tolerance)


@pytest.mark.parametrize("rate", NEAR_AND_FAR)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_output_and_all_gradients_are_those_of_the_deformable_convolution(rate, kernel, stride):
    # Integer rates included: at the kink the gradient equals the deformable convolution's as well.
    tensors, bias, *settings_ = case(kernel=kernel, stride=stride, rate=rate, groups=2, size=(11, 8))
    compare(tensors, bias, *settings_)


@pytest.mark.parametrize(("groups", "out"), [(1, 6), (2, 2), (4, 4), (4, 12)])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 2)])
def test_any_groups_and_sizes(groups, out, size):
    tensors, bias, *settings_ = case(groups=groups, out=out, size=size, rate=1.6)
    compare(tensors, bias, *settings_)


@settings(max_examples=30, deadline=None)
@given(
    rate=st.floats(1, 40, allow_nan=False),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    stride=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_any_rate(rate, size, stride, groups, kernel):
    tensors, _, *settings_ = case(rate=rate, size=size, stride=stride, groups=groups, kernel=kernel, bias=False)
    if min(abs(rate * i - round(rate * i)) for i in (1, 2)) < 1e-6:
        tensors[2] = torch.tensor(float(round(rate)), dtype=torch.float64, requires_grad=True)
    if kernel == 1:  # the deformable reference then does not depend on the rate
        found = results(lambda x, w, r, b: fractional_conv2d(x, w, r, b, *settings_), tensors, None)
        expected = results(lambda x, w, b: F.conv2d(x, w, stride=stride, groups=groups), tensors[:2], None)
        assert_close(found, expected, 1e-9)
        assert found[3].item() == 0
    else:
        compare(tensors, None, *settings_)


@pytest.mark.parametrize("budget", [1, 700, 1500, 5000, 1 << 20])  # from one row at a time to everything at once
@pytest.mark.parametrize("stride", [1, 2])
def test_result_does_not_depend_on_the_tiling(budget, stride):
    tensors, bias, stride, groups = case(groups=2, out=6, width=6, stride=stride)
    expected = results(lambda x, w, r, b: reference(x, w, r, b, stride), tensors, bias)
    x, weight, dilation = (tensor.detach() for tensor in tensors)
    grad_output = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output = separable_conv2d(x, weight, bias.detach(), dilation.item(), stride, groups, budget=budget)
    found = separable_gradients(grad_output, x, weight, dilation.item(), stride, groups, budget=budget)
    assert_close([output, *found], expected[:4], 1e-9)


@pytest.mark.parametrize("rate", [1, 2, 5, 20])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_integer_rates_equal_the_dilated_convolution(rate, stride, kernel):
    (x, weight, dilation), bias, _, groups = case(kernel=kernel, groups=2, rate=float(rate), dtype=torch.float32)
    plain = F.conv2d(x, weight, bias, stride, rate * (kernel // 2), rate, groups)
    assert torch.equal(fractional_conv2d(x, weight, dilation, bias, stride, groups), plain)
    frozen = fractional_conv2d(x, weight, dilation.detach(), bias, stride, groups)
    for one, other in zip(
        torch.autograd.grad(frozen.sum(), (x, weight)), torch.autograd.grad(plain.sum(), (x, weight)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_four_convolutions_identity():
    (x, weight, dilation), _, stride, groups = case(rate=2.3)
    n, f = 2, dilation - 2
    terms = {(n, n): (1 - f) ** 2, (n, n + 1): f * (1 - f), (n + 1, n): f * (1 - f), (n + 1, n + 1): f**2}
    total = sum(factor * F.conv2d(x, weight, None, stride, d, d, groups) for d, factor in terms.items())
    torch.testing.assert_close(fractional_conv2d(x, weight, dilation), total, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["deformable", "exportable"])
def test_other_forms_agree_with_the_exact_one(form):
    tensors, bias, stride, groups = case(groups=2, stride=2, kernel=5, rate=1.7)

    def other(x, w, r, b):
        if form == "exportable":
            return gather_conv2d(x, w, r, b, stride, groups)
        return fractional_conv2d(x, w, r, b, stride, groups, "deformable")

    exact = results(lambda x, w, r, b: fractional_conv2d(x, w, r, b, stride, groups), tensors, bias)
    assert_close(results(other, tensors, bias), exact, 1e-9)


def test_gradients_are_computed_only_where_required():
    (x, weight, dilation), _, *_ = case()
    full = torch.autograd.grad(fractional_conv2d(x, weight, dilation).square().sum(), (x, weight, dilation))
    for index, wanted in enumerate((x, weight, dilation)):
        leaves = [t if t is wanted else t.detach() for t in (x, weight, dilation)]
        (alone,) = torch.autograd.grad(fractional_conv2d(*leaves).square().sum(), wanted)
        torch.testing.assert_close(alone, full[index])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    (x, weight, dilation), bias, stride, groups = case(dtype=torch.float32, groups=2, rate=2.3)
    expected = results(lambda x, w, r, b: fractional_conv2d(x, w, r, b, stride, groups), [x, weight, dilation], bias)
    with torch.autocast("cpu", dtype):
        output = fractional_conv2d(x, weight, dilation, bias, stride, groups)
    assert output.dtype == dtype
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype)
    found = [output, *torch.autograd.grad(output, (x, weight, dilation, bias), grad_output)]
    assert all(gradient.dtype == torch.float32 for gradient in found[1:])
    assert_close([value.float() for value in found], expected, 2e-2)


def test_memory_format_is_kept():
    (x, weight, dilation), *_ = case(dtype=torch.float32)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    output, plain = fractional_conv2d(last, weight, dilation), fractional_conv2d(x, weight, dilation)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, plain)
    output.square().sum().backward()
    plain.square().sum().backward()
    torch.testing.assert_close(last.grad, x.grad)


def test_only_the_arguments_are_saved():
    (x, weight, dilation), bias, stride, groups = case()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fractional_conv2d(x, weight, dilation, bias, stride, groups)
    assert {t.data_ptr() for t in saved} <= {t.data_ptr() for t in (x, weight, dilation)}


def test_empty_batch():
    x, weight = torch.randn(0, 4, 9, 9, requires_grad=True), torch.randn(4, 2, 3, 3, requires_grad=True)
    rate = torch.tensor(1.5, requires_grad=True)
    out = fractional_conv2d(x, weight, rate, groups=2)
    assert out.shape == (0, 4, 9, 9)
    out.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()
    assert rate.grad == 0


@pytest.mark.parametrize("method", ["exact", "deformable"])
@pytest.mark.parametrize("rate", [0.99, -2.0, float("nan"), float("inf")])
def test_invalid_rates(rate, method):
    (x, weight, _), *_ = case()
    with pytest.raises(UserError, match="expected a finite rate of at least 1"):
        fractional_conv2d(x, weight, torch.tensor(rate), method=method)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.ones(4, 4, 2, 2)}, "kernel 2x2: expected a square kernel of odd size"),
        ({"weight": torch.ones(4, 4, 3, 5)}, "kernel 3x5"),
        ({"weight": torch.ones(4, 3, 3, 3)}, "do not match groups=1"),
        ({"groups": 3}, "do not match groups=3"),
        ({"input": torch.ones(4, 8, 8)}, "expected \\(N, C, H, W\\)"),
        ({"dilation": torch.ones(2)}, "expected a floating-point tensor with one element"),
        ({"dilation": torch.tensor(2)}, "expected a floating-point tensor"),
        ({"bias": torch.ones(3)}, "bias \\(3,\\): expected \\(4,\\), one value per output channel"),
        ({"stride": 0}, "stride 0"),
        ({"method": "fast"}, "unknown method 'fast', expected one of exact, deformable"),
    ],
)
def test_invalid_arguments(arguments, message):
    valid = {"input": torch.ones(1, 4, 8, 8), "weight": torch.ones(4, 4, 3, 3), "dilation": torch.tensor(1.5)}
    with pytest.raises(UserError, match=message):
        fractional_conv2d(**{**valid, **arguments})
