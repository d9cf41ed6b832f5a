"""Images whose labels a trained network predicted, beside those that were labelled by hand (ESeg, section 4.4)."""

from __future__ import annotations

from pathlib import Path

from dnas.data.config import DataConfig
from dnas.data.dataset import SegmentationDataset
from dnas.data.file_dataset import FileDataset
from dnas.data.joined import JoinedDataset
from dnas.data.labels import builtin_classes
from dnas.data.layouts import cityscapes_lookup
from dnas.data.masks import MaskDecoder
from dnas.data.pairs import Pair, pair_files, require_folder
from dnas.errors import UserError

PSEUDO_LABELS = "pseudo_labels"
"""Folder of the predicted label ids in the root, written by ``dnas submission --split train_extra --confidence``."""

WITH_PSEUDO_LABELS = "train+pseudo"
"""The split of the training images and those with predicted labels."""


def with_pseudo_labels(config: DataConfig, train: SegmentationDataset) -> JoinedDataset:
    """The images of ``train``, and those of Cityscapes' ``train_extra`` that have a file in ``pseudo_labels``.

    The images of ``train`` occur so often that they are about half of all, as in ESeg's batches. Raises
    :class:`UserError` for another dataset and without such labels.
    """
    if config.dataset != "cityscapes" or config.root is None:
        raise UserError(f"{config.dataset}: has no images without labels; {WITH_PSEUDO_LABELS} is for cityscapes")
    root = Path(config.root)
    advice = "write them with dnas submission TEACHER --split train_extra --confidence 0.5 --out"
    labels = builtin_classes("cityscapes").labels
    masks = require_folder(root / PSEUDO_LABELS, f"{advice} {root / PSEUDO_LABELS}")
    images = require_folder(root / "leftImg8bit" / "train_extra", "unpack leftImg8bit_trainextra.zip into the root")
    stems = {path.name.removesuffix("_leftImg8bit.png"): path for path in images.glob("*/*_leftImg8bit.png")}
    found = {path.name.removesuffix("_labelIds.png"): path for path in masks.glob("*_labelIds.png")}
    if missing := sorted(found.keys() - stems.keys()):
        raise UserError(f"{found[missing[0]]}: mask without an image (and {len(missing) - 1} more) in {images}")
    pseudo = FileDataset(
        name=config.dataset,
        split="train_extra",
        labels=labels,
        root=root,
        pairs=pair_files((Pair(stems[stem], mask) for stem, mask in found.items()), masks),
        decoder=MaskDecoder(cityscapes_lookup(), labels, reading="indices"),
        size=config.size,
        cache=config.cache,
        cache_dir=config.cache_dir,
        max_pixels=config.max_pixels,
    )
    times = max(1, round(len(pseudo) / len(train)))
    return JoinedDataset([*[train] * times, pseudo], WITH_PSEUDO_LABELS)
