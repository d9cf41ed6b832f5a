"""What the archives of each data set hold, and where its files belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from dnas.data.camvid701 import IMAGES, MASKS, official_split
from scripts.prepare_data.archives import Place


@dataclass(frozen=True)
class Source:
    """A data set as it is published: the names of its archives, where to get them, and where their files belong."""

    archives: tuple[str, ...]
    home: str
    place: Place
    splits: tuple[str, ...] = ("train", "val")


def _below(*anchors: str, keep: Callable[[PurePosixPath], bool] = lambda path: True) -> Place:
    """Files below a folder with one of these names, from that folder on; whatever folders the archive has above it."""

    def place(path: PurePosixPath) -> PurePosixPath | None:
        for index, part in enumerate(path.parts[:-1]):
            if part in anchors:
                found = PurePosixPath(*path.parts[index:])
                return found if keep(found) and not path.name.startswith(".") else None
        return None

    return place


def _camvid() -> Place:
    """Frames and masks by their names, from the two archives of the authors or from one that is sorted otherwise."""
    names = {name for split in ("train", "val", "test") for name in official_split(split)}

    def place(path: PurePosixPath) -> PurePosixPath | None:
        if path.suffix != ".png" or path.stem.removesuffix("_L") not in names:
            return None
        return PurePosixPath(MASKS if path.stem.endswith("_L") else IMAGES, path.name)

    return place


def _coco(path: PurePosixPath) -> PurePosixPath | None:
    """``SPLIT2017/NAME.jpg`` are images, ``SPLIT2017/NAME.png`` are masks."""
    folder = {".jpg": "images", ".png": "annotations"}.get(path.suffix)
    split = path.parent.name
    return PurePosixPath(folder, split, path.name) if folder and split in ("train2017", "val2017") else None


def _mapillary(path: PurePosixPath) -> PurePosixPath | None:
    """Images, labels and configurations; instances, panoptic masks and polygons are left out."""
    if path.suffix == ".json" and path.name.startswith("config"):
        return PurePosixPath(path.name)
    wanted = path.parent.name in ("images", "labels")
    return _below("training", "validation", "testing")(path) if wanted else None


def _is_semantic(path: PurePosixPath) -> bool:
    return path.parts[0] == "leftImg8bit" or path.name.endswith("_labelIds.png")


def _is_segmentation(path: PurePosixPath) -> bool:
    kept = ("JPEGImages", "SegmentationClass")
    return path.parent.name in kept or path.parts[-3:-1] == ("ImageSets", "Segmentation")


def sources() -> Mapping[str, Source]:
    """All data sets by their names in dnas."""
    camvid = ("701_StillsRaw_full.zip", "LabeledApproved_full.zip")
    mapillary = ("mapillary-vistas-dataset_public_v2.0.zip",)
    return {
        "camvid701": Source(
            camvid, "mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid", _camvid(), ("train", "val", "test")
        ),
        "cityscapes": Source(
            ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
            "www.cityscapes-dataset.com",
            _below("leftImg8bit", "gtFine", keep=_is_semantic),
        ),
        "bdd100k": Source(
            ("bdd100k_images_10k.zip", "bdd100k_sem_seg_labels_trainval.zip"),
            "bdd-data.berkeley.edu",
            _below(
                "images", "labels", keep=lambda path: path.suffix in (".jpg", ".png") and "colormaps" not in path.parts
            ),
        ),
        "ade20k": Source(
            ("ADEChallengeData2016.zip",),
            "sceneparsing.csail.mit.edu",
            _below("images", "annotations", keep=lambda path: path.suffix in (".jpg", ".png")),
        ),
        "coco_stuff": Source(
            ("train2017.zip", "val2017.zip", "stuffthingmaps_trainval2017.zip"), "github.com/nightrome/cocostuff", _coco
        ),
        "voc": Source(
            ("VOCtrainval_11-May-2012.tar",),
            "host.robots.ox.ac.uk/pascal/VOC/voc2012",
            _below("VOCdevkit", keep=_is_segmentation),
        ),
        "mapillary": Source(mapillary, "www.mapillary.com/dataset/vistas", _mapillary),
        "mapillary_v2": Source(mapillary, "www.mapillary.com/dataset/vistas", _mapillary),
    }
