"""Every data set from small archives with the members of the published ones."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from dnas.data import load_data_config, open_dataset
from dnas.data.camvid701 import official_split
from dnas.data.labels import builtin_classes
from dnas.errors import UserError
from dnas.presets import read_preset
from scripts.prepare_data.__main__ import main
from scripts.prepare_data.archives import unpack
from scripts.prepare_data.datasets import sources

SIZE = (4, 6)


def _image(suffix: str, colour: tuple[int, int, int] = (90, 90, 90)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), colour, np.uint8)).save(stream, format="PNG" if suffix == ".png" else "JPEG")
    return stream.getvalue()


def _mask(value: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full(SIZE, value, np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


JPG, PNG, MASK, JUNK = _image(".jpg"), _image(".png"), _mask(), b"left out"
BUILDING = _image(".png", (128, 0, 0))
"""A mask of CamVid, which has colours."""
CONFIG = json.dumps(
    {"labels": [{"readable": n, "color": [i, 0, 0], "evaluate": True} for i, n in enumerate("ab")]}
).encode()


def _city(split: str) -> str:
    return f"{split}/ulm/ulm_000000_000019"


ARCHIVES: dict[str, dict[str, dict[str, bytes]]] = {
    "cityscapes": {
        "leftImg8bit_trainvaltest.zip": {
            "README": JUNK,
            **{f"leftImg8bit/{_city(split)}_leftImg8bit.png": PNG for split in ("train", "val", "test")},
        },
        "gtFine_trainvaltest.zip": {
            f"gtFine/{_city(split)}_gtFine_{kind}": content
            for split in ("train", "val")
            for kind, content in (("labelIds.png", MASK), ("color.png", PNG), ("polygons.json", JUNK))
        },
    },
    "bdd100k": {
        "images.zip": {f"bdd100k/images/10k/{split}/a.jpg": JPG for split in ("train", "val", "test")},
        "labels.zip": {
            f"bdd100k/labels/sem_seg/{kind}/{split}/a.png": MASK
            for kind in ("masks", "colormaps")
            for split in ("train", "val")
        },
    },
    "ade20k": {
        "ADEChallengeData2016.zip": {
            "ADEChallengeData2016/sceneCategories.txt": JUNK,
            **{f"ADEChallengeData2016/images/{split}/a.jpg": JPG for split in ("training", "validation")},
            **{f"ADEChallengeData2016/annotations/{split}/a.png": MASK for split in ("training", "validation")},
        }
    },
    "coco_stuff": {
        "train2017.zip": {"train2017/1.jpg": JPG},
        "val2017.zip": {"val2017/1.jpg": JPG},
        "maps.zip": {"train2017/1.png": MASK, "val2017/1.png": MASK, "__MACOSX/._1.png": JUNK},
    },
    "voc": {
        "VOCtrainval.tar": {
            f"VOCdevkit/VOC2012/{path}": content
            for path, content in {
                "JPEGImages/a.jpg": JPG,
                "JPEGImages/b.jpg": JPG,
                "SegmentationClass/a.png": MASK,
                "SegmentationObject/a.png": MASK,
                "Annotations/a.xml": JUNK,
                "ImageSets/Main/train.txt": JUNK,
                "ImageSets/Segmentation/train.txt": b"a\n",
                "ImageSets/Segmentation/val.txt": b"a\n",
            }.items()
        }
    },
    "mapillary_v2": {
        "vistas.zip": {
            "config_v1.2.json": CONFIG,
            "config_v2.0.json": CONFIG,
            **{
                f"{split}/{path}": content
                for split in ("training", "validation")
                for path, content in {
                    "images/a.jpg": JPG,
                    "v1.2/labels/a.png": MASK,
                    "v2.0/labels/a.png": MASK,
                    "v2.0/panoptic/a.png": PNG,
                }.items()
            },
        }
    },
}
ARCHIVES["mapillary"] = ARCHIVES["mapillary_v2"]


def _write(path: Path, files: Mapping[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_every_data_set_with_archives_is_prepared():
    assert set(ARCHIVES) | {"camvid701"} == set(sources())


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_archives_as_downloaded_become_a_data_set(tmp_path: Path, capsys, name: str):
    archives = [str(_write(tmp_path / file, files)) for file, files in ARCHIVES[name].items()]
    out = tmp_path / "out"
    assert main([name, *archives, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for split in ("train", "val"):
        assert len(open_dataset(load_data_config(f"{name}:{out}"), split)) == 1
        assert f"{split}: 1 images, the first of 4x6" in printed
    assert not [path for path in out.rglob("*") if path.is_file() and path.read_bytes() == JUNK]
    assert main([name, *archives, "--out", str(out)]) == 0  # again, over what is there


@pytest.mark.parametrize("resorted", [False, True])
def test_camvid_is_sorted_by_the_official_lists(tmp_path: Path, capsys, resorted: bool):
    """From the authors' two archives, or from a folder that was unpacked from another split."""
    names = [name for split in ("train", "val", "test") for name in official_split(split)]
    images, masks = {f"{name}.png": PNG for name in names}, {f"{name}_L.png": BUILDING for name in names}
    if not resorted:
        archives = [_write(tmp_path / "raw.zip", {f"701_StillsRaw_full/{n}": c for n, c in images.items()})]
        archives.append(_write(tmp_path / "labels.zip", {**masks, "label_colors.txt": JUNK}))
    else:
        files = {f"CamVid/{('train', 'test')[i % 2]}/{n}": c for i, (n, c) in enumerate(images.items())}
        files |= {f"CamVid/train_labels/{n}": c for n, c in masks.items()}
        for name, content in files.items():
            path = tmp_path / "kaggle" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        archives = [tmp_path / "kaggle"]
    assert main(["camvid701", *map(str, archives), "--out", str(tmp_path / "out")]) == 0
    assert "test: 233 images, the first of 4x6; 11 classes" in capsys.readouterr().out


