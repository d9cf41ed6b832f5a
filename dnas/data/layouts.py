"""The folder layouts of the datasets of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.datasets import Cityscapes

from dnas.data.config import DataConfig
from dnas.data.file_dataset import FileDataset
from dnas.data.labels import IGNORE_LABEL, Labels, builtin_classes, read_classes
from dnas.data.masks import MaskDecoder, index_lookup
from dnas.data.pairs import Pair, pair_by_stem, pair_files, require_folder
from dnas.errors import UserError

_SPLITS = ("train", "val", "test")


def open_camvid(config: DataConfig, split: str) -> FileDataset:
    """``SPLIT/images/NAME.jpg|png`` and ``SPLIT/labels/NAME.png``: class indices 0 to 10, and 11 for unlabelled."""
    root = _root(config)
    layout = "CamVid is expected as SPLIT/images and SPLIT/labels with SPLIT one of train, val, test"
    pairs = pair_by_stem(
        require_folder(root / split / "images", layout), require_folder(root / split / "labels", layout)
    )
    classes = builtin_classes("camvid")
    decoder = MaskDecoder(
        index_lookup(len(classes.classes), classes.ignored_values), classes.labels, reading=config.masks
    )
    return _file_dataset(config, split, classes.labels, pairs, decoder)


def open_cityscapes(config: DataConfig, split: str) -> FileDataset:
    """``leftImg8bit/SPLIT/CITY`` and fine annotations ``gtFine/SPLIT/CITY``; raw ids are mapped to 19 train ids."""
    root = _root(config)
    if split == "test":
        raise UserError("cityscapes: the annotations of test are not public, use val")
    layout = "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into the root"
    images = require_folder(root / "leftImg8bit" / split, layout)
    require_folder(root / "gtFine" / split, layout)
    try:
        listing = Cityscapes(root, split=split, mode="fine", target_type="semantic")
    except (OSError, RuntimeError) as error:
        raise UserError(f"{root}: not a complete Cityscapes folder ({error}); {layout}") from None
    files = zip(map(Path, listing.images), (Path(targets[0]) for targets in listing.targets), strict=True)
    pairs = pair_files((Pair(*pair) for pair in files if pair[0].name.endswith("_leftImg8bit.png")), images)
    labels = builtin_classes("cityscapes").labels
    return _file_dataset(config, split, labels, pairs, MaskDecoder(cityscapes_lookup(), labels, reading="indices"))


def cityscapes_lookup() -> torch.Tensor:
    """int32 (256,): the train id of each raw Cityscapes id; 255 for ids that are not evaluated, -1 for invalid ids."""
    lookup = torch.full((256,), -1, dtype=torch.int32)
    lookup[IGNORE_LABEL] = IGNORE_LABEL
    for entry in Cityscapes.classes:
        if entry.id >= 0:  # the licence plate has id -1 and does not occur in masks
            lookup[entry.id] = IGNORE_LABEL if entry.ignore_in_eval else entry.train_id
    return lookup


def open_bdd100k(config: DataConfig, split: str) -> FileDataset:
    """BDD100K's 10K segmentation images with 19 train ids, in one of two layouts.

    ``images/10k/SPLIT/NAME.jpg`` with ``labels/sem_seg/masks/SPLIT/NAME.png``, or the older ``images/SPLIT/NAME.jpg``
    with ``labels/SPLIT/NAME_train_id.png``.
    """
    root = _root(config)
    if split == "test":
        raise UserError("bdd100k: the annotations of test are not public, use val")
    layout = "BDD100K is expected as images/10k/SPLIT and labels/sem_seg/masks/SPLIT, or images/SPLIT and labels/SPLIT"
    images, masks, stem_of = root / "images" / "10k" / split, root / "labels" / "sem_seg" / "masks" / split, str
    older: Callable[[str], str | None] = _older_bdd_stem
    if not images.is_dir() and (root / "images" / split).is_dir():
        images, masks = root / "images" / split, root / "labels" / split
        pairs = pair_by_stem(images, require_folder(masks, layout), older)
    else:
        pairs = pair_by_stem(require_folder(images, layout), require_folder(masks, layout), stem_of)
    labels = builtin_classes("cityscapes").labels
    return _file_dataset(
        config, split, labels, pairs, MaskDecoder(index_lookup(labels.num_classes), labels, reading="indices")
    )


def _older_bdd_stem(stem: str) -> str | None:
    return stem.removesuffix("_train_id") if stem.endswith("_train_id") else None


def open_folder(config: DataConfig, split: str) -> FileDataset:
    """``SPLIT/images`` and ``SPLIT/labels`` (or ``masks``) paired by stem, with the classes of a classes file.

    Masks contain class indices (grey or palette) or the colours of the classes file.
    """
    root = _root(config)
    layout = "expected SPLIT/images and SPLIT/labels with SPLIT one of train, val, test, and a classes.yaml beside them"
    require_folder(root, layout)
    if not (root / split).is_dir():
        raise _missing_split(root, split)
    images = require_folder(root / split / "images", layout)
    masks = root / split / "labels"
    if not masks.is_dir() and (root / split / "masks").is_dir():
        masks = root / split / "masks"
    pairs = pair_by_stem(images, require_folder(masks, layout))
    classes = read_classes(config.classes or root / "classes.yaml")
    decoder = MaskDecoder.of_classes(classes, config.masks)
    return _file_dataset(config, split, classes.labels, pairs, decoder)


def _missing_split(root: Path, split: str) -> UserError:
    found = [name for name in _SPLITS if (root / name).is_dir()]
    if not found:
        return UserError(f"{root}: contains none of the folders train, val and test, each with images and labels")
    advice = f"move some of the images of {root / found[0]} and their masks there, one in ten for example"
    return UserError(f"{root / split}: there is no {split} split, only {' and '.join(found)}; {advice}")


def _root(config: DataConfig) -> Path:
    if config.root is None:  # impossible after DataConfig's validation; for the type checker
        raise UserError(f"{config.dataset}: needs a root, the folder of its files")
    return Path(config.root)


def _file_dataset(
    config: DataConfig, split: str, labels: Labels, pairs: tuple[Pair, ...], decoder: MaskDecoder
) -> FileDataset:
    return FileDataset(
        name=config.dataset,
        split=split,
        labels=labels,
        root=_root(config),
        pairs=pairs,
        decoder=decoder,
        size=config.size,
        cache=config.cache,
        cache_dir=config.cache_dir,
        value_range=config.range,
        orientation=config.orientation,
        channels=config.channels,
        max_pixels=config.max_pixels,
    )
