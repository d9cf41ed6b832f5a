"""Tests of every registered network; a new network is tested without a new test."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnas.networks import HasAuxiliaryHeads, create_network, field_of_view, list_networks, network_facts
from dnas.profile import count_multiply_adds, count_parameters

CLASSES = 5
SMALL = (64, 64)
ODD = (97, 131)


@pytest.fixture(scope="module", params=list_networks())
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return create_network(request.param, CLASSES)


def _printing(figure: str) -> list[str]:
    """The networks whose paper gives this figure."""
    return [name for name in list_networks() if getattr(network_facts(name), figure) is not None]


@pytest.mark.parametrize("size", [SMALL, ODD], ids=["small", "odd"])
def test_logits_have_the_size_of_the_image_and_are_deterministic(network: nn.Module, size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size)
    network.eval()
    with torch.no_grad():
        logits, again = network(images), network(images)
    assert logits.shape == (1, CLASSES, *size)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, again)


def test_every_parameter_learns(network: nn.Module) -> None:
    network.train()
    network.zero_grad(set_to_none=True)
    # One random weight per pixel and class: the plain sum is constant after a BatchNorm.
    logits = network(torch.randn(2, 3, *SMALL))
    (logits * torch.randn_like(logits)).sum().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all(), name


def test_input_depends_on_the_whole_path(network: nn.Module) -> None:
    images = torch.randn(1, 3, *SMALL, requires_grad=True)
    network.eval()
    network(images)[0, :, 32, 32].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", _printing("parameters"))
def test_parameters_are_those_of_the_paper(name: str) -> None:
    facts = network_facts(name)
    assert facts.parameters is not None
    with torch.device("meta"):
        counted = count_parameters(create_network(name))
    _check(counted, facts.parameters.value, facts.parameters.half_digit, facts.parameters_off)


@pytest.mark.parametrize("name", _printing("multiply_adds"))
def test_multiply_adds_are_those_of_the_paper(name: str) -> None:
    facts = network_facts(name)
    assert facts.multiply_adds is not None
    with torch.device("meta"):
        network = create_network(name)
    counted = count_multiply_adds(network, facts.input_size, elementwise=facts.elementwise)
    _check(counted, facts.multiply_adds.value, facts.multiply_adds.half_digit, facts.multiply_adds_off)


@pytest.mark.parametrize("name", _printing("field_of_view"))
def test_field_of_view_is_that_of_the_paper(name: str) -> None:
    facts = network_facts(name)
    with torch.device("meta"):
        network = create_network(name)
    assert field_of_view(network) == facts.field_of_view


def test_fasterseg_as_trained_has_the_printed_parameters() -> None:
    """Table 3: 4.4 M, with auxiliary heads at 1/16 and 1/32; the heads' form is that of the published code."""
    with torch.device("meta"):
        network = create_network("fasterseg_student")
        network.add_auxiliary_heads()  # type: ignore[operator]
    assert round(count_parameters(network) / 1e6, 1) == 4.4
    torch.manual_seed(0)
    small = create_network("fasterseg_student", CLASSES, width=0.25)
    small.add_auxiliary_heads()  # type: ignore[operator]
    logits, at16, at32 = small(torch.randn(2, 3, 64, 96))
    assert (logits.shape, at16.shape, at32.shape) == ((2, 5, 64, 96), (2, 5, 4, 6), (2, 5, 2, 3))
    (logits.sum() + at16.square().sum() + at32.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert small.eval()(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96)


AUXILIARY = {
    "pidnet_s": [(CLASSES, 8), (1, 8)],
    "ddrnet_23_slim": [(CLASSES, 8)],
    "bisenet_v2": [(CLASSES, 4), (CLASSES, 8), (CLASSES, 16), (CLASSES, 32)],
    "stdc1": [(1, 8), (CLASSES, 8), (CLASSES, 16)],
}
"""Channels and stride of the auxiliary heads, in their order."""


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_heads_are_for_the_training_only(name: str) -> None:
    """Logits of the heads follow the main ones in training; inference and the plain weights stay what they are."""
    torch.manual_seed(0)
    network = create_network(name, CLASSES)
    assert isinstance(network, HasAuxiliaryHeads)
    images, names = torch.randn(2, 3, 64, 128), set(network.state_dict())
    with torch.no_grad():
        before = network.eval()(images[:1])
    network.add_auxiliary_heads()
    with torch.no_grad():
        assert torch.equal(network(images[:1]), before)
    added = {key.split(".")[0] for key in set(network.state_dict()) - names}
    assert added == {"auxiliary"}
    logits, *heads = network.train()(images)
    assert logits.shape == (2, CLASSES, 64, 128)
    assert [tuple(head.shape) for head in heads] == [
        (2, channels, 64 // stride, 128 // stride) for channels, stride in AUXILIARY[name]
    ]
    (logits.sum() + sum(head.square().sum() for head in heads)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.remove_auxiliary_heads()
    assert set(network.state_dict()) == names


def _check(counted: int, printed: float, half_digit: float, stated_deviation: float) -> None:
    """Equal to the last printed digit, or off by the stated deviation within 0.05 %."""
    if stated_deviation == 0:
        assert abs(counted - printed) <= half_digit
    else:
        assert abs(counted - printed) > half_digit, "meets the paper: the stated deviation can go"
        assert counted / printed - 1 == pytest.approx(stated_deviation, abs=5e-4)
