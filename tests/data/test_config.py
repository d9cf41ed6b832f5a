from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from dnas.config import parse_config, to_mapping
from dnas.data import DataConfig, load_data_config, open_dataset, preset_names
from dnas.data.config import BUILT_IN, DatasetName
from dnas.errors import UserError


def test_every_dataset_has_a_preset_of_its_name_that_round_trips(tmp_path: Path):
    assert set(preset_names()) == set(get_args(DatasetName))
    for name in preset_names():
        config = load_data_config(name if name in BUILT_IN else f"{name}:{tmp_path}")
        assert config.dataset == name
        assert parse_config(DataConfig, to_mapping(config), name) == config


def test_a_folder_given_relative_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_data_config("camvid:some/where").root == str(tmp_path / "some" / "where")


def test_paths_in_a_file_are_taken_from_its_folder(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: folder\nroot: images\nclasses: ../classes.yaml\nsize: [64, 128]\n")
    config = load_data_config(str(path))
    assert config.root == str(tmp_path / "images")
    assert config.classes == str(tmp_path.parent / "classes.yaml")
    assert config.size == (64, 128)


def test_overrides_are_checked_like_the_rest():
    assert load_data_config("streets", ["images.train=7", "size=[64,96]"]).images == {"train": 7, "val": 40, "test": 40}
    with pytest.raises(UserError, match=r"images\.train"):
        load_data_config("streets", ["images.train=0"])


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("nowhere", "unknown data, expected a YAML file, one of ade20k, bdd100k, camvid"),
        ("nothing.yaml", "no such data configuration"),
        ("camvid", "use camvid:DIR"),
        ("camvid:", "given no folder"),
        ("streets:here", "takes no folder"),
        ("other:here", "unknown data"),
    ],
)
def test_data_that_cannot_be_meant_is_one_clear_error(data: str, part: str):
    with pytest.raises(UserError) as caught:
        load_data_config(data)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dataset: kitti", 'dataset: given "kitti"'),
        ("dataset: streets\nsize: [128]", "size.1: missing"),
        ("dataset: streets\nsize: [128, 4]", "size.1: given 4"),
        ("dataset: streets\nroot: x", "takes no root"),
        ("dataset: camvid", "needs a root"),
        ("dataset: camvid\nroot: x\nimages: {train: 3}", "images is for generated datasets"),
        ("dataset: camvid\nroot: x\ncache: true", "cache needs a size"),
        ("dataset: camvid\nroot: x\ncache: memory", "or cache: disk"),
        ("dataset: camvid\nroot: x\ncache: tape", 'cache: given "tape"'),
        ("dataset: camvid\nroot: x\ncache_dir: y", "cache_dir is for cache: disk"),
        ("dataset: streets\ncache: disk", "cache: disk is for files"),
        ("dataset: camvid\nroot: x\nclasses: y", "classes is for folder"),
        ("dataset: streets\nimages: {training: 3}", "images"),
        ("dataset: streets\nworkers: 3", "workers: unknown key"),
    ],
)
def test_a_bad_file_names_itself_and_the_key(tmp_path: Path, text: str, part: str):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_data_config(str(path))
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_an_unknown_split_lists_the_known():
    with pytest.raises(UserError, match="expected one of train, val, test"):
        open_dataset(load_data_config("streets"), "validation")


def test_a_folder_stands_for_its_data_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"a folder without a data\.yaml; dnas data init"):
        load_data_config(str(tmp_path))
    (tmp_path / "data.yaml").write_text("dataset: folder\nroot: images\n")
    config = load_data_config(str(tmp_path), ["masks=colours", "range=[0, 4095]", "orientation=stored"])
    assert config.root == str(tmp_path / "images")
    assert (config.masks, config.range, config.orientation) == ("colours", (0, 4095), "stored")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("range=[5, 5]", "expected the smaller value first"),
        ("channels=4", "channels 4 needs mean and std of each channel, which dnas data init measures"),
        ("mean=[0.5]", "expected one for each of 3 channels"),
        ("listing=files.csv", "listing is for files, not for folder"),
        ("masks=guess", "masks: given"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, setting: str, message: str):
    with pytest.raises(UserError, match=message):
        load_data_config(f"folder:{tmp_path}", [setting])
