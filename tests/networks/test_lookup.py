"""Unpublished networks by name."""

import pytest
import torch
import torchvision

from dnas.errors import UserError
from dnas.networks import create_network, field_of_view, network_by_name


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvision_networks_compute_what_they_compute_there(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval()
    torch.manual_seed(0)
    ours = network_by_name(f"torchvision:{name}", 5).eval()
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    images = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images)["out"])


def test_options_reach_torchvision():
    network = network_by_name("torchvision:fcn_resnet50", 3, {"aux_loss": True})
    assert not any(name.startswith("aux") for name, _ in network.named_parameters())
    with pytest.raises(UserError, match=r"torchvision:fcn_resnet50: options .* do not fit"):
        network_by_name("torchvision:fcn_resnet50", 3, {"weights": "the best"}, download=True)


@pytest.mark.parametrize("option", ["weights", "weights_backbone"])
def test_nothing_is_downloaded_unless_it_is_allowed(option, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(UserError, match=rf"the option {option} would download.*--download"):
        network_by_name("torchvision:fcn_resnet50", 3, {option: "DEFAULT"})


@pytest.mark.parametrize(
    "options",
    [{"rates": [[1e30, 1]] * 13}, {"rates": [[10**30, 1]] * 13}, {"rates": [[1, 1]] * 5000}, {"width": 1e30}, {"x": 1}],
)
def test_options_beyond_all_bounds_are_one_line(options):
    with pytest.raises(UserError, match=r"network regseg: "):
        network_by_name("regseg", 3, options)


def test_published_networks_come_with_their_options():
    first = network_by_name("regseg", 3, {"rates": [[1, 3]] * 13})
    second = create_network("regseg", 3, rates=[[1, 3]] * 13)
    assert field_of_view(first) == field_of_view(second)


@pytest.mark.parametrize("size", [(64, 64), (97, 131)])
def test_the_small_regseg(size):
    network = network_by_name("regseg_small", 3, {"rates": [[1, 2], [3, 3]], "width": 32})
    logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    (logits * torch.randn_like(logits)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert field_of_view(network) == 15 + 16 * 5
