import re

import pytest
import timm
import torch
from torch import nn
from torchvision.models.segmentation import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    fcn_resnet50,
    lraspp_mobilenet_v3_large,
)

from dnas.errors import UserError
from dnas.networks import create_network, dilation_bounds
from dnas.ops import fractional_layers, make_fractional, round_dilations

NETWORKS = {
    "deeplabv3": lambda: deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5),
    "deeplabv3 on mobilenet": lambda: deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5),
    "fcn": lambda: fcn_resnet50(weights=None, weights_backbone=None, num_classes=5),
    "lraspp": lambda: lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5),
    "dwrseg_b": lambda: create_network("dwrseg_b", num_classes=5),
    "timm's resnet18": lambda: timm.create_model("resnet18", features_only=True, output_stride=8, pretrained=False),
    "timm's mobilenet": lambda: timm.create_model("mobilenetv3_small_050", features_only=True, output_stride=16),
}


def output(network, images):
    with torch.no_grad():
        result = network.eval()(images)
    if isinstance(result, dict):
        return result["out"]
    return result[-1] if isinstance(result, list) else result


@pytest.mark.parametrize("name", NETWORKS)
def test_real_networks_compute_the_same_before_and_after(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    images = torch.randn(1, 3, 64, 96)
    expected = output(network, images)
    dilated = {
        n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and max(m.dilation) > 1 < m.kernel_size[0]
    }
    assert dilated

    fractional = make_fractional(network)
    layers = fractional_layers(fractional)
    assert layers.keys() == dilated.keys()
    torch.testing.assert_close(output(fractional, images), expected)
    bounds = dilation_bounds(network)
    for layer_name, layer in layers.items():
        assert layer.upper == max(bounds[layer_name], dilated[layer_name].dilation[0])
        assert f"{layer_name}.dilation" in dict(fractional.named_parameters())

    rounded = round_dilations(fractional)
    assert [str(part) for part in rounded.modules()] == [str(part) for part in network.modules()]
    torch.testing.assert_close(output(rounded, images), expected, rtol=0, atol=0)
    assert rounded.state_dict().keys() == network.state_dict().keys()


def test_rates_of_a_real_network_have_gradients():
    torch.manual_seed(0)
    fractional = make_fractional(NETWORKS["lraspp"]())
    fractional.train()(torch.randn(2, 3, 64, 64))["out"].square().mean().backward()
    assert all(layer.dilation.grad.abs() > 0 for layer in fractional_layers(fractional).values())


UNDILATED = {
    "pidnet_s": (lambda: create_network("pidnet_s", 5), ("backbone.context5.*", "backbone.detail5.*"), 3),
    "ddrnet_23_slim": (lambda: create_network("ddrnet_23_slim", 5), "backbone.low4.*", 4),
    "timm's regnety": (lambda: timm.create_model("regnety_002", features_only=True), "*b[12].conv2.conv", 6),
}
"""Networks without dilation, the layers whose rates are searched, and their number."""


@pytest.mark.parametrize("name", UNDILATED)
def test_any_layers_of_networks_without_dilation(name):
    """At rate 1 the network is the same, every rate learns, and rounded rates give a plain network of these rates."""
    make, layers, count = UNDILATED[name]
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)  # timm begins with residual branches that are zero
    images = torch.randn(2, 3, 64, 64)
    fractional = make_fractional(network, layers)
    found = fractional_layers(fractional)
    assert len(found) == count
    torch.testing.assert_close(output(fractional, images), output(network, images))
    with torch.no_grad():
        for layer in found.values():
            layer.dilation.fill_(min(1.75, layer.upper))
    result = fractional.train()(images)
    (result if isinstance(result, torch.Tensor) else result[-1]).square().mean().backward()
    gradients = torch.stack([layer.dilation.grad for layer in found.values()])
    assert gradients.isfinite().all()
    assert (gradients != 0).sum() >= count - 1  # a bound of 1 allows no other rate
    rounded = dict(round_dilations(fractional).named_modules())
    assert {rounded[name].dilation for name in found} <= {(1, 1), (2, 2)}
    assert not fractional_layers(rounded[""])


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Sequential(nn.Conv2d(8, 8, 5, 2, padding=4, dilation=2), nn.Conv2d(8, 8, 1)),
        nn.Conv2d(8, 8, 2),
    )


