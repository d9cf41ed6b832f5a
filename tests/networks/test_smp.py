"""Decoders of segmentation_models_pytorch, if it is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from dnas.errors import UserError
from dnas.networks import is_network_name, network_by_name

INSTALLED = importlib.util.find_spec("segmentation_models_pytorch") is not None


@pytest.mark.skipif(not INSTALLED, reason="needs segmentation_models_pytorch")
def test_any_size_and_the_packages_own_result():
    torch.manual_seed(0)
    network = network_by_name("smp:unet/resnet18", 3).eval()
    images = torch.randn(1, 3, 64, 96)
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    theirs = smp.create_model("unet", "tu-resnet18", encoder_weights=None, classes=3).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images))
        assert network(images[..., :-5, :-9]).shape == (1, 3, 59, 87)
    assert any(name.startswith("backbone.") for name, _ in network.named_parameters())
    with pytest.raises(UserError, match="Wrong architecture type"):
        network_by_name("smp:nothing/resnet18", 3)
    with pytest.raises(UserError, match="smp:unet/resnet18: options"):
        network_by_name("smp:unet/resnet18", 3, {"depth": 5})


@pytest.mark.skipif(INSTALLED, reason="is about its absence")
def test_the_extra_is_named_if_it_is_missing():
    with pytest.raises(UserError, match=r"pip install 'dnas\[smp\]'"):
        network_by_name("smp:unet/resnet18", 3)


def test_names():
    assert is_network_name("smp:unet/resnet18")
    assert is_network_name("torchvision:fcn_resnet50")
    assert not is_network_name("unet")
    with pytest.raises(UserError, match="expected smp:DECODER/ENCODER"):
        network_by_name("smp:unet", 3)
    with pytest.raises(UserError, match="smp:DECODER/ENCODER"):
        network_by_name("unet", 3)
