"""The folder layouts of ADE20K, COCO-Stuff, PASCAL VOC and Mapillary Vistas, as their archives unpack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dnas.data.config import DataConfig
from dnas.data.file_dataset import FileDataset
from dnas.data.labels import IGNORE_LABEL, Labels, builtin_classes
from dnas.data.masks import MaskDecoder, index_lookup
from dnas.data.pairs import Pair, pair_by_stem, pair_files, require_folder
from dnas.errors import UserError
from dnas.files import read_json, read_text

COCO_DROPPED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Mask values of the 11 classes that COCO dropped, such as hat and shoe: they do not occur."""


def open_ade20k(config: DataConfig, split: str) -> FileDataset:
    """``images/training|validation`` and ``annotations/...``: 150 classes stored as 1 to 150, and 0 is ignored."""
    root, folder = _root(config), _folder_of(config, split, {"train": "training", "val": "validation"})
    layout = "ADE20K is expected as images and annotations, each with training and validation (ADEChallengeData2016)"
    pairs = pair_by_stem(
        require_folder(root / "images" / folder, layout), require_folder(root / "annotations" / folder, layout)
    )
    labels = builtin_classes("ade20k").labels
    lookup = index_lookup(0, [0])
    lookup[1 : labels.num_classes + 1] = torch.arange(labels.num_classes, dtype=torch.int32)
    return _file_dataset(config, split, labels, pairs, lookup)


def open_coco_stuff(config: DataConfig, split: str) -> FileDataset:
    """``images/SPLIT2017`` and ``annotations/SPLIT2017`` (the stuffthingmaps): 171 classes."""
    root, folder = _root(config), _folder_of(config, split, {"train": "train2017", "val": "val2017"})
    layout = "COCO-Stuff is expected as images/SPLIT2017 and annotations/SPLIT2017, from stuffthingmaps_trainval2017"
    pairs = pair_by_stem(
        require_folder(root / "images" / folder, layout), require_folder(root / "annotations" / folder, layout)
    )
    labels = builtin_classes("coco_stuff").labels
    lookup = index_lookup(0)
    values = [value for value in range(labels.num_classes + len(COCO_DROPPED)) if value not in COCO_DROPPED]
    lookup[values] = torch.arange(labels.num_classes, dtype=torch.int32)
    return _file_dataset(config, split, labels, pairs, lookup)


def open_voc(config: DataConfig, split: str) -> FileDataset:
    """``VOCdevkit/VOC2012`` with the lists of ``ImageSets/Segmentation``: 20 classes and the background."""
    root = _root(config)
    year = next((path for path in (root / "VOCdevkit" / "VOC2012", root / "VOC2012") if path.is_dir()), root)
    layout = "VOC is expected as VOCdevkit/VOC2012 with JPEGImages, SegmentationClass and ImageSets/Segmentation"
    name = _folder_of(config, split, {"train": "train", "val": "val"})
    images, masks = require_folder(year / "JPEGImages", layout), require_folder(year / "SegmentationClass", layout)
    listed = read_text(year / "ImageSets" / "Segmentation" / f"{name}.txt", "list of VOC's images").split()
    if missing := [stem for stem in listed if not (images / f"{stem}.jpg").is_file()]:
        raise UserError(f"{images}: {len(missing)} images of the {split} list are missing, the first {missing[0]}.jpg")
    pairs = pair_files((Pair(images / f"{stem}.jpg", masks / f"{stem}.png") for stem in listed), images)
    labels = builtin_classes("voc").labels
    return _file_dataset(config, split, labels, pairs, index_lookup(labels.num_classes))


def open_mapillary(config: DataConfig, split: str) -> FileDataset:
    """Mapillary Vistas, labels of version 1.2: the 65 classes of its configuration that are evaluated."""
    return _open_mapillary(config, split, "v1.2")


def open_mapillary_v2(config: DataConfig, split: str) -> FileDataset:
    """Mapillary Vistas, labels of version 2.0: the classes of its configuration that are evaluated."""
    return _open_mapillary(config, split, "v2.0")


def _open_mapillary(config: DataConfig, split: str, version: str) -> FileDataset:
    """``training|validation/images``, ``.../VERSION/labels`` and ``config_VERSION.json``.

    The older archive has its one version in ``.../labels`` and ``config.json``.
    """
    root, folder = _root(config), _folder_of(config, split, {"train": "training", "val": "validation"})
    layout = "Mapillary Vistas is expected as training and validation with images and labels, and a config file"
    images = require_folder(root / folder / "images", layout)
    old = version == "v1.2" and not (root / f"config_{version}.json").is_file()
    masks = root / folder / "labels" if old else root / folder / version / "labels"
    labels, lookup = _mapillary_classes(root / ("config.json" if old else f"config_{version}.json"))
    pairs = pair_by_stem(images, require_folder(masks, layout))
    return _file_dataset(config, split, labels, pairs, lookup)


def _mapillary_classes(path: Path) -> tuple[Labels, torch.Tensor]:
    """Classes and lookup of a configuration: a list of labels in the order of the stored values."""
    entries: Any = read_json(path, "configuration of Mapillary Vistas")
    try:
        found = [
            (str(e["readable"]), tuple(int(v) for v in e["color"]), bool(e["evaluate"])) for e in entries["labels"]
        ]
        evaluated = [index for index, entry in enumerate(found) if entry[2]]
        colours = tuple((r, g, b) for r, g, b in (found[index][1] for index in evaluated))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a configuration of Mapillary Vistas ({error!r})") from None
    lookup = index_lookup(0, [index for index in range(len(found)) if index not in evaluated])
    lookup[evaluated] = torch.arange(len(evaluated), dtype=torch.int32)
    lookup[IGNORE_LABEL] = IGNORE_LABEL
    return Labels(tuple(found[index][0] for index in evaluated), colours), lookup


def _root(config: DataConfig) -> Path:
    return Path(config.root or "")


def _folder_of(config: DataConfig, split: str, folders: dict[str, str]) -> str:
    """The name that a data set has for a split; one without public annotations raises :class:`UserError`."""
    if split not in folders:
        raise UserError(f"{config.dataset}: the annotations of {split} are not public, use val")
    return folders[split]


def _file_dataset(
    config: DataConfig, split: str, labels: Labels, pairs: tuple[Pair, ...], lookup: torch.Tensor
) -> FileDataset:
    return FileDataset(
        name=config.dataset,
        split=split,
        labels=labels,
        root=_root(config),
        pairs=pairs,
        # The values decide: colours of palettes need not be those of the classes, and Mapillary has some twice.
        decoder=MaskDecoder(lookup, labels, reading="indices"),
        size=config.size,
        cache=config.cache,
        cache_dir=config.cache_dir,
        max_pixels=config.max_pixels,
    )
