from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from dnas.profile import FVCORE_PRICES, ElementwisePrices, count_multiply_adds, count_parameters, meta_copy


def test_convolutions_by_hand() -> None:
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 5, padding=2, groups=4), nn.ConvTranspose2d(8, 2, 2, 2)
    )
    expected = 8 * 10 * 8 * 27 + 8 * 10 * 8 * 2 * 25 + 8 * 10 * 8 * 2 * 4
    assert count_multiply_adds(chain, (16, 20)) == expected
    assert count_parameters(chain) == 3 * 8 * 9 + 8 + 8 * 2 * 25 + 8 + 8 * 2 * 4 + 2


def test_a_shared_parameter_counts_once() -> None:
    first = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(first, first)) == 20


def test_published_count_of_resnet_18() -> None:
    """1.814 G at 224x224 (torchvision's figure)."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert round(count_multiply_adds(torchvision.models.resnet18(), (224, 224)) / 1e9, 3) == weights.meta["_ops"]


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torchvision.ops.DeformConv2d(4, 8, 3, padding=1, groups=2)

    def forward(self, features: Tensor) -> Tensor:
        offsets = features.new_zeros(features.shape[0], 18, *features.shape[-2:])
        result: Tensor = self.layer(features, offsets)
        return result


def test_deformable_convolutions_count_like_convolutions() -> None:
    plain = nn.Conv2d(4, 8, 3, padding=1, groups=2)
    assert count_multiply_adds(Deformable(), (10, 12), 4) == count_multiply_adds(plain, (10, 12), 4) == 120 * 8 * 18


def test_elementwise_work_by_hand() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(1))
    assert count_multiply_adds(network, (4, 5)) == 0
    assert count_multiply_adds(network, (4, 5), elementwise=FVCORE_PRICES) == 60 * 2 + 240 * 4 + 240
    assert count_multiply_adds(network, (4, 5), elementwise=ElementwisePrices(normalised=1)) == 60


def test_the_module_is_untouched() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.register_buffer("numbers", torch.arange(3))
    network.plain = torch.ones(2)  # a tensor that is neither parameter nor buffer
    before = {key: value.clone() for key, value in network.state_dict().items()}
    shadow = meta_copy(network)
    assert all(value.is_meta for value in (*shadow.state_dict().values(), shadow.plain))
    count_multiply_adds(network, (16, 16))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
