from __future__ import annotations

import numpy as np
import pytest
import torch

from dnas.data import DataConfig, batches, eval_transform, match_classes, open_dataset
from dnas.data.transforms import AugmentationConfig
from dnas.errors import UserError


def test_the_same_names_in_another_order_are_mapped(make_folder):
    dataset = open_dataset(DataConfig(dataset="folder", root=str(make_folder())), "train")
    assert match_classes(dataset, ("a", "b", "c"), "run") is dataset
    matched = match_classes(dataset, ["c", "a", "b"], "run")
    assert matched.labels.names == ("c", "a", "b")
    assert matched.labels.colours == ((0, 0, 255), (255, 0, 0), (0, 255, 0))
    for index in range(len(dataset)):
        image, mask = dataset[index]
        again, mapped = matched[index]
        assert torch.equal(image, again)
        np.testing.assert_array_equal(mapped, np.array([1, 2, 0, *[255] * 253], np.uint8)[mask])
    assert matched.fingerprint() == dataset.fingerprint()
    assert matched.image_size == dataset.image_size
    assert matched.file_name(1) == dataset.file_name(1)


def test_matched_classes_come_out_of_workers(make_folder):
    matched = match_classes(open_dataset(DataConfig(dataset="folder", root=str(make_folder())), "val"), "cab", "run")
    settings = {"batch_size": 2, "seed": 0, "epoch": 0, "shuffle": False, "drop_last": False}
    transform = eval_transform(AugmentationConfig())
    loaded = [list(batches(matched, transform, workers=workers, **settings)) for workers in (0, 1)]
    assert all(torch.equal(ours[1], theirs[1]) for ours, theirs in zip(*loaded, strict=True))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "d"], "the classes of folder are not those that run expects: missing d; not expected c"),
        (["a", "b"], "folder has 3 classes, run expects 2: missing none; not expected c"),
    ],
)
def test_other_names_are_refused(make_folder, names, message: str):
    dataset = open_dataset(DataConfig(dataset="folder", root=str(make_folder())), "train")
    with pytest.raises(UserError, match=message):
        match_classes(dataset, names, "run")


def test_the_fingerprint_is_of_names_and_sizes_not_of_the_place(make_folder, tmp_path):
    root = make_folder()
    before = open_dataset(DataConfig(dataset="folder", root=str(root)), "train").fingerprint()
    root = root.rename(tmp_path / "moved")
    config = DataConfig(dataset="folder", root=str(root))
    assert open_dataset(config, "train").fingerprint() == before
    image = root / "train" / "images" / "im0.png"
    image.write_bytes(image.read_bytes() + b"\0")
    changed = open_dataset(config, "train").fingerprint()
    assert changed != before
    for folder in ("images", "labels"):
        (root / "train" / folder / "im1.png").rename(root / "train" / folder / "im9.png")
    assert open_dataset(config, "train").fingerprint() not in (before, changed)
