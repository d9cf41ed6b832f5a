"""Tables of the Hugging Face ``datasets`` library with a column of images and one of masks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from dnas.data.discovery.pairing import IMAGE_FOLDERS, MASK_FOLDERS, SPLIT_FOLDERS
from dnas.errors import UserError
from dnas.files import write_atomically
from dnas.progress import Progress


def holds_table(root: Path) -> bool:
    """Whether the folder was written by ``save_to_disk`` or holds Parquet files."""
    if (root / "dataset_dict.json").is_file() or {"dataset_info.json", "state.json"} <= _names(root):
        return True
    return any(root.rglob("*.parquet"))


def unpack_table(root: Path, out: Path, progress: Progress) -> Path:
    """Write images and masks as ``out/SPLIT/images/N.png`` and ``out/SPLIT/masks/N.png``; returns ``out``.

    Raises :class:`UserError` without the library, and for tables without one image and one mask column.
    """
    for split, table in _load(root).items():
        image, mask = _columns(table, root)
        progress.begin(f"unpacking {split}", len(table))
        for index, row in enumerate(table):
            for column, folder in ((image, "images"), (mask, "masks")):
                picture = row[column]
                if picture is None:
                    raise UserError(f"{root}: row {index} of {split} has no {column}; remove it from the table")
                path = out / SPLIT_FOLDERS.get(split.lower(), split) / folder / f"{index:06d}.png"
                write_atomically(path, functools.partial(picture.save, format="PNG"))
            progress.advance()
    return out


def _load(root: Path) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{root}: a table of the datasets library, which is not installed: pip install 'dnas[hub]'"
        ) from None
    try:
        if any(root.rglob("*.parquet")):
            return dict(_parquet(datasets, root))
        loaded = datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{root}: the datasets library cannot read it: {str(error)[:300]}") from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _parquet(datasets: Any, root: Path) -> dict[str, Any]:
    """Tables by split: the first part of a file's name, or a folder."""
    files: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.parquet")):
        words = [path.stem.partition("-")[0], path.parent.name]
        split = next((SPLIT_FOLDERS[word.lower()] for word in words if word.lower() in SPLIT_FOLDERS), "train")
        files.setdefault(split, []).append(str(path))
    return {
        split: datasets.concatenate_datasets([datasets.Dataset.from_parquet(path) for path in paths])
        for split, paths in files.items()
    }


def _columns(table: Any, root: Path) -> tuple[str, str]:
    pictures = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    masks = [name for name in pictures if name.lower() in MASK_FOLDERS or name.lower().endswith(("mask", "label"))]
    images = [name for name in pictures if name not in masks]
    preferred = [name for name in images if name.lower() in IMAGE_FOLDERS]
    images = preferred or images
    if len(images) != 1 or len(masks) != 1:
        raise UserError(
            f"{root}: its columns of images are {', '.join(pictures) or 'none'}; expected one of images (image) and "
            "one of masks (mask, label, annotation); rename or remove the others"
        )
    return images[0], masks[0]


def _names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}