@pytest.mark.parametrize(
    ("layers", "selected"),
    [
        (None, ["2.0"]),
        ("1", ["1"]),
        ("*", ["0", "1", "2.0"]),
        (re.compile(r"^[01]$"), ["0", "1"]),
        (["2.*", re.compile("^0")], ["0", "2.0"]),
    ],
)
def test_layers_are_selected_by_name(layers, selected):
    network = small()
    images = torch.randn(1, 3, 20, 20)
    fractional = make_fractional(network, layers)
    assert list(fractional_layers(fractional)) == selected
    torch.testing.assert_close(output(fractional, images), output(network, images))


def test_the_original_network_is_unchanged():
    network = small()
    fractional = make_fractional(network, "1")
    with torch.no_grad():
        fractional_layers(fractional)["1"].weight.zero_()
    assert isinstance(network[1], nn.Conv2d)
    assert network[1].weight.abs().sum() > 0


def test_a_single_convolution_and_a_shared_one():
    conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
    images = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(make_fractional(conv)(images), conv(images))
    twice = nn.Sequential(conv, nn.ReLU(), conv)
    fractional = make_fractional(twice)
    assert fractional[0] is fractional[2]
    torch.testing.assert_close(fractional(images), twice(images))


def test_given_bounds_and_a_rate_above_its_bound():
    conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2)  # alone, k / s is 1
    assert make_fractional(conv).upper == 2
    assert make_fractional(conv, upper=9).upper == 9
    assert make_fractional(small(), "*", upper={"1": 5.5})[1].upper == 5.5
    with pytest.raises(UserError, match=r"upper bound 1.5 excludes its dilation rate 2"):
        make_fractional(conv, upper=1.5)
    with pytest.raises(UserError, match="an upper bound for 7: expected names of 1"):
        make_fractional(small(), "1", upper={"7": 3})


def conv(**settings):
    return nn.Sequential(nn.Conv2d(4, 4, 3, **{"padding": 2, "dilation": 2, **settings}))


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Renamed(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (conv(padding=1), r"layer 0 cannot .* padding \(1, 1\): expected dilation \* \(kernel // 2\) = 2"),
        (conv(padding="valid"), "padding valid"),
        (conv(padding_mode="reflect"), "padding mode 'reflect'"),
        (conv(dilation=(2, 1), padding=(2, 1)), "the same on both axes"),
        (conv(stride=(2, 1)), "the same on both axes"),
        (nn.Sequential(Own(4, 4, 3, padding=2, dilation=2)), "Own with its own forward"),
        (nn.Sequential(nn.LazyConv2d(4, 3, padding=2, dilation=2)), "run the network once"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=2, dilation=2))), "remove"),
        (nn.Sequential(nn.Conv2d(4, 4, 3)), "no convolution with a dilation above 1 .*candidates: 0"),
        (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 1)), *conv()), "input_size, channels or upper"),
    ],
)
def test_networks_that_cannot_be_made_fractional(network, message):
    with pytest.raises(UserError, match=message):
        make_fractional(network)


def test_subclasses_and_same_padding():
    network = nn.Sequential(Renamed(4, 6, 3, padding="same", dilation=3, bias=False).double())
    images = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(make_fractional(network)(images), network(images))


def test_a_pattern_that_matches_nothing_lists_the_candidates():
    with pytest.raises(UserError, match=r"'decoder\.\*' matches no .*candidates: 0, 1, 2.0"):
        make_fractional(small(), "decoder.*")


def test_rounding():
    fractional = make_fractional(small(), ["1", "2.0"], upper={"1": 3.0, "2.0": 2.9})
    layers = fractional_layers(fractional)
    with torch.no_grad():
        layers["1"].dilation.fill_(1.5)
        layers["2.0"].dilation.fill_(2.8)
    rounded = round_dilations(fractional)
    assert rounded[1].dilation == rounded[1].padding == (2, 2)
    # The nearest integer to 2.8 is 3, which exceeds the bound 2.9.
    assert (rounded[2][0].dilation, rounded[2][0].padding) == ((2, 2), (4, 4))
    assert type(rounded[1]) is nn.Conv2d
    assert round_dilations(fractional, lambda rates: dict.fromkeys(rates, 1))[1].dilation == (1, 1)


def test_invalid_rules():
    with pytest.raises(UserError, match="no fractional convolution"):
        round_dilations(small())
    fractional = make_fractional(small())
    with pytest.raises(UserError, match=r"returned no rate for 2\.0"):
        round_dilations(fractional, lambda rates: {})
    with pytest.raises(UserError, match=r"returned 1.5 for 2.0"):
        round_dilations(fractional, lambda rates: dict.fromkeys(rates, 1.5))
