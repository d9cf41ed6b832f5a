from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnas.data import DataConfig, load_data_config, open_dataset
from dnas.data.streets import render_street
from dnas.data.streets.camera import FAR, Camera, Kind
from dnas.data.streets.rays import _crossing


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [render_street(seed, (128, 256)) for seed in range(40)]


def test_the_classes_are_those_of_the_labels():
    labels = open_dataset(load_data_config("streets"), "train").labels
    assert tuple(kind.name.lower() for kind in Kind) == labels.names


def test_every_class_occurs_often_enough_to_be_learnt(scenes):
    shares = np.bincount(np.concatenate([mask.ravel() for _, mask in scenes]), minlength=11) / (40 * 128 * 256)
    assert shares.min() > 0.001, dict(zip(Kind, shares, strict=True))
    assert shares.max() < 0.5


def test_classes_lie_where_a_street_has_them(scenes):
    masks = np.stack([mask for _, mask in scenes])
    assert (masks[:, -8:] == Kind.ROAD).mean() > 0.5
    assert not np.isin(masks[:, :16], (Kind.ROAD, Kind.PAVEMENT)).any()
    assert not (masks[:, -16:] == Kind.SKY).any()
    rows = np.arange(128)[None, :, None]
    mean_row = {kind: float((rows * (masks == kind)).sum() / (masks == kind).sum()) for kind in Kind}
    assert mean_row[Kind.SKY] < mean_row[Kind.BUILDING] < mean_row[Kind.CAR] < mean_row[Kind.ROAD]


def test_colour_alone_does_not_tell_pavement_from_road(scenes):
    """The mean colours of both surfaces overlap between scenes, so a network has to use the position."""
    means = {
        kind: np.array([image[mask == kind].mean() for image, mask in scenes if (mask == kind).sum() > 200])
        for kind in (Kind.ROAD, Kind.PAVEMENT)
    }
    gap = abs(means[Kind.ROAD].mean() - means[Kind.PAVEMENT].mean())
    assert gap < means[Kind.ROAD].std()


def test_poles_are_thin(scenes):
    """Most horizontal runs of pole pixels are a few pixels long."""
    runs = []
    for _, mask in scenes:
        padded = np.pad((mask[:48] == Kind.POLE).astype(np.int8), ((0, 0), (1, 1)))
        steps = np.diff(padded, axis=1)
        runs.append(np.argwhere(steps == -1)[:, 1] - np.argwhere(steps == 1)[:, 1])
    assert np.median(np.concatenate(runs)) <= 3


def test_an_image_depends_on_seed_split_index_and_size_only():
    def images(**changes):
        return open_dataset(DataConfig(dataset="streets", size=(48, 64), **changes), "train")

    first, second = images(seed=3), images(seed=3, images={"train": 5}, cache=True)
    for index in (4, 0, 4):
        for one, other in zip(first[index], second[index], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], images(seed=4)[0][0])
    val = open_dataset(DataConfig(dataset="streets", size=(48, 64), seed=3), "val")
    assert not torch.equal(first[0][0], val[0][0])


def test_another_size_shows_the_same_street():
    _, small = render_street(5, (128, 256))
    _, large = render_street(5, (256, 512))
    assert (large[::2, ::2] == small).mean() > 0.93


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), height=st.integers(8, 90), width=st.integers(8, 90))
def test_any_size_is_a_full_scene(seed: int, height: int, width: int):
    image, mask = render_street(seed, (height, width))
    assert image.shape == (height, width, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.shape == (height, width)
    assert mask.max() < 11


@settings(deadline=None)
@given(bend=st.floats(-0.004, 0.004), depth=st.floats(2, 60), distance=st.floats(2, 12))
def test_a_ray_meets_the_frontage_where_the_camera_sees_it(bend: float, depth: float, distance: float):
    """The ray through the projection of a frontage point returns its depth, or that of a nearer intersection."""
    camera = Camera(focal=200, centre=100, horizon=50, eye=1.5, bend=bend)
    column, _ = camera.project(distance, 0, depth)
    slope = np.array([(column - camera.centre) / camera.focal], np.float64)
    met = float(_crossing(slope, bend, distance)[0])
    if met < FAR:
        assert met <= depth * 1.01
        assert slope[0] * met == pytest.approx(distance + bend * met**2, rel=1e-3)
    else:
        assert bend > 0


def test_the_dataset_names_its_items_and_keeps_to_its_length():
    config = dataclasses.replace(load_data_config("streets"), images={"val": 2}, size=(32, 40))
    dataset = open_dataset(config, "val")
    assert (len(dataset), dataset.image_size, dataset.file_name(1)) == (2, (32, 40), "streets/val/0001")
    assert len(list(dataset)) == 2  # the sequence protocol ends with IndexError
    assert torch.equal(dataset[-1][0], dataset[1][0])
    assert len(open_dataset(config, "train")) == 200