@pytest.mark.parametrize("member", ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "..\\evil.png", "C:evil.png"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_no_member_is_written_outside_the_folder(tmp_path: Path, member: str, suffix: str):
    archive = _write(tmp_path / f"bad{suffix}", {"good.png": PNG, member: PNG})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="leads out of the archive"):
        unpack(archive, tmp_path / "deep" / "out", lambda path: path)
    assert set(tmp_path.rglob("*")) == before


def test_links_and_places_outside_are_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        info = tarfile.TarInfo("images")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(info)
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        linked = zipfile.ZipInfo("images")
        linked.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(linked, "/etc")
    for name in ("link.tar", "link.zip"):
        with pytest.raises(UserError, match="images is a link"):
            unpack(tmp_path / name, tmp_path / "out", lambda path: path)
    good = _write(tmp_path / "good.zip", {"a.png": PNG})
    with pytest.raises(UserError, match="leads out"):
        unpack(good, tmp_path / "out", lambda path: PurePosixPath("..", path.name))


def test_an_interrupted_call_is_repeated(tmp_path: Path):
    archive = _write(tmp_path / "a.zip", {"a.png": PNG, "b.png": PNG})
    out = tmp_path / "out"
    assert unpack(archive, out, lambda path: path) == 2
    kept = (out / "a.png").stat().st_mtime_ns
    (out / "b.png").write_bytes(PNG[:5])  # as a copy that was cut off by other means
    assert unpack(archive, out, lambda path: path) == 2
    assert ((out / "b.png").read_bytes(), (out / "a.png").stat().st_mtime_ns) == (PNG, kept)


def test_mistakes_are_one_line(tmp_path: Path, capsys):
    page = tmp_path / "page.zip"
    page.write_text("<html>please log in</html>")
    cut = _write(tmp_path / "cut.tar", {"VOCdevkit/VOC2012/JPEGImages/a.jpg": JPG * 200})
    cut.write_bytes(cut.read_bytes()[:20_000])
    other = _write(tmp_path / "other.zip", {"readme.txt": JUNK})
    twice = _write(tmp_path / "twice.zip", {"x/train2017/1.jpg": JPG, "y/train2017/1.jpg": JPG})
    alone = _write(tmp_path / "alone.zip", ARCHIVES["coco_stuff"]["train2017.zip"])
    for name, archive, message in (
        ("voc", page, "not a ZIP or TAR archive"),
        ("voc", cut, "the archive is damaged"),
        ("voc", tmp_path / "none.tar", "no such archive or folder"),
        ("ade20k", other, "holds no files of ade20k; expected ADEChallengeData2016.zip from"),
        ("coco_stuff", twice, "are both to become images/train2017/1.jpg"),
        ("coco_stuff", alone, "expected train2017.zip and val2017.zip and stuffthingmaps"),
    ):
        assert main([name, str(archive), "--out", str(tmp_path / name)]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1


def test_the_documentation_has_every_archive_and_the_table_of_the_merge():
    text = (Path(__file__).parents[2] / "docs" / "DATA.md").read_text()
    for name, source in sources().items():
        assert f"`{name}`" in text
        assert all(f"`{archive}`" in text for archive in source.archives)
    entries = read_preset(resources.files("dnas.data") / "classes" / "camvid32.yaml")["colours"]
    for label, colour in zip(
        builtin_classes("camvid").labels.names, builtin_classes("camvid").labels.colours, strict=True
    ):
        own = [entry["name"] for entry in entries if tuple(entry["colour"]) == colour]
        others = [entry["name"] for entry in entries if entry["class"] == label and entry["name"] not in own]
        assert f"| {label} | {own[0]} | {', '.join(others)} |" in text
