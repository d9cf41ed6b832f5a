"""Opening a dataset from its configuration."""

from __future__ import annotations

from collections.abc import Callable

from dnas.data import rectangles, streets
from dnas.data.camvid701 import open_camvid701, open_camvid701_unmerged
from dnas.data.config import DataConfig
from dnas.data.dataset import SegmentationDataset
from dnas.data.joined import JoinedDataset
from dnas.data.layouts import open_bdd100k, open_camvid, open_cityscapes, open_folder
from dnas.data.listing import open_files
from dnas.data.pseudo_labels import WITH_PSEUDO_LABELS, with_pseudo_labels
from dnas.data.public_layouts import open_ade20k, open_coco_stuff, open_mapillary, open_mapillary_v2, open_voc
from dnas.errors import UserError

_DEFAULT_IMAGES = {"train": 200, "val": 40, "test": 40}


def open_dataset(config: DataConfig, split: str) -> SegmentationDataset:
    """The ``train``, ``val`` or ``test`` split of a dataset; ``trainval`` is train and val.

    ``train+pseudo`` is train and images with predicted labels; see :mod:`dnas.data.pseudo_labels`.

    Folders and file pairs are checked here, the content of a file when it is read. Raises :class:`UserError` for an
    unknown split and for missing or unpaired files.
    """
    if split == "trainval":
        return JoinedDataset((open_dataset(config, "train"), open_dataset(config, "val")), split)
    if split == WITH_PSEUDO_LABELS:
        return with_pseudo_labels(config, open_dataset(config, "train"))
    if split not in _DEFAULT_IMAGES:
        known = ", ".join((*_DEFAULT_IMAGES, "trainval"))
        raise UserError(f"{config.dataset}: unknown split {split!r}, expected one of {known}")
    openers: dict[str, Callable[[DataConfig, str], SegmentationDataset]] = {
        "streets": _open_streets,
        "rectangles": _open_rectangles,
        "camvid": open_camvid,
        "camvid701": open_camvid701,
        "camvid701_unmerged": open_camvid701_unmerged,
        "cityscapes": open_cityscapes,
        "bdd100k": open_bdd100k,
        "ade20k": open_ade20k,
        "coco_stuff": open_coco_stuff,
        "voc": open_voc,
        "mapillary": open_mapillary,
        "mapillary_v2": open_mapillary_v2,
        "folder": open_folder,
        "files": open_files,
    }
    return openers[config.dataset](config, split)


def _open_streets(config: DataConfig, split: str) -> SegmentationDataset:
    size = config.size or streets.DEFAULT_SIZE
    count = _count(config, split)
    return streets.StreetsDataset(split=split, count=count, size=size, seed=config.seed, cache=bool(config.cache))


def _open_rectangles(config: DataConfig, split: str) -> SegmentationDataset:
    size = config.size or rectangles.DEFAULT_SIZE
    count = _count(config, split)
    return rectangles.RectanglesDataset(split=split, count=count, size=size, seed=config.seed, cache=bool(config.cache))


def _count(config: DataConfig, split: str) -> int:
    given = (count for name, count in (config.images or {}).items() if name == split)
    return next(given, _DEFAULT_IMAGES[split])
