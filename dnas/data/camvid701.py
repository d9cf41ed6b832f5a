"""CamVid as it is published: 701 frames of 720x960 with masks of 32 colours, merged to 11 classes, official split."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dnas.data.config import DataConfig
from dnas.data.file_dataset import FileDataset
from dnas.data.labels import IGNORE_LABEL, Colour, Labels, builtin_classes
from dnas.data.masks import MaskDecoder, index_lookup
from dnas.data.pairs import Pair, pair_files, require_folder
from dnas.errors import UserError
from dnas.presets import read_preset

IMAGES, MASKS = "701_StillsRaw_full", "LabeledApproved_full"
"""The folders of the frames, ``NAME.png``, and of their masks, ``NAME_L.png``."""

_LAYOUT = f"CamVid is expected as {IMAGES} and {MASKS}; python -m scripts.prepare_data camvid701 makes them"


def open_camvid701(config: DataConfig, split: str) -> FileDataset:
    """The official split of the 701 frames, with the 32 colours merged to 11 classes as SegNet merges them."""
    return _open(config, split, merged=True)


def open_camvid701_unmerged(config: DataConfig, split: str) -> FileDataset:
    """The same frames with the colours of the 11 classes alone: the other 21 are ignored, as RegSeg's code does."""
    return _open(config, split, merged=False)


def official_split(split: str) -> tuple[str, ...]:
    """The names of the frames of train, val or test, without suffix, sorted; 367, 101 and 233."""
    runs = read_preset(resources.files("dnas.data") / "splits" / "camvid.yaml")[split]
    names = [
        f"{prefix}{frame:0{digits}d}"
        for prefix, digits, first, last, step in runs
        for frame in range(first, last + 1, step)
    ]
    return tuple(sorted(names))


def merge_table(labels: Labels, *, merged: bool = True) -> dict[Colour, int]:
    """The label of each of the 32 colours: an index of ``labels`` (CamVid's 11 classes) or 255."""
    entries = read_preset(resources.files("dnas.data") / "classes" / "camvid32.yaml")["colours"]
    table: dict[Colour, int] = {}
    for entry in entries:
        colour, name = tuple(entry["colour"]), entry["class"]
        kept = name is not None and (merged or colour in labels.colours)
        table[colour] = labels.names.index(name) if kept else IGNORE_LABEL
    return table


def _open(config: DataConfig, split: str, *, merged: bool) -> FileDataset:
    root = Path(config.root or "")
    images, masks = _folders(root, split)
    names = official_split(split)
    if missing := [name for name in names if not (images / f"{name}.png").is_file()]:
        raise UserError(
            f"{images}: {len(missing)} of the {len(names)} frames of the official {split} split are missing, the first "
            f"{missing[0]}.png; unpack the whole archive"
        )
    labels = builtin_classes("camvid").labels
    return FileDataset(
        name=config.dataset,
        split=split,
        labels=labels,
        root=root,
        pairs=pair_files((Pair(images / f"{name}.png", masks / f"{name}_L.png") for name in names), images),
        decoder=MaskDecoder(
            index_lookup(labels.num_classes),
            labels,
            accept_colours=True,
            colour_labels=merge_table(labels, merged=merged),
            reading="colours",
        ),
        size=config.size,
        cache=config.cache,
        cache_dir=config.cache_dir,
        max_pixels=config.max_pixels,
    )


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folders of frames and masks: those of the archives, or ``SPLIT`` and ``SPLIT_labels`` of the right split."""
    if not (root / IMAGES).is_dir() and (root / split).is_dir() and (root / f"{split}_labels").is_dir():
        _check_official(root)
        return root / split, root / f"{split}_labels"
    return require_folder(root / IMAGES, _LAYOUT), require_folder(root / MASKS, _LAYOUT)


def _check_official(root: Path) -> None:
    """Raise :class:`UserError` unless the folders train, val and test hold the frames of the official split."""
    held = {split: {path.stem for path in (root / split).glob("*.png")} for split in ("train", "val", "test")}
    wrong = [split for split, names in held.items() if names and names != set(official_split(split))]
    if wrong:
        counts = ", ".join(f"{split} {len(held[split])}" for split in held)
        raise UserError(
            f"{root}: not the official split of 367, 101 and 233 frames ({counts}). The split of 369, 100 and 232 that "
            "circulates on Kaggle was drawn at random: frames of one second are in train and test, and scores cannot "
            "be compared. python -m scripts.prepare_data camvid701 sorts its frames"
        )
