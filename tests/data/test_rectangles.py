from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnas.data import DataConfig, open_dataset
from dnas.data.labels import builtin_classes
from dnas.data.rectangles import draw_bars, random_bars, top_quarter

LABELS = builtin_classes("rectangles").labels


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), height=st.integers(16, 128), width=st.integers(16, 200), data=st.data())
def test_above_the_foot_the_pixels_are_the_same_for_any_classes(seed: int, height: int, width: int, data):
    bars = random_bars(width, LABELS.num_classes, seed)
    classes = st.lists(st.integers(1, 5), min_size=len(bars.label), max_size=len(bars.label))
    other = dataclasses.replace(bars, label=tuple(data.draw(classes)))
    image, mask = draw_bars(bars, (height, width), LABELS, seed)
    changed, changed_mask = draw_bars(other, (height, width), LABELS, seed)
    foot = max(1, round(height / 16))
    np.testing.assert_array_equal(image[:-foot], changed[:-foot])
    assert (bars.label == other.label) == np.array_equal(mask, changed_mask)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**40), width=st.integers(8, 1024))
def test_rectangles_are_apart_and_inside(seed: int, width: int):
    bars = random_bars(width, LABELS.num_classes, seed)
    end = -1
    for left, wide, label in zip(bars.left, bars.width, bars.label, strict=True):
        assert left > end
        assert wide >= 1
        assert 1 <= label < LABELS.num_classes
        end = left + wide
    assert end <= width


def test_the_foot_shows_the_class_of_its_column_and_the_label_has_full_height():
    dataset = open_dataset(DataConfig(dataset="rectangles", size=(128, 256)), "train")
    colours = np.array(LABELS.colours, np.float32)
    for index in range(5):
        image, mask = (item.numpy() for item in dataset[index])
        assert (mask == mask[:1]).all()
        foot = image[:, -8:].mean(1).T.astype(np.float32)
        nearest = np.abs(foot[:, None] - colours[None]).sum(-1).argmin(1)
        np.testing.assert_array_equal(nearest, mask[0])


def test_thin_and_wide_rectangles_and_all_classes_occur():
    """At the paper's image size the smallest width is 8 pixels (RegSeg, version 3, section 3.6)."""
    bars = [random_bars(1024, LABELS.num_classes, seed) for seed in range(60)]
    widths = [wide for item in bars for wide in item.width]
    assert 8 <= min(widths) <= 9
    assert 80 <= max(widths) <= 96
    assert {label for item in bars for label in item.label} == {1, 2, 3, 4, 5}


def test_reading_is_repeatable_and_splits_differ():
    config = DataConfig(dataset="rectangles", size=(64, 64), seed=1)
    train, again, val = (open_dataset(config, split) for split in ("train", "train", "val"))
    assert torch.equal(train[3][0], again[3][0])
    assert not torch.equal(train[3][0], val[3][0])


def test_the_top_quarter_counts_rectangles_only():
    labels = torch.zeros(2, 16, 8, dtype=torch.int64)
    labels[:, :, 2:4] = 3
    prediction = torch.zeros_like(labels)
    prediction[0, :4, 2] = 3  # correct; the background beside it does not count
    prediction[1, 4:, 2:4] = 3  # correct, but below the quarter
    assert top_quarter(prediction, labels) == (4, 16)
    assert top_quarter(labels, labels) == (16, 16)
    assert top_quarter(prediction[0], labels[0]) == (4, 8)
