from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnas.cli import main
from dnas.data import DataConfig, load_data_config, open_dataset
from dnas.data.checking import errors_of, look_at, warnings_of
from dnas.errors import UserError
from dnas.progress import NoProgress
from dnas.training.class_weights import class_weights
from dnas.workflows.data_check import check_data, check_sample

CLASSES = "classes: [{name: a}, {name: b}, {name: c}]\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten training and four validation images of two sizes, with all three classes and ignored pixels."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "classes.yaml").write_text(CLASSES)
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for index in range(count):
            size = (10, 14) if index else (12, 14)
            save(folder / split / "images" / f"{index}.png", random.integers(0, 256, (*size, 3), dtype=np.uint8))
            save(folder / split / "labels" / f"{index}.png", random.choice(np.array([0, 1, 2, 255], np.uint8), size))
    return folder


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


class Messages(NoProgress):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def test_every_pixel_of_every_file_is_counted(root: Path):
    config = load_data_config(f"folder:{root}")
    filters = list(warnings.filters)
    check, _ = check_data(config)
    assert warnings.filters == filters
    masks = [np.asarray(Image.open(path)) for path in sorted((root / "train" / "labels").iterdir())]
    train = check.splits[0]
    assert [split.split for split in check.splits] == ["train", "val"]
    assert train.pixels == tuple(int(sum((mask == label).sum() for mask in masks)) for label in range(3))
    assert train.images == tuple(sum(bool((mask == label).any()) for mask in masks) for label in range(3))
    assert train.ignored == sum((mask == 255).sum() for mask in masks)
    assert train.sizes == {(10, 14): 9, (12, 14): 1}
    assert (check.errors, check.warnings) == ((), ())
    for rule in ("enet", "median_frequency"):
        expected = class_weights(rule, open_dataset(config, "train"))
        torch.testing.assert_close(torch.tensor(check.weights[rule]), expected)


def test_what_is_wrong_and_what_is_doubtful_is_found(root: Path):
    save(root / "train" / "labels" / "3.png", np.full((10, 14), 7, np.uint8))
    (root / "train" / "images" / "4.png").write_bytes(b"no image")
    for path in (root / "train" / "labels").glob("*.png"):
        if path.stem != "3":
            save(path, np.where(np.asarray(Image.open(path)) == 2, 0, np.asarray(Image.open(path))))
    (root / "val" / "images" / "1.png").write_bytes((root / "train" / "images" / "0.png").read_bytes())
    (root / "val" / "labels" / "1.png").write_bytes((root / "train" / "labels" / "0.png").read_bytes())
    (root / "val" / "images" / "notes.txt").write_text("")
    check, _ = check_data(load_data_config(f"folder:{root}"))
    assert len(check.errors) == 2
    assert "3.png: 140 pixels have label 7" in check.errors[0]
    assert "4.png: not a readable image" in check.errors[1]
    for part in (
        "train: no pixel of 8 masks is c",
        "val shows c, which the masks of train never do",
        "1 images are in train and in val, such as train/images/0.png and val/images/1.png",
        "also contains 1 .txt files, not read",
    ):
        assert any(part in text for text in check.warnings), part


@pytest.mark.parametrize("values", [(255,), (0, 255), (2, 255)])
def test_masks_that_hold_one_class_and_255_are_refused_unless_it_is_stated(root: Path, values):
    for path in root.rglob("labels/*.png"):
        save(path, np.random.default_rng(0).choice(np.array(values, np.uint8), np.asarray(Image.open(path)).shape))
    config = load_data_config(f"folder:{root}")
    with pytest.raises(UserError, match="all are ignored" if values == (255,) else r"'[ac]' and the value 255"):
        check_sample([open_dataset(config, "train")], config, 4, None)
    (root / "classes.yaml").write_text(CLASSES + "ignore: 255\n")
    found = look_at(open_dataset(config, "train"))
    assert bool(errors_of(found)) == (values == (255,))


def test_ignored_pixels_and_distant_sizes_are_doubtful(root: Path):
    save(root / "train" / "images" / "1.png", np.zeros((60, 60, 3), np.uint8))
    save(root / "train" / "labels" / "1.png", np.full((60, 60), 255, np.uint8))
    for path in sorted((root / "train" / "labels").glob("*.png"))[2:]:
        pixels = np.asarray(Image.open(path)).copy()
        pixels[1:] = 255
        save(path, pixels)
    found = warnings_of([look_at(open_dataset(load_data_config(f"folder:{root}"), "train"))])
    assert any("% of the pixels are ignored" in text for text in found)
    assert any("images from 14x10 to 60x60 pixels" in text for text in found)


def test_a_sample_before_long_work_names_the_first_error_and_says_doubts(root: Path):
    config = load_data_config(f"folder:{root}")
    splits = [open_dataset(config, split) for split in ("train", "val")]
    progress = Messages()
    check_sample(splits, config, 64, progress)
    assert progress.texts == []
    for index in (1, 2):
        save(root / "val" / "labels" / f"{index}.png", np.full((10, 14), 9, np.uint8))
    with pytest.raises(UserError, match=r"val.labels.1\.png: .*label 9.*\(and 1 more of 14 images that were read\)"):
        check_sample(splits, config, 64, progress)
    check_sample(splits, config, 0, progress)
    check_sample([], DataConfig(dataset="rectangles"), None, progress)


def test_a_bad_validation_mask_ends_a_retraining_before_its_first_epoch(root: Path, tmp_path: Path, capsys):
    save(root / "val" / "labels" / "2.png", np.full((10, 14), 9, np.uint8))
    command = ["retrain", "regseg_small", "--data", f"folder:{root}", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == 2
    assert "2.png: 140 pixels have label 9" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*command, "--check", "some"]) == 2
    assert "expected sample, all or none" in capsys.readouterr().err


def test_the_command_prints_lines_or_json_and_writes_a_page(root: Path, tmp_path: Path, capsys):
    page = tmp_path / "page.html"
    assert main(["data", "check", f"folder:{root}", "--report", str(page), "--examples", "2"]) == 0
    printed = capsys.readouterr()
    assert "train: 10 of 10 images read, 14x10 (9), 14x12 (1)" in printed.out
    assert "class_weights enet:" in printed.out
    text = page.read_text()
    assert text.count("data:image/jpeg") == 4
    assert "Nothing wrong" in text
    save(root / "val" / "labels" / "2.png", np.full((10, 14), 9, np.uint8))
    assert main(["data", "check", f"folder:{root}", "--json"]) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["splits"]["train"]["images"] == 10
    assert found["splits"]["val"]["problems"] == found["errors"]
    assert printed.err.count("\n") == 1
    assert main(["data", "check", f"folder:{tmp_path}"]) == 2
    assert "contains none of the folders" in capsys.readouterr().err
