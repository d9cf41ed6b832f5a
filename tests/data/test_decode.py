from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnas.data.decode import read_image, read_mask, read_size, resize_image, resize_mask
from dnas.data.stored import read_stored
from dnas.errors import UserError


def test_a_png_comes_back_to_the_bit(tmp_path: Path, write, picture):
    pixels = picture(0, (9, 13))
    image = read_image(write(tmp_path / "a.png", pixels))
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), pixels.transpose(2, 0, 1))


def test_grey_sixteen_bit_palette_and_alpha_images_become_rgb(tmp_path: Path, write):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    grey = read_image(write(tmp_path / "grey.png", values)).numpy()
    np.testing.assert_array_equal(grey, np.stack([values] * 3))

    deep = read_image(write(tmp_path / "deep.png", values.astype(np.uint16) * 257)).numpy()
    np.testing.assert_array_equal(deep, np.stack([values] * 3))

    palette = read_image(write(tmp_path / "palette.png", values, mode="P")).numpy()
    np.testing.assert_array_equal(palette, np.stack([values, 255 - values, np.full_like(values, 7)]))

    rgba = np.dstack([values, values + 1, values + 2, np.full_like(values, 3)])
    np.testing.assert_array_equal(
        read_image(write(tmp_path / "rgba.png", rgba)).numpy(), rgba[..., :3].transpose(2, 0, 1)
    )

    transparent = Image.open(tmp_path / "palette.png")
    transparent.save(tmp_path / "transparent.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(tmp_path / "transparent.png").numpy(), palette)


def test_a_floating_point_image_is_refused(tmp_path: Path, write):
    path = write(tmp_path / "f.tiff", np.zeros((4, 4), np.float32))
    with pytest.raises(UserError, match=r"f\.tiff.*floating-point"):
        read_image(path)


def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path: Path, picture):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(1, (6, 10))).save(path, exif=exif)
    assert tuple(read_image(path).shape) == (3, 10, 6)
    assert read_size(path) == (10, 6)


def test_masks_keep_their_indices(tmp_path: Path, write):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    deep = values.astype(np.uint16) * 100
    np.testing.assert_array_equal(read_mask(write(tmp_path / "p.png", values, mode="P")), values)
    np.testing.assert_array_equal(read_mask(write(tmp_path / "l.png", values)), values)
    np.testing.assert_array_equal(read_mask(write(tmp_path / "d.png", deep)), deep)
    bits = read_mask(write(tmp_path / "b.png", values % 2 == 1))
    np.testing.assert_array_equal(bits, values % 2)
    two = np.dstack([values, values])
    np.testing.assert_array_equal(read_mask(write(tmp_path / "la.png", two)), values)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("part", [0, 20, 0.5, 0.95])
def test_truncated_files_name_themselves(tmp_path: Path, write, picture, suffix: str, part: float):
    whole = write(tmp_path / f"whole{suffix}", picture(2, (64, 64))).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(part * len(whole)) if isinstance(part, float) else part])
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path: Path, write, picture):
    path = write(tmp_path / "bits.png", picture(3, (64, 64)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"bits\.png"):
        read_image(path)


def test_missing_and_foreign_files_name_themselves(tmp_path: Path):
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "nothing.png"):
        for read in (read_image, read_mask, read_size):
            with pytest.raises(UserError, match=name):
                read(tmp_path / name)


def test_a_format_that_no_suffix_declares_is_not_opened(tmp_path: Path, write, picture):
    """Pillow would start Ghostscript for the first of these."""
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    Image.fromarray(picture(0, (4, 4))).save(tmp_path / "ico.png", format="ICO")
    Image.fromarray(picture(0, (4, 4))).save(tmp_path / "pdf.png", format="PDF")
    for name in ("eps", "ico", "pdf"):
        for read in (read_image, read_mask, read_size):
            with pytest.raises(UserError, match=rf"{name}\.png: not a readable image"):
                read(tmp_path / f"{name}.png")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, read_mask, read_size):
        with pytest.raises(UserError, match=r"pipe\.png: not a readable image.*no regular file"):
            read(tmp_path / "pipe.png")


def test_the_pixels_in_the_header_are_limited_by_configuration(tmp_path: Path, write, picture):
    path = write(tmp_path / "huge.jpg", picture(0, (16, 16)))
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = (13000).to_bytes(2, "big") * 2
    path.write_bytes(bytes(content))
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=r"huge\.jpg: its header gives 13000x13000 pixels.*max_pixels=64000000"):
            read(path)
    small = write(tmp_path / "small.png", picture(0, (4, 5)))
    assert read_stored(small, max_pixels=20).pixels.shape == (4, 5, 3)
    with pytest.raises(UserError, match="max_pixels=19"):
        read_stored(small, max_pixels=19)


def test_resized_masks_take_the_label_at_each_new_centre():
    mask = torch.arange(6, dtype=torch.uint8).repeat(6, 1)
    np.testing.assert_array_equal(resize_mask(mask, (2, 2)).numpy(), [[1, 4], [1, 4]])
    np.testing.assert_array_equal(resize_mask(mask, (6, 12)).numpy()[0], np.repeat(np.arange(6), 2))


def test_resized_images_are_averaged_over_what_they_cover():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, ::2] = 200
    small = resize_image(image, (2, 2))
    assert (small.to(torch.int64) - 100).abs().max() <= 15
