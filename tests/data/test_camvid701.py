from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnas.data import DataConfig, open_dataset
from dnas.data.camvid701 import IMAGES, MASKS, merge_table, official_split
from dnas.data.labels import builtin_classes
from dnas.errors import UserError

LABELS = builtin_classes("camvid").labels
SPLITS = ("train", "val", "test")


def test_the_official_split_has_701_frames_none_of_them_twice():
    splits = [official_split(split) for split in SPLITS]
    assert [len(names) for names in splits] == [367, 101, 233]
    assert len({name for names in splits for name in names}) == 701
    # Seq05VD is tested on as a whole, 0006R0 is trained on as a whole.
    assert not [name for name in splits[0] + splits[1] if name.startswith("Seq05VD")]
    assert len([name for name in splits[0] if name.startswith("0006R0")]) == 101


@pytest.mark.parametrize("split", SPLITS)
def test_the_official_split_is_that_of_the_small_camvid(shared: Path, split: str):
    found = {path.stem for path in (shared / "data" / "camvid" / split / "images").iterdir()}
    assert found == set(official_split(split))


def test_every_class_has_its_own_colour_and_32_colours_are_known():
    merged, unmerged = merge_table(LABELS), merge_table(LABELS, merged=False)
    assert len(merged) == len(unmerged) == 32
    for index, colour in enumerate(LABELS.colours):
        assert merged[colour] == unmerged[colour] == index
    assert sum(label != 255 for label in unmerged.values()) == 11
    assert [colour for colour, label in merged.items() if label == 255] == [(0, 0, 0)]
    names = LABELS.names
    assert names[merged[64, 128, 192]] == "car"  # SUVPickupTruck
    assert names[merged[192, 0, 192]] == "bicyclist"  # MotorcycleScooter
    assert names[merged[128, 0, 192]] == "road"  # LaneMkgsDriv


@pytest.fixture
def frames(tmp_path: Path, write):
    """The 701 frames as empty files, but for one of each split, whose mask has the 32 colours."""
    colours = np.array([list(merge_table(LABELS))] * 4, np.uint8)
    for split in SPLITS:
        for name in official_split(split):
            for folder, file in ((IMAGES, f"{name}.png"), (MASKS, f"{name}_L.png")):
                path = tmp_path / folder / file
                path.parent.mkdir(exist_ok=True)
                path.touch()
        first = official_split(split)[0]
        write(tmp_path / IMAGES / f"{first}.png", colours)
        write(tmp_path / MASKS / f"{first}_L.png", colours)
    return tmp_path


def test_masks_of_colours_are_merged_or_not(frames: Path):
    for dataset, merged in (("camvid701", True), ("camvid701_unmerged", False)):
        opened = open_dataset(DataConfig(dataset=dataset, root=str(frames)), "test")
        assert len(opened) == 233
        assert opened.labels == LABELS
        expected = list(merge_table(LABELS, merged=merged).values())
        np.testing.assert_array_equal(opened[0][1].numpy(), [expected] * 4)


def test_a_palette_image_is_read_by_its_colours(frames: Path):
    path = frames / MASKS / f"{official_split('val')[0]}_L.png"
    with Image.open(path) as image:
        indexed = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    indexed.save(path)
    opened = open_dataset(DataConfig(dataset="camvid701", root=str(frames)), "val")
    np.testing.assert_array_equal(opened[0][1].numpy(), [list(merge_table(LABELS).values())] * 4)


def test_trainval_is_train_and_val_one_after_the_other(frames: Path):
    config = DataConfig(dataset="camvid701", root=str(frames))
    both = open_dataset(config, "trainval")
    assert (len(both), both.split) == (468, "trainval")
    stems = [Path(both.file_name(index)).stem for index in range(468)]
    assert stems == [*official_split("train"), *official_split("val")]
    np.testing.assert_array_equal(both[367][0].numpy(), open_dataset(config, "val")[0][0].numpy())
    assert both.image_size == (4, 32)
    with pytest.raises(IndexError):
        both[468]


def test_a_colour_outside_the_table_is_an_error(frames: Path, write):
    mask = np.zeros((4, 32, 3), np.uint8)
    mask[0, 0] = (1, 2, 3)
    write(frames / MASKS / f"{official_split('val')[0]}_L.png", mask)
    with pytest.raises(UserError, match=r"1 pixels have a colour that is not a class, the first \[1, 2, 3\]"):
        open_dataset(DataConfig(dataset="camvid701", root=str(frames)), "val")[0]


def test_an_incomplete_archive_is_an_error(frames: Path):
    (frames / IMAGES / "0001TP_006690.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 367 frames of the official train split are missing, .*006690"):
        open_dataset(DataConfig(dataset="camvid701", root=str(frames)), "train")


@pytest.mark.parametrize("official", [True, False])
def test_folders_by_split_must_be_the_official_ones(frames: Path, tmp_path: Path, official: bool):
    """The split that circulates has 369, 100 and 232 frames: as here, frames of the official test set are in train."""
    names = {split: list(official_split(split)) for split in SPLITS}
    if not official:
        names["train"] += [names["val"].pop(), names["test"].pop()]
    for split, stems in names.items():
        for stem in stems:
            (frames / IMAGES / f"{stem}.png").rename(_made(tmp_path / "sorted" / split) / f"{stem}.png")
            (frames / MASKS / f"{stem}_L.png").rename(_made(tmp_path / "sorted" / f"{split}_labels") / f"{stem}_L.png")
    config = DataConfig(dataset="camvid701", root=str(tmp_path / "sorted"))
    if official:
        assert len(open_dataset(config, "train")) == 367
        return
    message = r"not the official split of 367, 101 and 233 frames \(train 369, val 100, test 232\).*Kaggle"
    for split in SPLITS:
        with pytest.raises(UserError, match=message):
            open_dataset(config, split)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
