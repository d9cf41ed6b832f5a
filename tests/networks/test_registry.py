from __future__ import annotations

import pytest
from torch import nn

from dnas.errors import UserError
from dnas.networks import NetworkRegistry, PaperFacts, PrintedFigure, create_network, list_networks, network_facts

FACTS = PaperFacts(source="none", input_size=(64, 64))


def test_the_papers_networks_are_there() -> None:
    published = {"regseg", "regseg_dnas", "dwrseg_b", "dwrseg_l", "eseg_s", "eseg_m", "eseg_l"}
    published |= {"eseg_lite_s", "eseg_lite_m", "eseg_lite_l"}
    assert published <= set(list_networks())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'regsegg'.*dwrseg_b.*regseg_dnas"):
        create_network("regsegg")
    with pytest.raises(UserError, match="known networks"):
        network_facts("nothing")


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"regseg: unknown option depth; known options: rates, split_equal"):
        create_network("regseg", depth=3)


@pytest.mark.parametrize("classes", [0, -1, True, 2.0])
def test_classes_must_be_a_positive_number(classes: int) -> None:
    with pytest.raises(UserError, match="expected an integer of at least 1"):
        create_network("regseg", classes)


def test_a_name_can_be_given_once() -> None:
    registry = NetworkRegistry()

    @registry.register("one", FACTS)
    def one(num_classes: int) -> nn.Module:
        return nn.Conv2d(3, num_classes, 1)

    with pytest.raises(ValueError, match="'one' is already registered"):
        registry.register("one", FACTS)(one)
    assert registry.names() == ["one"]
    assert isinstance(registry.create("one", 7), nn.Conv2d)


@pytest.mark.parametrize(
    ("text", "value", "half_digit"), [("3.34M", 3.34e6, 5e3), ("39.1G", 39.1e9, 5e7), ("112G", 112e9, 5e8)]
)
def test_a_printed_figure_knows_its_precision(text: str, value: float, half_digit: float) -> None:
    figure = PrintedFigure(text)
    assert figure.value == pytest.approx(value)
    assert figure.half_digit == pytest.approx(half_digit)


def test_a_deviation_from_the_paper_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        PaperFacts(source="none", input_size=(64, 64), parameters_off=0.1)
