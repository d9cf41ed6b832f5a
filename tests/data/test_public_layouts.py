from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dnas.data import DataConfig, load_data_config, open_dataset
from dnas.data.public_layouts import COCO_DROPPED
from dnas.errors import UserError

SPLITS = ("train", "val")


def _opened(name: str, root: Path, split: str):
    return open_dataset(load_data_config(f"{name}:{root}"), split)


def _pair(write, picture, image: Path, mask: Path, values) -> None:
    stored = np.array([list(values)] * 3, np.uint8)
    write(image, picture(0, stored.shape))
    write(mask, stored, mode="P")


def test_ade20k_ignores_0_and_counts_from_1(tmp_path: Path, write, picture):
    for folder in ("training", "validation"):
        images, masks = tmp_path / "images" / folder, tmp_path / "annotations" / folder
        _pair(write, picture, images / "ADE_1.jpg", masks / "ADE_1.png", range(151))
    for split in SPLITS:
        dataset = _opened("ade20k", tmp_path, split)
        assert dataset.labels.num_classes == 150
        assert (dataset.labels.names[0], dataset.labels.names[20], dataset.labels.names[149]) == ("wall", "car", "flag")
        np.testing.assert_array_equal(dataset[0][1].numpy()[0], [255, *range(150)])
    with pytest.raises(UserError, match="the annotations of test are not public"):
        _opened("ade20k", tmp_path, "test")


def test_coco_stuff_leaves_the_dropped_classes_out(tmp_path: Path, write, picture):
    values = [value for value in range(182) if value not in COCO_DROPPED]
    for folder in ("train2017", "val2017"):
        images, masks = tmp_path / "images" / folder, tmp_path / "annotations" / folder
        _pair(write, picture, images / "0001.jpg", masks / "0001.png", [*values, 255])
    dataset = _opened("coco_stuff", tmp_path, "val")
    assert dataset.labels.num_classes == 171
    assert dataset.labels.names[80] == "banner"  # after the 80 things
    np.testing.assert_array_equal(dataset[0][1].numpy()[0], [*range(171), 255])
    _pair(write, picture, tmp_path / "images/val2017/0001.jpg", tmp_path / "annotations/val2017/0001.png", [0, 25])
    with pytest.raises(UserError, match="have label 25"):
        dataset[0]


@pytest.mark.parametrize("below", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_voc_follows_its_lists(tmp_path: Path, write, picture, below: str):
    year = tmp_path / below
    for stem in ("2007_1", "2007_2", "2007_3"):
        _pair(
            write, picture, year / f"JPEGImages/{stem}.jpg", year / f"SegmentationClass/{stem}.png", [*range(21), 255]
        )
    lists = year / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_3\n2007_1\n")
    (lists / "val.txt").write_text("2007_2\n2007_9\n")
    dataset = _opened("voc", tmp_path, "train")
    assert [Path(dataset.file_name(index)).name for index in range(2)] == ["2007_1.jpg", "2007_3.jpg"]
    assert dataset.labels.names[15] == "person"
    assert dataset.labels.colours[15] == (192, 128, 128)  # VOC's colour map
    np.testing.assert_array_equal(dataset[0][1].numpy()[0], [*range(21), 255])
    with pytest.raises(UserError, match=r"1 images of the val list are missing, the first 2007_9\.jpg"):
        _opened("voc", tmp_path, "val")


def _mapillary_config(path: Path, names, ignored: str) -> None:
    labels = [
        {"name": f"object--{name}", "readable": name, "color": [index // 2, 9, 9], "evaluate": name != ignored}
        for index, name in enumerate(names)
    ]
    path.write_text(json.dumps({"labels": labels, "version": 1}))


def test_mapillary_takes_classes_from_its_configuration(tmp_path: Path, write, picture):
    _mapillary_config(tmp_path / "config_v1.2.json", ["Bird", "Road", "Unlabeled"], "Unlabeled")
    _mapillary_config(tmp_path / "config_v2.0.json", ["Bird", "Void", "Road", "Car"], "Void")
    training = tmp_path / "training"
    _pair(write, picture, training / "images/a.jpg", training / "v1.2/labels/a.png", [0, 1, 2])
    _pair(write, picture, training / "images/a.jpg", training / "v2.0/labels/a.png", [0, 1, 3])
    first, second = _opened("mapillary", tmp_path, "train"), _opened("mapillary_v2", tmp_path, "train")
    assert first.labels.names == ("Bird", "Road")
    assert second.labels.names == ("Bird", "Road", "Car")
    assert second.labels.colours == ((0, 9, 9), (1, 9, 9), (1, 9, 9))  # version 2.0 has some colours twice
    np.testing.assert_array_equal(first[0][1].numpy()[0], [0, 1, 255])
    np.testing.assert_array_equal(second[0][1].numpy()[0], [0, 255, 2])


def test_mapillary_in_its_older_archive(tmp_path: Path, write, picture):
    validation = tmp_path / "validation"
    _pair(write, picture, validation / "images/a.jpg", validation / "labels/a.png", [0, 1])
    with pytest.raises(UserError, match=r"config\.json: no such configuration of Mapillary"):
        _opened("mapillary", tmp_path, "val")
    _mapillary_config(tmp_path / "config.json", ["Bird", "Road"], "")
    assert _opened("mapillary", tmp_path, "val").labels.names == ("Bird", "Road")
    (tmp_path / "config.json").write_text('{"labels": [{"readable": "Bird"}]}')
    with pytest.raises(UserError, match="not a configuration of Mapillary Vistas"):
        _opened("mapillary", tmp_path, "val")


def test_missing_folders_name_the_layout(tmp_path: Path):
    for name, message in (
        ("ade20k", "ADE20K is expected as"),
        ("coco_stuff", "COCO-Stuff is expected as"),
        ("voc", "VOC is expected as"),
        ("mapillary", "Mapillary Vistas is expected as"),
        ("camvid701", "CamVid is expected as"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(DataConfig(dataset=name, root=str(tmp_path)), "train")
