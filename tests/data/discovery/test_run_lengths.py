"""Run lengths of masks, against a loop and known texts; hostile ones end before memory is allocated."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dnas.data import load_data_config, open_dataset
from dnas.data.discovery import InitOptions, describe_folder
from dnas.data.discovery.run_lengths import coco_run_lengths, row_run_lengths
from dnas.errors import UserError


def counts_of(mask: np.ndarray) -> list[int]:
    """Counts down the columns, zeros first."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


def compressed(counts: list[int]) -> str:
    """COCO's text, number by number."""
    text = ""
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = number & 0x1F
            number >>= 5
            more = number != (-1 if bits & 0x10 else 0)
            text += chr(48 + bits + (0x20 if more else 0))
    return text


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.floats(0, 1))
def test_masks_come_back_from_lists_and_texts(seed, height, width, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    counts = counts_of(mask)
    for form in (counts, compressed(counts)):
        runs = coco_run_lengths({"size": [height, width], "counts": form}, "here")
        np.testing.assert_array_equal(runs.bitmap((height, width)), mask)
    rows = row_run_lengths(counts_of(mask.T), (height, width), "here")
    np.testing.assert_array_equal(rows.bitmap((height, width)), mask)


@pytest.mark.parametrize(
    ("text", "size", "counts"),
    [
        ("6", [2, 3], [6]),  # nothing: 48 + 6
        ("06", [2, 3], [0, 6]),  # everything
        ("1212", [2, 4], [1, 2, 1, 4]),  # the fourth number is a difference to the second
        ("4151N", [3, 5], [4, 1, 5, 2, 3]),  # 1 more than the second, 2 fewer than the third
        ("P1", [8, 4], [32]),  # two groups of five bits, of which the first says that it goes on
    ],
)
def test_texts_by_hand(text, size, counts):
    assert coco_run_lengths({"size": size, "counts": text}, "here").counts.tolist() == counts


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 4], "counts": [2**40]},
        {"size": [4, 4], "counts": [-1, 17]},
        {"size": [4, 4], "counts": [True] * 16},
        {"size": [4, 4], "counts": [15]},
        {"size": [4, 4], "counts": "oooooo"},
        {"size": [4, 4], "counts": "PPPPPPPP1"},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "ünicode"},
        {"size": [4, 4], "counts": None},
        {"size": [2**40, 2**40], "counts": [1]},
        {"size": [0, 4], "counts": []},
        {"size": "4x4", "counts": [16]},
        {"size": [4.0, 4], "counts": [16]},
        {"counts": [16]},
    ],
)
def test_hostile_run_lengths_are_refused(segmentation):
    with pytest.raises(UserError, match=r"^here: "):
        coco_run_lengths(segmentation, "here")


def test_a_mask_larger_than_the_image_is_not_allocated():
    """Two numbers of a file may claim a mask of any size: it is made only if the image is as large."""
    runs = coco_run_lengths({"size": [1 << 17, 1 << 17], "counts": [1 << 34]}, "here")
    with pytest.raises(UserError, match="a mask of 131072x131072 pixels, but the image is 30x20"):
        runs.bitmap((20, 30))


def test_a_coco_export_with_compressed_masks(tmp_path):
    """Masks as texts become the classes of the pixels; one of another size than its image is refused."""
    mask = np.zeros((20, 30), bool)
    mask[3:11, 2:13] = True
    mask[15, 20:28] = True
    for n in range(2):
        Image.fromarray(np.full((20, 30, 3), n, np.uint8)).save(tmp_path / f"{n}.png")
    segmentation = {"size": [20, 30], "counts": compressed(counts_of(mask))}
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 20, "width": 30} for n in range(2)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "segmentation": segmentation} for n in range(2)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    describe_folder(tmp_path, out, InitOptions(val_share=0.5))
    _, found = open_dataset(load_data_config(str(out / "data.yaml")), "train")[0]
    np.testing.assert_array_equal(found.numpy() == 1, mask)
    content["annotations"][0]["segmentation"] = {"size": [10, 60], "counts": [600]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 0: a mask of 60x10 pixels, but its image has 30x20"):
        describe_folder(tmp_path, tmp_path / "other", InitOptions(val_share=0.5))
