"""Options that follow the tables of the papers: decoders, rates, modules, levels and backbones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.networks import create_network, field_of_view
from dnas.networks.regseg import RATE_LISTS
from dnas.networks.regseg_alternatives import ALTERNATIVES, warp
from dnas.networks.stdc import STDCBackbone, STDCClassifier
from dnas.ops import resize
from dnas.profile import SCALE_AND_SUM_PRICES, count_multiply_adds, count_parameters

#: RegSeg v1, Table 4.
PRINTED_FIELDS = dict(zip(range(1, 10), (3807, 3743, 3743, 3295, 3807, 2207, 4127, 3263, 3743), strict=True))


@pytest.mark.parametrize("row", PRINTED_FIELDS)
def test_rate_lists_have_the_printed_field_of_view(row: int) -> None:
    with torch.device("meta"):
        assert field_of_view(create_network("regseg", rates=f"v1_row{row}")) == PRINTED_FIELDS[row]


def test_lists_and_decoders_by_name() -> None:
    with torch.device("meta"):
        by_name = create_network("regseg", rates="v3_table2")
        assert field_of_view(by_name) == field_of_view(create_network("regseg_dnas")) == 2399
    assert len(RATE_LISTS) == 10
    with pytest.raises(UserError, match="expected a list of 13 blocks or one of v1_row1"):
        create_network("regseg", rates="v1_row10")
    with pytest.raises(UserError, match="expected one of regseg, sum_3x3"):
        create_network("regseg", decoder="unet")


@pytest.mark.parametrize("decoder", ALTERNATIVES)
def test_other_decoders_learn(decoder: str) -> None:
    torch.manual_seed(0)
    network = create_network("regseg", 3, decoder=decoder, width=0.25)
    logits = network(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 3, 64, 96)
    (logits * torch.randn_like(logits)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_flow_of_zero_is_resizing_and_one_of_a_pixel_moves() -> None:
    coarse = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    flow = torch.zeros(2, 2, 8, 10, dtype=torch.float64)
    torch.testing.assert_close(warp(coarse, flow), resize(coarse, (8, 10)))
    flow[:, 0] = 1
    torch.testing.assert_close(warp(coarse, flow)[..., :-1], resize(coarse, (8, 10))[..., 1:])


def test_dwrseg_with_three_modules_at_the_top() -> None:
    """Table 1 prints three repetitions and 2.54 M, which two modules and a convolution have."""
    with torch.device("meta"):
        assert round(count_parameters(create_network("dwrseg_b", top_modules=3)) / 1e6, 2) == 2.80
        base = count_parameters(create_network("dwrseg_b"))
        assert count_parameters(create_network("dwrseg_b", sir_modules=8, dwr_modules=8)) == count_parameters(
            create_network("dwrseg_l")
        )
    assert round(base / 1e6, 2) == 2.54


@pytest.mark.parametrize(
    ("design", "modules", "expected"),
    [
        ({"one_field": False}, nn.Conv2d, {"region.0": 64}),
        ({"ratio": [1, 1, 1]}, nn.Conv2d, {"branches.0": 64, "project": 128}),
        ({"ratio": [3, 1, 1]}, nn.Conv2d, {"branches.0": 192}),
        ({"region": 3}, nn.Conv2d, {"region.0": 384}),
    ],
)
def test_switches_of_table_2_change_the_channels(design: dict, modules: type, expected: dict) -> None:
    with torch.device("meta"):
        module = create_network("dwrseg_l", design=design).backbone.stage32[1]  # type: ignore[union-attr,index]
    for name, channels in expected.items():
        assert module.get_submodule(name).out_channels == channels


@pytest.mark.parametrize(
    ("situation", "norms", "activations"), [(0, 2, 1), (1, 2, 0), (2, 1, 1), (3, 1, 1), (4, 2, 2), (5, 3, 1)]
)
def test_situations_of_table_2_iv(situation: int, norms: int, activations: int) -> None:
    network = create_network("dwrseg_b", 3, design={"situation": situation}, width=0.25)
    module = network.backbone.stage32[1]  # type: ignore[union-attr,index]
    assert sum(isinstance(part, nn.BatchNorm2d) for part in module.modules()) == norms
    assert sum(isinstance(part, nn.ReLU) for part in module.modules()) == activations
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_switches_of_the_sir_module_and_mistakes() -> None:
    design = {"sir_expansion": 2, "sir_depthwise": True}
    module = create_network("dwrseg_b", 3, design=design).backbone.stage8[1]  # type: ignore[union-attr,index]
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert [(part.out_channels, part.groups) for part in convolutions] == [(128, 1), (128, 128), (64, 1)]
    with pytest.raises(UserError, match=r"design: situation: given 6"):
        create_network("dwrseg_b", design={"situation": 6})
    with pytest.raises(UserError, match="expected a number of modules"):
        create_network("dwrseg_b", top_modules=-1)


@pytest.mark.parametrize(("top", "printed"), [(5, 34.3e9), (7, 34.5e9)])
def test_eseg_by_feature_levels(top: int, printed: float) -> None:
    """ESeg, Table 1."""
    with torch.device("meta"):
        network = create_network("eseg_s", top_level=top)
    counted = count_multiply_adds(network, (1024, 2048), elementwise=SCALE_AND_SUM_PRICES)
    assert round(counted / 1e9, 1) * 1e9 == pytest.approx(printed)


@pytest.mark.parametrize(("top", "printed"), [(5, 39.8e9), (9, 40.0e9)])
def test_eseg_with_a_feature_pyramid_network(top: int, printed: float) -> None:
    """ESeg, Table 2: with the channels of BiFPN it takes up to 0.6 % more than printed."""
    with torch.device("meta"):
        network = create_network("eseg_s", top_level=top, pyramid="fpn")
    counted = count_multiply_adds(network, (1024, 2048), elementwise=SCALE_AND_SUM_PRICES)
    assert 0 < counted / printed - 1 < 0.006


@pytest.mark.parametrize(
    ("backbone", "printed", "off"), [("efficientnet_b1", 49.9e9, -0.0147), ("resnet50", 230.3e9, -0.0279)]
)
def test_deeplab_without_atrous_convolutions(backbone: str, printed: float, off: float) -> None:
    """ESeg, Table 8, "w/o atrous"."""
    with torch.device("meta"):
        network = create_network(f"deeplabv3plus_{backbone}", atrous=False)
    counted = count_multiply_adds(network, (1024, 2048), elementwise=SCALE_AND_SUM_PRICES)
    assert counted / printed - 1 == pytest.approx(off, abs=5e-4)


def test_mistakes_in_eseg() -> None:
    with pytest.raises(UserError, match="expected a level from 5 to 9"):
        create_network("eseg_s", top_level=4)
    with pytest.raises(UserError, match="expected bifpn or fpn"):
        create_network("eseg_s", pyramid="panet")


@pytest.mark.parametrize(
    ("modules", "parameters", "multiply_adds", "off"),
    [((2, 2, 2), "8.44", 813e6, -0.0085), ((4, 5, 3), "12.47", 1446e6, -0.0062)],
)
def test_stdc_classifies_with_the_printed_parameters(
    modules: tuple[int, ...], parameters: str, multiply_adds: float, off: float
) -> None:
    """STDC, Table 2."""
    with torch.device("meta"):
        network = STDCClassifier(STDCBackbone(modules))
    assert f"{count_parameters(network) / 1e6:.2f}" == parameters
    assert count_multiply_adds(network, (224, 224)) / multiply_adds - 1 == pytest.approx(off, abs=1e-3)
