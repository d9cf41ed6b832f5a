"""The discrete operators against torch and torchvision."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.transforms.v2.functional import resize as torchvision_resize

from dnas.ops import OPERATORS, ConvBlock, ConvNormAct, FactorizedReduce, ZoomedConv, make_operator, resize

SIZES = [(8, 10), (7, 9), (9, 4), (1, 1)]


def conv_by_hand(module, x, stride=1):
    """Convolution, BatchNorm in eval mode and ReLU, written out."""
    conv, norm = module.conv, module.norm
    size = conv.weight.shape[-1]
    y = F.conv2d(F.pad(x, (size // 2,) * 4), conv.weight, stride=stride)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (y * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]).clamp(min=0)


def randomised(module):
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(norm.weight, -1.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module.double().eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_equals_torchvisions(size, stride, kernel):
    """torchvision.ops.Conv2dNormActivation is the same block."""
    torch.manual_seed(0)
    ours = randomised(ConvNormAct(3, 5, kernel, stride))
    theirs = torchvision.ops.Conv2dNormActivation(3, 5, kernel, stride).double().eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), conv_by_hand(ours, x, stride))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [1, 2])
def test_zoomed_convolution_is_down_convolve_up(size, depth):
    torch.manual_seed(0)
    half = [(side + 1) // 2 for side in size]
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    keep = randomised(ZoomedConv(3, 5, 1, depth=depth))
    small = F.interpolate(x, half, mode="bilinear", align_corners=False)
    for layer in keep.block:
        small = conv_by_hand(layer, small)
    expected = torchvision_resize(small, list(size), antialias=False)
    torch.testing.assert_close(keep(x), expected)
    reduce = ZoomedConv(3, 5, 2, depth=depth).double().eval()
    reduce.load_state_dict(keep.state_dict())
    torch.testing.assert_close(reduce(x), small)  # with stride 2 the map is not upsampled


def test_halving_an_even_map_averages_blocks_of_four():
    x = torch.randn(1, 2, 6, 8)
    torch.testing.assert_close(resize(x, (3, 4)), F.avg_pool2d(x, 2))


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (7, 8), (1, 5)])
def test_factorized_reduce_reads_two_pixels_of_every_block(size):
    """The first half of the channels reads pixel (0, 0) of each 2x2 block, the second (1, 1), zero if outside."""
    torch.manual_seed(0)
    module = randomised(FactorizedReduce(3, 5))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    blocks = torch.zeros(2, 3, 2 * rows, 2 * columns, dtype=torch.float64)
    blocks[:, :, : size[0], : size[1]] = x
    even = torch.einsum("oi,nihw->nohw", module.even.weight[:, :, 0, 0], blocks[:, :, 0::2, 0::2])
    odd = torch.einsum("oi,nihw->nohw", module.odd.weight[:, :, 0, 0], blocks[:, :, 1::2, 1::2])
    assert (even.shape[1], odd.shape[1]) == (3, 2)
    torch.testing.assert_close(module(x), torch.relu(module.norm(torch.cat([even, odd], dim=1))))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_operator_keeps_its_promise_of_shape(name, stride):
    channels = 4 if (name, stride) == ("skip", 1) else 6
    module = make_operator(name, 4, channels, stride)
    for height, width in [(16, 16), (15, 17), (3, 2)]:
        out = module(torch.randn(2, 4, height, width))
        assert out.shape == (2, channels, -(-height // stride), -(-width // stride))


def test_the_first_of_two_convolutions_has_the_stride():
    block = ConvBlock(3, 4, 2, depth=2)
    assert [layer.conv.stride for layer in block] == [(2, 2), (1, 1)]
    assert [layer.conv.in_channels for layer in block] == [3, 4]
    assert all(layer.conv.bias is None for layer in block)
