"""Fields of view from RegSeg's papers, and the recursion against the support of a gradient."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dnas.networks import Layer, create_network, dilation_bounds, field_of_layers, field_of_view
from dnas.networks.regseg_blocks import DBlock
from dnas.ops import fractional_layers, make_fractional
from dnas.receptive_field import fields_around

#: RegSeg v1, Table 4, rows 1 to 9: dilation rates of the last 13 blocks and the printed field of view.
TABLE_4 = [
    ([(1, 1), (1, 2)] + 4 * [(1, 4)] + 7 * [(1, 14)], 3807),
    ([(1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10)] + 7 * [(1, 12)], 3743),
    ([(1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10)] + 7 * [(1, 3, 6, 12)], 3743),
    ([(1, 1), (1, 2), (1, 4), (1, 6), (1, 8)] + 8 * [(1, 10)], 3295),
    ([(1, 1), (1, 2)] + 6 * [(1, 4)] + 5 * [(1, 6, 12, 18)], 3807),
    ([(1, 1), (1, 2), (1, 4)] + 10 * [(1, 6)], 2207),
    ([(1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10), (1, 12)] + 6 * [(1, 14)], 4127),
    (5 * [(1, 4)] + 8 * [(1, 10)], 3263),
    ([(1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10)] + 7 * [(1, 4, 8, 12)], 3743),
]

#: All layers of RegSeg and of RegNetY-600MF up to the first at 1/16: five of stride 2, two of stride 1 at 1/8.
TO_SIXTEENTH = [(3, 2), (3, 2), (3, 2), (3, 1), (3, 1), (3, 2)]


@pytest.mark.parametrize(("rates", "printed"), TABLE_4, ids=[f"row{row}" for row in range(1, 10)])
def test_table_4_of_regseg(rates: list[tuple[int, ...]], printed: int) -> None:
    with torch.device("meta"):
        network = create_network("regseg", rates=rates)
    assert field_of_view(network) == printed
    dilated = [(3, 1, max(block)) for block in rates]
    assert field_of_layers(TO_SIXTEENTH + dilated).pixels == printed


def test_figure_2_of_regseg() -> None:
    # DeepLabv3+ on RegNetY-600MF with output stride 16. Row 10 of Table 4 is this backbone too and prints 607, but
    # the recursion gives 479, as does Fig. 2 of version 3: 7 blocks of rate 1 and 3 of rate 2 after the first at 1/16
    # (which the row's "8*(1,1)" includes).
    backbone = TO_SIXTEENTH + 7 * [(3, 1)] + 3 * [(3, 1, 2)]
    assert field_of_layers(TO_SIXTEENTH).pixels == 63
    assert field_of_layers(backbone).pixels == 479
    assert field_of_layers([*backbone, (3, 1, 18)]).pixels == 1055


def test_regnet_of_figure_2_itself() -> None:
    with torch.device("meta"):
        regnet = timm.create_model("regnety_006", features_only=True, output_stride=16, pretrained=False)
    assert field_of_view(regnet) == 479


@st.composite
def _layers(draw: st.DrawFn) -> list[Layer]:
    """Up to four layers that leave no gaps: bounded dilation rates, and no 1x1 convolution with a stride."""
    layers: list[Layer] = []
    for _ in range(draw(st.integers(1, 4))):
        bound = int(field_of_layers(layers).largest_dilation)
        kernel, stride = draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)]))
        layers.append(Layer(kernel, stride, draw(st.integers(1, min(bound, 3)))))
    return layers


@settings(max_examples=25, deadline=None)
@given(_layers())
def test_recursion_is_the_support_of_the_gradient(layers: list[Layer]) -> None:
    chain = nn.Sequential(*(_ones(layer) for layer in layers))
    field = field_of_layers(layers)
    assert field_of_view(chain, channels=1) == field.pixels
    size = 2 * field.pixels + 2 * int(field.stride)
    assert _support(chain, (size, size)) == field.pixels


def test_network_is_the_support_of_the_gradient() -> None:
    """A small network of our own blocks: strides, dilated branches, shortcuts with average pooling."""
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), DBlock(16, 32, stride=2), DBlock(32, 32, (1, 2)), DBlock(32, 32, (1, 3))
    )
    for block in network:
        if isinstance(block, DBlock):
            block.attention = nn.Identity()  # its global average reads the whole image
    _fill_with_ones(network)
    field = field_of_view(network, channels=1)
    assert field == field_of_layers([(3, 2), (3, 2), (3, 1, 2), (3, 1, 3)]).pixels == 47
    assert _support(network, (128, 128)) == field


def test_any_network() -> None:
    """ResNet-18: its known receptive field; the network is not changed."""
    resnet = torchvision.models.resnet18(weights=None)
    features = nn.Sequential(*list(resnet.children())[:-2])
    before = {key: value.clone() for key, value in features.state_dict().items()}
    assert field_of_view(features) == 435  # also in Araujo et al., Computing receptive fields of CNNs, 2019
    assert features.training
    assert all(torch.equal(value, before[key]) for key, value in features.state_dict().items())


def test_transposed_convolutions_and_interpolations() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 4, 3, 1, 1))
    assert field_of_view(chain) == 3 + 2
    chain = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 1, 3, 1, 1))
    assert field_of_view(chain) == 2 + 2 + 2
    chain = nn.Sequential(nn.Conv2d(3, 1, (1, 7), padding=(0, 3)))
    assert field_of_view(chain) == 7


def test_a_module_may_declare_its_layer() -> None:
    class Fractional(nn.Module):
        def field_layer(self) -> Layer:
            return Layer(3, 1, 2.5)

        def forward(self, features: Tensor) -> Tensor:
            return features * 2

    network = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), Fractional())
    assert field_of_view(network) == 3 + 2 * 3 * 2  # a rate of 2.5 reads the pixels at 3 too
    assert dilation_bounds(network) == {"0": 1.0, "1": 1.5}


def test_fields_around_layers_come_in_the_order_in_which_they_run() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=5, dilation=5),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
    )
    found = fields_around(network, ["3", "1", "0"])
    assert list(found) == ["0", "1", "3"]
    assert [(before.pixels, after.pixels) for before, after in found.values()] == [(1, 3), (3, 23), (23, 23)]
    assert [int(after.stride) for _, after in found.values()] == [2, 2, 2]
    fractional = make_fractional(network, "1", upper=8.0)
    with torch.no_grad():
        next(iter(fractional_layers(fractional).values())).dilation.fill_(2.5)
    assert fields_around(fractional, ["1"])["1"][1].pixels == 3 + 2 * 3 * 2  # as wide as the next integer rate


def test_bounds_of_dilation() -> None:
    """r <= k / s, with k and s of the layers before (RegSeg v3, section 3.1 and Fig. 3)."""
    chain = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 3, dilation=3), nn.Conv2d(4, 4, 1))
    assert dilation_bounds(chain) == {"0": 1.0, "2": 3.0}
    with torch.device("meta"):
        bounds = dilation_bounds(create_network("regseg_dnas"))
    assert bounds["backbone.stage16.1.dilated.branches.0"] == 63 / 16
    assert bounds["backbone.stage16.13.dilated.branches.1"] == (2399 - 2 * 14 * 16) / 16


def test_global_averages_do_not_count() -> None:
    """LR-ASPP: its gate reads the whole image; two bilinear upsamplings, from 1/16 and 1/8, add one value each."""
    with torch.device("meta"):
        network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert field_of_view(network) == field_of_view(network.backbone) + 16 + 8


def _ones(layer: Layer) -> nn.Conv2d:
    dilation = int(layer.dilation)
    padding = dilation * (layer.kernel // 2)
    convolution = nn.Conv2d(1, 1, layer.kernel, layer.stride, padding, dilation, bias=False)
    _fill_with_ones(convolution)
    return convolution


def _fill_with_ones(module: nn.Module) -> None:
    """Set all weights to 1, in float64: no path cancels another, and ReLU is the identity."""
    module.double().eval()
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)


def _support(module: nn.Module, size: tuple[int, int]) -> int:
    """Height in pixels of the image region that a value in the middle of the output depends on."""
    image = torch.ones(1, 1, *size, dtype=torch.float64, requires_grad=True)
    output = module(image)
    output[..., output.shape[-2] // 2, output.shape[-1] // 2].sum().backward()
    assert image.grad is not None
    rows = image.grad[0, 0].ne(0).any(1).nonzero()
    columns = image.grad[0, 0].ne(0).any(0).nonzero()
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    assert height == width == len(rows) == len(columns), "a gap"
    return height
