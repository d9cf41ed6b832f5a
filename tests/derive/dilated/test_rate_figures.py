"""Figures of a search of dilation rates."""

import pytest

from derive.dilated.rate_figures import by_block, rate_curves, sampling_positions
from dnas.report import svg_text

LAYERS = [f"backbone.blocks.{block}.dilated.branches.{branch}" for block in range(6) for branch in (0, 1)]


def records(epochs, upper=True):
    for epoch in range(epochs):
        for step in range(3):
            yield {"kind": "step", "epoch": epoch, "step": step, "loss_weights": 1 / (epoch + step + 1)}
        yield {
            "kind": "epoch",
            "epoch": epoch,
            "miou": {"network": 0.1 * epoch} if epoch % 2 else None,
            "rates": dict.fromkeys(LAYERS, 1.0 + 0.5 * epoch),
            "upper": dict.fromkeys(LAYERS, 2.0 + epoch) if upper else {},
            "field_of_view": 100 + 16 * epoch,
        }


@pytest.mark.parametrize(("epochs", "upper"), [(1, True), (4, True), (4, False), (60, True)])
def test_curves_show_every_block(epochs, upper):
    lines = list(records(epochs, upper))
    initial = dict.fromkeys(LAYERS, 1.0)
    text = svg_text(rate_curves(lines, initial, 100))
    assert text == svg_text(rate_curves(lines, initial, 100))
    for expected in ("Field of view", "Validation mIoU", *(f"blocks.{block}" for block in range(6))):
        assert expected in text


@pytest.mark.parametrize("blocks", [1, 2, 6])
def test_positions_of_a_block_are_a_panel(blocks):
    searched = {name: 1.5 + index for index, name in enumerate(LAYERS[: 2 * blocks])}
    text = svg_text(sampling_positions(searched, {name: int(rate) for name, rate in searched.items()}))
    assert "(1.5, 2.5) → (1, 2)" in text
    assert all(f"blocks.{block}" in text for block in range(blocks))


def test_layers_of_any_name_are_grouped_into_blocks():
    assert by_block({"a.branches.0": 1, "a.branches.1": 2, "conv": 3, "aspp.1.0": 4}) == {
        "a": (1, 2),
        "conv": (3,),
        "aspp.1": (4,),
    }
