"""Convolutions by leading blocks of weights, and norms side by side, against the plain modules."""

import pytest
import torch
import torch.nn.functional as F

from dnas.ops import GradientMemory, forget_memory, joint_conv2d, joint_norm_act, leading


@pytest.fixture(params=[0, leading.JOIN_UP_TO_VALUES], ids=["apart", "joined"], autouse=True)
def joining(request, monkeypatch):
    """Small maps are convolved by weights of either size."""
    monkeypatch.setattr(leading, "JOIN_UP_TO_VALUES", request.param)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def gradients(result, leaves, upstream):
    """As ``backward()`` leaves them: joint convolutions add to those of their weights themselves."""
    for leaf in leaves:
        leaf.grad = None
    result.backward(upstream)
    return [leaf.grad for leaf in leaves]


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
        (mine,) = gradients(joint_conv2d(layout, [weight], 2).sin().sum(), [weight], None)
        (plain,) = gradients(F.conv2d(x, weight, None, 2, 1).sin().sum(), [weight], None)
        close(mine, plain)


@pytest.mark.parametrize("size", [(3, 4), (20, 21)], ids=str)  # joined on the large map only
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_blocks_gather_in_the_whole_weights(size, layout):
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(o, 5, 3, 3).double().to(memory_format=layout)) for o in (6, 4)]
    plain = [torch.nn.Parameter(weight.detach().clone()) for weight in mine]
    for widths, channels in (((2, 3), 3), ((6, 4), 5), ((4, 4), 5), ((6, 1), 1), ((2, 3), 3)):
        x = torch.randn(2, channels, *size, dtype=torch.float64)
        joint_conv2d(x, mine, 1, widths).sin().sum().backward()
        blocks = [weight[:width, :channels] for weight, width in zip(plain, widths, strict=True)]
        torch.cat([F.conv2d(x, block, padding=1) for block in blocks], dim=1).sin().sum().backward()
        for a, b in zip(mine, plain, strict=True):
            close(a.grad, b.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_gradient_memory_takes_the_gradients_on_top_of_what_it_begins_with(layout):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).double().to(memory_format=layout))
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    joint_conv2d(x, [weight], 1, [3]).sin().sum().backward()
    expected, weight.grad = weight.grad, None
    for begins in (0.5, None):
        memory = GradientMemory(weight, None if begins is None else torch.full_like(weight, begins))
        assert not memory.filled
        for _ in range(2):
            joint_conv2d(x, [weight], 1, [3]).sin().sum().backward()
        assert memory.filled
        assert weight.grad is None
        close(memory.tensor, (begins or 0.0) + 2 * expected)
    forget_memory([weight])
    joint_conv2d(x, [weight], 1, [3]).sin().sum().backward()
    close(weight.grad, expected)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_memory_of_lower_precision_holds_the_rounded_gradient(compute):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 6, 3, 3))
    memory = GradientMemory(weight, precision=torch.bfloat16)
    x, plain = torch.randn(2, 6, 7, 7), weight.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32):
        for one in (weight, plain):
            joint_conv2d(x, [one]).float().sin().sum().backward()
    assert memory.tensor.dtype == torch.bfloat16
    torch.testing.assert_close(memory.tensor.float(), plain.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("size", [(3, 4), (20, 21)], ids=str)
def test_frozen_weights_among_others_get_no_gradient(size):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    weights = [torch.randn(width, 5, 3, 3, dtype=torch.float64, requires_grad=width != 4) for width in (3, 4, 2)]
    joint_conv2d(x, weights).sin().sum().backward()
    assert weights[1].grad is None
    for weight in weights[::2]:
        (plain,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).sin().sum(), weight)
        close(weight.grad, plain)


@pytest.mark.parametrize("width", [2, 4])
def test_a_computed_weight_passes_its_gradient_on(width):
    x, source = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 2, 3, 3), (4, 2, 1, 1)))
    source.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: joint_conv2d(x, [w * 2], 1, [width]), source)


def test_gradients_towards_other_tensors_leave_frozen_weights_alone():
    weight = torch.nn.Parameter(torch.randn(4, 3, 1, 1), requires_grad=False)
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    joint_conv2d(x, [weight], 1, [2]).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


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
        gradients(mine, [x, weight], upstream), gradients(plain, [x, weight], upstream), strict=True
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
        found = joint_norm_act(x * 1.0, mine, [[weight] for weight in weights])
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
    found = joint_norm_act(x, mine, [own.unbind() for own in weights])
    alone = zip(x.chunk(parts), weights.unbind(1), strict=True)
    expected = torch.cat([joint_norm_act(part, plain, [[one] for one in own]) for part, own in alone])
    close(found, expected)
    upstream = torch.randn_like(found)
    results = gradients(found, [x, weights, *(p for n in mine for p in n.parameters())], upstream)
    references = gradients(expected, [x, weights, *(p for n in plain for p in n.parameters())], upstream)
    for a, b in zip(results, references, strict=True):
        close(a, b)
    for a, b in zip(mine, plain, strict=True):
        close(a.running_mean, b.running_mean), close(a.running_var, b.running_var)


def test_statistics_may_be_left_alone():
    (norm,) = norms((3,))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    norm.track_running_stats = False
    found = joint_norm_act(x, [norm], [[None]])
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    close(found, joint_norm_act(x, [norm], [[None]]))
