"""Parts of DWRSeg and ESeg against the figures of their papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnas.networks import create_network
from dnas.networks.bifpn import BiFPN
from dnas.networks.dwrseg_blocks import DWRModule
from dnas.networks.efficientnet import FusedEfficientNetBackbone, scale_channels
from dnas.networks.eseg import ESegDecoder
from dnas.profile import count_parameters


def test_dwr_module_of_three_branches() -> None:
    """Section 3.2, Table 2: region features 1.5 times the input, branches 2:1:1, dilation rates 1, 3 and 5."""
    module = DWRModule(128, (1, 3, 5))
    region = module.region[0]
    assert isinstance(region, nn.Conv2d)
    assert region.out_channels == 1.5 * 128
    branches = [branch for branch in module.branches if isinstance(branch, nn.Conv2d)]
    assert [branch.out_channels for branch in branches] == [128, 64, 64]
    assert [branch.dilation[0] for branch in branches] == [1, 3, 5]
    assert all(branch.groups == branch.in_channels for branch in branches)
    assert module(torch.randn(2, 128, 5, 7)).shape == (2, 128, 5, 7)


@pytest.mark.parametrize(("top", "printed"), [(5, 6.4e6), (7, 6.6e6), (9, 6.9e6)])
def test_parameters_by_feature_levels(top: int, printed: float) -> None:
    """ESeg, Table 1: ESeg-S with levels P2 to P5, P7 and P9."""
    with torch.device("meta"):
        network = create_network("eseg_s")
        network.decoder = ESegDecoder((24, 40, 112, 320), top - 1, 96, 4, nn.SiLU)
    assert round(count_parameters(network) / 1e6, 1) * 1e6 == pytest.approx(printed)


def test_pyramid_reaches_from_top_to_bottom_and_back() -> None:
    """Every level of the result depends on every level of the input."""
    torch.manual_seed(0)
    pyramid = BiFPN((4, 6), levels=4, channels=8, repeats=1, activation=nn.SiLU).eval()
    features = [torch.randn(1, 4, 16, 24, requires_grad=True), torch.randn(1, 6, 8, 12, requires_grad=True)]
    results = pyramid(features)
    assert [tuple(level.shape) for level in results] == [(1, 8, 16, 24), (1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)]
    for level in results:
        gradients = torch.autograd.grad(level.square().sum(), features, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_eseg_lite_has_only_what_tensorrt_likes() -> None:
    """Section 3.3: no depth-wise convolution, no squeeze and excitation, ReLU only, in the backbone; P3 to P9."""
    backbone = FusedEfficientNetBackbone(0.4, 0.6)
    convolutions = [part for part in backbone.modules() if isinstance(part, nn.Conv2d)]
    assert all(convolution.groups == 1 for convolution in convolutions)
    assert not any(isinstance(part, (nn.AdaptiveAvgPool2d, nn.SiLU, nn.Sigmoid)) for part in backbone.modules())
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[-2:]) for level in maps] == [(8, 12), (4, 6), (2, 3)]
    assert tuple(level.shape[1] for level in maps) == backbone.channels


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(32, 0.4, 16), (24, 0.4, 16), (40, 1.4, 56), (320, 2, 640)]
)
def test_scaled_channels(channels: int, width: float, expected: int) -> None:
    """40 x 1.4 and 320 x 2 are EfficientNet-B4's and B7's; 24 x 0.4 = 9.6 rounds up because 8 is a sixth smaller."""
    assert scale_channels(channels, width) == expected


def test_fused_backbone_has_efficientnets_widths() -> None:
    """At width and depth 1 the maps have EfficientNet-B0's channels."""
    with torch.device("meta"):
        assert FusedEfficientNetBackbone(1.0, 1.0).channels == (40, 112, 320)
