"""Masks and images that can be read in two ways are refused, and one line in the data settles them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnas.data import DataConfig, open_dataset
from dnas.data.decode import read_image, read_mask
from dnas.errors import UserError

TWO = "classes: [{name: ground, colour: [0, 0, 0]}, {name: crop, colour: [0, 200, 0]}]\n"
THREE = "classes: [{name: a, colour: [9, 0, 0]}, {name: b, colour: [0, 9, 0]}, {name: c, colour: [0, 0, 9]}]\n"


def write_grey_png(path: Path, values: np.ndarray, depth: int) -> Path:
    """A grey PNG of 1, 2 or 4 bits, which Pillow cannot write."""
    bits = np.unpackbits(values[..., None].astype(np.uint8), axis=-1)[..., -depth:].reshape(len(values), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


@pytest.fixture
def labels_of(tmp_path: Path, write):
    """The labels of a mask (an array, a Pillow image or a file's writer) in a folder with a classes file."""

    def read(mask, classes: str = TWO, suffix: str = ".png", **settings) -> np.ndarray:
        root = tmp_path / "set"
        path = root / "train" / "labels" / f"a{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(mask):
            mask(path)
        else:
            (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path)
        (root / "classes.yaml").write_text(classes)
        height, width = read_mask(path).shape[:2]
        write(root / "train" / "images" / "a.png", np.zeros((height, width, 3), np.uint8))
        return open_dataset(DataConfig(dataset="folder", root=str(root), **settings), "train")[0][1].numpy()

    return read


def test_255_in_two_classes_is_the_second_class_or_ignored(labels_of):
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    with pytest.raises(UserError, match=r"255 may be 'crop' or ignored pixels.*values: \[255\].*ignore: 255"):
        labels_of(mask)
    with pytest.raises(UserError, match="255 may be"):
        labels_of(np.full((2, 2), 255, np.uint8))
    np.testing.assert_array_equal(labels_of(mask, TWO + "ignore: 255"), mask)
    mapped = "classes: [{name: ground, values: [0]}, {name: crop, values: [255]}]"
    np.testing.assert_array_equal(labels_of(mask, mapped), mask // 255)
    decided = np.array([[0, 1], [255, 1]], np.uint8)
    np.testing.assert_array_equal(labels_of(decided), decided)
    np.testing.assert_array_equal(labels_of(mask, THREE), mask)


def test_grey_values_that_are_the_colours_of_other_classes(labels_of):
    black_and_white = "classes: [{name: ground, colour: [0, 0, 0]}, {name: crop, colour: [255, 255, 255]}]"
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    with pytest.raises(UserError, match=r"255 is ignored by its index, but its grey \[255, 255, 255\] is class 'crop'"):
        labels_of(mask, black_and_white)
    np.testing.assert_array_equal(labels_of(mask, black_and_white, masks="colours"), mask // 255)
    stated = black_and_white + "\nignore: 255"
    np.testing.assert_array_equal(labels_of(mask, stated, masks="indices"), mask)


def palette_image(values: np.ndarray, colours: list[list[int]]) -> Image.Image:
    image = Image.fromarray(values, mode="L")
    image.putpalette([value for colour in colours for value in colour])
    return image


def test_a_palette_whose_colours_are_those_of_other_classes(labels_of):
    values = np.array([[0, 1, 2]], np.uint8)
    agreeing = palette_image(values, [[9, 0, 0], [0, 9, 0], [0, 0, 9]])
    np.testing.assert_array_equal(labels_of(agreeing, THREE), values)
    unrelated = palette_image(values, [[1, 1, 200], [1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(labels_of(unrelated, THREE), values)
    swapped = palette_image(values, [[9, 0, 0], [0, 0, 9], [0, 9, 0]])
    with pytest.raises(
        UserError, match=r"1 is class 'b' by its index, but its palette colour \[0, 0, 9\] is class 'c'"
    ):
        labels_of(swapped, THREE)
    np.testing.assert_array_equal(labels_of(swapped, THREE, masks="indices"), values)
    np.testing.assert_array_equal(labels_of(swapped, THREE, masks="colours"), [[0, 2, 1]])
    unused = palette_image(values % 1, [[9, 0, 0], [0, 0, 9], [0, 9, 0]])
    np.testing.assert_array_equal(labels_of(unused, THREE), values % 1)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_masks_of_few_bits_keep_their_labels_and_images_their_looks(tmp_path: Path, labels_of, depth: int):
    values = np.arange(16, dtype=np.uint8).reshape(2, 8) % (1 << depth)
    classes = "classes: [" + ", ".join(f"{{name: c{index}}}" for index in range(max(2, 1 << depth))) + "]"
    np.testing.assert_array_equal(labels_of(lambda path: write_grey_png(path, values, depth), classes), values)
    image = read_image(write_grey_png(tmp_path / "image.png", values, depth))
    assert image[0].tolist() == (values.astype(int) * 255 // ((1 << depth) - 1)).tolist()


def test_grey_masks_of_other_formats_keep_their_labels(tmp_path: Path):
    values = np.arange(16, dtype=np.uint8).reshape(2, 8)
    (tmp_path / "a.pgm").write_bytes(b"P5\n8 2\n15\n" + values.tobytes())
    np.testing.assert_array_equal(read_mask(tmp_path / "a.pgm"), values)
    np.testing.assert_array_equal(read_image(tmp_path / "a.pgm")[0], values * 17)
    (tmp_path / "b.pgm").write_bytes(b"P4\n8 1\n" + bytes([0b01000001]))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.pgm"), [[0, 1, 0, 0, 0, 0, 0, 1]])
    np.save(tmp_path / "c.npy", values.astype(np.int64))
    np.testing.assert_array_equal(read_mask(tmp_path / "c.npy"), values)


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, ".png"), (np.uint16, ".tif"), (np.int32, ".tif")])
def test_masks_of_more_than_8_bits_keep_their_labels(labels_of, dtype, suffix: str):
    values = np.array([[0, 1, 2, 255]], dtype)
    np.testing.assert_array_equal(labels_of(values, THREE, suffix), values)
    mapped = "classes: [{name: a, values: [1000, 1001]}, {name: b, values: [7]}]\nignore: [0, 9]\nothers: ignore"
    wide = np.array([[1000, 1001, 7, 9, 0, 3]], dtype)
    np.testing.assert_array_equal(labels_of(wide, mapped, suffix), [[0, 0, 1, 255, 255, 255]])


def test_images_of_more_than_8_bits_need_a_range_unless_they_use_all_16(tmp_path: Path, write):
    twelve = np.arange(0, 4096, 128, dtype=np.uint16).reshape(4, 8)
    for suffix in (".png", ".tif"):
        path = write(tmp_path / f"a{suffix}", twelve)
        with pytest.raises(
            UserError, match=r"16-bit values from 0 to 3968.*range: \[0, 4095\], or range: \[0, 65535\]"
        ):
            read_image(path)
        np.testing.assert_array_equal(read_image(path, (0, 4095))[0], twelve >> 4)
        np.testing.assert_array_equal(read_image(path, (0, 65535))[0], twelve >> 8)
        np.testing.assert_array_equal(read_image(write(path, twelve * 16))[0], twelve >> 4)
    path = write(tmp_path / "b.tif", twelve.astype(np.int32))
    with pytest.raises(UserError, match=r"32-bit values from 0 to 3968.*range: \[0, 4095\]"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, (0, 4095))[0], twelve >> 4)
    path = write(tmp_path / "c.tif", twelve.astype(np.float32) / 4096)
    np.testing.assert_array_equal(read_image(path, (0, 1))[0], twelve >> 4)
    np.save(tmp_path / "d.npy", np.dstack([twelve] * 3))
    np.testing.assert_array_equal(read_image(tmp_path / "d.npy", (0, 4095))[2], twelve >> 4)


def test_the_range_is_part_of_the_data(tmp_path: Path, write):
    write(tmp_path / "train" / "images" / "a.png", np.full((8, 8), 2048, np.uint16))
    write(tmp_path / "train" / "labels" / "a.png", np.zeros((8, 8), np.uint8))
    dataset = open_dataset(DataConfig(dataset="camvid", root=str(tmp_path), range=(0, 4095)), "train")
    assert dataset[0][0].unique().tolist() == [128]


def write_turned(path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("size", [(4, 6), (6, 6)])
def test_a_mask_beside_a_photo_with_an_exif_orientation(tmp_path: Path, orientation: int, size: tuple[int, int]):
    """The mask is the image's first channel, so that both agree exactly if they are turned alike."""
    values = (np.arange(size[0] * size[1]).reshape(size) % 11).astype(np.uint8)
    photo, mask = tmp_path / "train" / "images" / "a.png", tmp_path / "train" / "labels" / "a.png"
    write_turned(photo, values[..., None].repeat(3, -1), orientation)
    shown = read_image(photo)[0].numpy()

    def read(mask_pixels: np.ndarray, mask_orientation: int = 1, **settings) -> list[torch.Tensor]:
        write_turned(mask, mask_pixels, mask_orientation)
        image, labels = open_dataset(DataConfig(dataset="camvid", root=str(tmp_path), **settings), "train")[0]
        return [image[0], labels]

    for pixels, choice in ((values, "stored"), (shown, "turned")):
        image, labels = read(pixels, orientation=choice)
        assert torch.equal(image, labels)
    image, labels = read(values, orientation)
    assert torch.equal(image, labels)
    with pytest.raises(UserError, match=rf"a.png has EXIF orientation {orientation}, its mask 1.*orientation: stored"):
        read(values)
    if orientation == 3 or size[0] == size[1]:
        with pytest.raises(UserError, match=r"EXIF.*orientation: turned or orientation: stored"):
            read(shown)
    else:
        image, labels = read(shown)
        assert torch.equal(image, labels)


def test_files_with_several_pages_are_not_read_by_their_first(tmp_path: Path):
    pages = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="holds 2 pages or frames, expected one image"):
        read_image(tmp_path / "a.tif")


def test_a_colour_file_of_equal_channels_may_hold_indices(labels_of):
    values = np.array([[0, 1, 2]], np.uint8)
    with pytest.raises(UserError, match="its three channels are equal: set masks: indices"):
        labels_of(values[..., None].repeat(3, -1), THREE)
    np.testing.assert_array_equal(labels_of(values[..., None].repeat(3, -1), THREE, masks="indices"), values)


def test_lossy_masks_are_named(labels_of):
    noise = np.random.default_rng(0).integers(0, 3, (16, 16), dtype=np.uint8) * 40
    with pytest.raises(UserError, match="a JPEG file changes labels, store masks as PNG"):
        labels_of(noise, THREE, ".jpg")


def test_an_offset_and_several_colours_of_a_class(labels_of):
    shifted = "classes: [{name: a}, {name: b}]\noffset: 1\nignore: 0"
    np.testing.assert_array_equal(labels_of(np.array([[0, 1, 2]], np.uint8), shifted), [[255, 0, 1]])
    several = (
        "classes: [{name: a, colours: [[1, 0, 0], [2, 0, 0]]}, {name: b, colour: [3, 0, 0]}]\n"
        "ignore_colour: [[4, 0, 0], [5, 0, 0]]\nothers: ignore"
    )
    mask = np.zeros((1, 6, 3), np.uint8)
    mask[0, :, 0] = range(1, 7)
    np.testing.assert_array_equal(labels_of(mask, several), [[0, 0, 1, 255, 255, 255]])
