"""The picture of a search of dilation rates, and the sampling positions in it."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from derive.dilated.growth_picture import Growth, Stage, growth_picture, sampled_weights
from dnas.report import ClassLabels, png_bytes, svg_text

LABELS = ClassLabels(names=["ground", "red"], colours=[(60, 60, 60), (200, 30, 30)])


def test_weights_are_those_of_all_ways_through_the_blocks():
    """Equal to a sum over all paths: each block takes the shortcut (1/2) or one of nine positions of a branch."""
    rates, shape, start = ((1, 3), (2, 2)), (11, 12), (3, 4)
    expected = np.zeros(shape)
    steps = []
    for block in rates:
        moves = [(0, 0, 0.5)]
        moves += [(r * a, r * b, 0.5 / 18) for r in block for a, b in product((-1, 0, 1), repeat=2)]
        steps.append(moves)
    for first, second in product(*steps):
        middle = (start[0] + first[0], start[1] + first[1])
        row, column = middle[0] + second[0], middle[1] + second[1]
        inside = 0 <= middle[0] < shape[0] and 0 <= middle[1] < shape[1]
        if inside and 0 <= row < shape[0] and 0 <= column < shape[1]:
            expected[row, column] += first[2] * second[2]
    np.testing.assert_allclose(sampled_weights(rates, shape, start), expected, atol=1e-12)


def test_between_whole_rates_and_positions_weights_are_interpolated():
    wide = (41, 41)
    one = sampled_weights([[1.25]], wide, (20, 20.5))
    assert one.sum() == pytest.approx(1)
    rows = np.arange(41.0)
    assert (one.sum(1) * rows).sum() == pytest.approx(20)
    assert (one.sum(0) * rows).sum() == pytest.approx(20.5)
    # The variance along an axis: 0 on the shortcut, else 2/3 r^2, increased by the interpolation.
    exact = 0.5 * (2 / 3) * (0.75 * 1 + 0.25 * 4)
    assert (one.sum(1) * (rows - 20) ** 2).sum() == pytest.approx(exact)


def test_weights_reach_as_far_as_the_field_of_view():
    reached = sampled_weights([[1.0, 2.5], [4.0]], (41, 41), (20, 20)) > 0
    kernel = torch.ones(1, 1, 3, 3)
    blank = torch.zeros(1, 1, 41, 41)
    blank[0, 0, 20, 20] = 1
    seen = F.conv2d(F.conv2d(blank, kernel, padding=3, dilation=3), kernel, padding=4, dilation=4) > 0
    rows = np.flatnonzero(reached.any(1))
    assert (rows[0], rows[-1]) == (13, 27) == tuple(torch.nonzero(seen[0, 0].any(1)).flatten()[[0, -1]].tolist())


def stages(count, size=(64, 48)):
    mask = np.zeros(size, np.int64)
    return [
        Stage(
            step=10 * i,
            prediction=mask,
            rates=[[1.0, 1.0 + i], [1.0]],
            field_of_view=100 + i,
            note=f"top quarter {i} % right",
        )
        for i in range(count)
    ]


def growth(count):
    rng = np.random.default_rng(0)
    truth = np.zeros((64, 48), np.int64)
    truth[:, 20:28] = 1
    image = rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)
    return Growth(image=image, truth=truth, stages=stages(count), scale=8, pixel=(8, 24), labels=LABELS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_picture_names_every_stage(count):
    text = svg_text(growth_picture(growth(count)))
    for stage in stages(count):
        assert f"step {stage.step}" in text
        assert stage.note in text
        assert f"FoV {stage.field_of_view} px" in text
    assert png_bytes(growth_picture(growth(count))) == png_bytes(growth_picture(growth(count)))


def test_no_stages_no_picture():
    with pytest.raises(ValueError, match="no stages"):
        growth_picture(growth(0))
