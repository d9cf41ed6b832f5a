"""``dnas data init`` on folders of images and masks, whatever their names, splits and tables of classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnas.data import load_data_config, open_dataset
from dnas.data.discovery import InitOptions, describe_folder
from dnas.errors import UserError

SIZE = (6, 8)
COLOURS = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], np.uint8)


def labels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 3, SIZE, dtype=np.uint8)


def photo(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def fill(
    root: Path, image: str, mask: str, count: int = 5, to_mask: Callable[[np.ndarray], np.ndarray] = np.copy
) -> None:
    """``count`` images and masks; the patterns hold {n}."""
    for n in range(count):
        save(root / image.format(n=n), photo(n))
        save(root / mask.format(n=n), to_mask(labels(n)))


def opened(root: Path, split: str = "train", **options):
    """The described folder, opened; and its description."""
    found = describe_folder(root, root, InitOptions(**options))
    return open_dataset(load_data_config(str(found.data_file)), split), found


def assert_pairs_are_right(dataset, expected: Callable[[np.ndarray], np.ndarray] = np.copy) -> None:
    """Every image has its own mask: the number in its name seeds both."""
    assert len(dataset)
    for index in range(len(dataset)):
        number = int("".join(c for c in Path(dataset.file_name(index)).stem if c.isdigit()))
        image, mask = dataset[index]
        np.testing.assert_array_equal(image.numpy(), photo(number).transpose(2, 0, 1))
        np.testing.assert_array_equal(mask.numpy(), expected(labels(number)))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{n}.png", "masks/{n}.png"),
        ("im{n}.png", "im{n}_mask.png"),
        ("all/{n}.bmp", "all/{n}-label.png"),
        ("JPEGImages/{n}.png", "SegmentationClass/{n}.png"),
        ("data/photos/street/a{n}.png", "data/annotations/street/a{n}_gt.png"),
        ("town{n}/image/{n}.png", "town{n}/label/{n}.png"),
        ("0001TP_{n}.png", "labels/0001TP_{n}_L.png"),
        ("a_{n}_sat.png", "a_{n}_mask.png"),
        ("images/{n}.png", "masks/{n}.gif"),
    ],
)
def test_images_and_masks_are_paired_by_folder_or_ending(tmp_path: Path, image: str, mask: str):
    fill(tmp_path, image, mask)
    dataset, found = opened(tmp_path)
    assert found.images == {"train": 4, "val": 1}
    if "0001TP" not in image:
        assert_pairs_are_right(dataset)
    assert found.classes == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{split}/images/{n}.png", "{split}/labels/{n}.png"),
        ("images/{split}/{n}.png", "masks/{split}/{n}.png"),
        ("{split}/{n}.png", "{split}annot/{n}.png"),
        ("{split}/{n}.png", "{split}_labels/{n}.png"),
        ("{split}_images/{n}.png", "{split}_masks/{n}.png"),
    ],
)
def test_splits_of_folders_are_kept(tmp_path: Path, image: str, mask: str):
    for split, first in (("training", 0), ("valid", 10), ("test", 20)):
        for n in range(first, first + 3):
            save(tmp_path / image.format(split=split, n=n), photo(n))
            save(tmp_path / mask.format(split=split, n=n), labels(n))
    _, found = opened(tmp_path)
    assert found.images == {"train": 3, "val": 3, "test": 3}
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        dataset = open_dataset(load_data_config(str(found.data_file)), split)
        assert_pairs_are_right(dataset)
        assert Path(dataset.file_name(0)).stem == str(first)


def test_split_lists_and_a_seed(tmp_path: Path):
    fill(tmp_path, "images/{n}.png", "masks/{n}.png", count=8)
    drawn = opened(tmp_path, seed=3, val_share=0.25)[1]
    assert drawn.images == {"train": 6, "val": 2}
    assert any("2 of 8 images were drawn by seed 3" in text for text in drawn.notes)
    table = (tmp_path / "files.csv").read_text()
    for name in ("data.yaml", "classes.yaml"):
        (tmp_path / name).unlink()
    assert opened(tmp_path, seed=3, val_share=0.25)[1].images == drawn.images
    assert (tmp_path / "files.csv").read_text() == table
    (tmp_path / "data.yaml").unlink()
    lists = tmp_path / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("0\n1\n2\n")
    (lists / "val.txt").write_text("images/5.png masks/5.png\n")
    dataset, found = opened(tmp_path)
    assert found.images == {"train": 3, "val": 1}
    assert [Path(dataset.file_name(i)).stem for i in range(3)] == ["0", "1", "2"]
    assert any("4 images are in no list" in text for text in found.notes)
    (tmp_path / "data.yaml").unlink()
    (lists / "val.txt").write_text("2\n")
    with pytest.raises(UserError, match=r"2\.png: listed in train\.txt and in val\.txt"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.csv", "name,r,g,b\nground,0,0,0\nleft,200,0,0\nright,0,200,0\n"),
        ("label_colors.txt", "0 0 0\t\tground\n200 0 0\t\tleft\n0 200 0\t\tright\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nground:0,0,0::\nleft:200,0,0::\nright:0,200,0::\n"),
        ("class_dict.csv", "0,ground,0,0,0\n1,left,200,0,0\n2,right,0,200,0\n"),
        (
            "classes.json",
            '[{"name": "ground", "color": "#000000"}, {"name": "left", "color": [200, 0, 0]}, '
            '{"name": "right", "color": [0, 200, 0]}]',
        ),
    ],
)
@pytest.mark.parametrize("coloured", [False, True])
def test_tables_of_classes(tmp_path: Path, name: str, text: str, coloured: bool):
    fill(tmp_path, "images/{n}.png", "masks/{n}.png", to_mask=(lambda m: COLOURS[m]) if coloured else np.copy)
    (tmp_path / name).write_text(text)
    dataset, found = opened(tmp_path)
    assert found.classes == ("ground", "left", "right")
    assert dataset.labels.colours == tuple(map(tuple, COLOURS.tolist()))
    assert_pairs_are_right(dataset)


def test_values_that_the_table_numbers_and_those_it_does_not_have(tmp_path: Path):
    fill(tmp_path, "images/{n}.png", "masks/{n}.png", to_mask=lambda m: 10 * m + 10)
    (tmp_path / "classes.txt").write_text("10 ground\n20 left\n30 right\n")
    assert_pairs_are_right(opened(tmp_path)[0])
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.yaml").unlink()
    (tmp_path / "classes.txt").write_text("ground\nleft\nright\n")
    with pytest.raises(UserError, match=r"masks hold the values 10, 20, 30, which classes\.txt does not have"):
        opened(tmp_path)


def test_0_and_255_are_two_classes(tmp_path: Path):
    fill(tmp_path, "images/{n}.png", "masks/{n}.png", to_mask=lambda m: 255 * (m % 2))
    dataset, found = opened(tmp_path)
    assert found.classes == ("background", "foreground")
    assert_pairs_are_right(dataset, lambda m: m % 2)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.yaml").unlink()
    (tmp_path / "names.txt").write_text("ground\ncrop\n")
    dataset, found = opened(tmp_path)
    assert found.classes == ("ground", "crop")
    assert_pairs_are_right(dataset, lambda m: m % 2)


def test_255_beside_other_values_is_ignored(tmp_path: Path):
    fill(tmp_path, "images/{n}.png", "masks/{n}.png", to_mask=lambda m: np.where(m == 2, 255, m).astype(np.uint8))
    dataset, found = opened(tmp_path)
    assert found.classes == ("class_0", "class_1")
    assert_pairs_are_right(dataset, lambda m: np.where(m == 2, 255, m))


def test_colours_without_a_table_and_colours_that_it_does_not_list(tmp_path: Path):
    fill(tmp_path, "images/{n}.png", "masks/{n}.png", to_mask=lambda m: COLOURS[m])
    dataset, found = opened(tmp_path)
    assert found.classes == ("colour_000000", "colour_00c800", "colour_c80000")
    assert_pairs_are_right(dataset, lambda m: np.array([0, 2, 1])[m])
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.yaml").unlink()
    (tmp_path / "colors.csv").write_text("ground,0,0,0\nleft,200,0,0\n")
    with pytest.raises(UserError, match=r"1 colours that colors\.csv does not list, the first \[0, 200, 0\]"):
        opened(tmp_path)


def test_a_palette_gives_colours_or_contradicts_the_table(tmp_path: Path):
    def paletted(mask: np.ndarray) -> Image.Image:
        image = Image.fromarray(mask)
        image.putpalette(COLOURS.tobytes())
        return image

    for n in range(3):
        save(tmp_path / "images" / f"{n}.png", photo(n))
        (tmp_path / "masks").mkdir(exist_ok=True)
        paletted(labels(n)).save(tmp_path / "masks" / f"{n}.png")
    dataset, _ = opened(tmp_path)
    assert dataset.labels.colours == tuple(map(tuple, COLOURS.tolist()))
    assert_pairs_are_right(dataset)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.yaml").unlink()
    (tmp_path / "classes.csv").write_text("ground,0,0,0\nright,0,200,0\nleft,200,0,0\n")
    with pytest.raises(UserError, match=r"value 1, which is 'right' by its number .*\[200, 0, 0\] is that of 'left'"):
        opened(tmp_path)


def test_what_cannot_be_told_apart_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(UserError, match="contains no image files"):
        opened(tmp_path)
    fill(tmp_path, "first/{n}.png", "second/{n}.png")
    with pytest.raises(UserError, match=r"10 images \(in first, second\), but none that is a mask .* --masks PATTERN"):
        opened(tmp_path)
    assert len(opened(tmp_path, images="first/*.png", masks="second/*.png")[0]) == 4
    (tmp_path / "data.yaml").unlink()
    fill(tmp_path, "first/{n}.png", "masks/{n}.png", count=1)
    with pytest.raises(UserError, match="matches 'none"):
        opened(tmp_path, masks="none/*.png")


def test_images_with_two_masks_and_images_without(tmp_path: Path):
    fill(tmp_path, "images/{n}.png", "masks/{n}.png")
    save(tmp_path / "masks" / "0_label.png", labels(0))
    with pytest.raises(UserError, match=r"masks/0\.png and masks/0_label\.png may be its mask; choose by --masks"):
        opened(tmp_path)
    (tmp_path / "masks" / "0_label.png").unlink()
    save(tmp_path / "images" / "alone.png", photo(0))
    found = opened(tmp_path)[1]
    assert "1 images without a mask are left out: images/alone.png" in found.notes
    with pytest.raises(UserError, match=r"data\.yaml: exists already"):
        opened(tmp_path)


def test_deep_images_and_images_of_other_channels(tmp_path: Path):
    for n in range(4):
        thermal = np.arange(48, dtype=np.uint16).reshape(SIZE) * 80 + n
        save(tmp_path / "deep" / "images" / f"{n}.png", thermal)
        save(tmp_path / "deep" / "masks" / f"{n}.png", labels(n))
        bands = np.dstack([photo(n), labels(n) * 20])
        (tmp_path / "bands" / "images").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "bands" / "images" / f"{n}.npy", bands)
        save(tmp_path / "bands" / "masks" / f"{n}.png", labels(n))
    dataset, found = opened(tmp_path / "deep")
    config = load_data_config(str(found.data_file))
    assert (config.range, config.channels) == ((0, 4095), 1)
    np.testing.assert_array_equal(dataset[0][0][0], (np.arange(48).reshape(SIZE) * 80) >> 4)
    dataset, found = opened(tmp_path / "bands")
    config = load_data_config(str(found.data_file))
    assert config.channels == 4
    every = np.stack([np.dstack([photo(n), labels(n) * 20]) for n in range(4)]).reshape(-1, 4) / 255
    np.testing.assert_allclose(config.mean, every.mean(0), atol=1e-4)
    np.testing.assert_allclose(config.std, every.std(0), atol=1e-4)
    assert tuple(dataset[0][0].shape) == (4, *SIZE)


def test_another_folder_for_the_description_leaves_the_first_as_it_is(tmp_path: Path):
    fill(tmp_path / "set", "images/{n}.png", "masks/{n}.png")
    before = sorted(path.name for path in (tmp_path / "set").rglob("*"))
    found = describe_folder(tmp_path / "set", tmp_path / "out", InitOptions())
    assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == before
    assert_pairs_are_right(open_dataset(load_data_config(str(found.data_file)), "train"))
