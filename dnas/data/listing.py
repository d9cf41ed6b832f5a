"""Datasets of files that lie anywhere: a table names the image and the mask of each item, and its split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dnas.data.config import DataConfig
from dnas.data.file_dataset import FileDataset
from dnas.data.labels import read_classes
from dnas.data.masks import MaskDecoder
from dnas.data.pairs import Pair, pair_files
from dnas.errors import UserError
from dnas.files import read_text, write_text

COLUMNS = ("split", "image", "mask")
LISTING = "files.csv"


@dataclass(frozen=True)
class ListedPair:
    """One row of the table; the paths are relative to the root of the data, with forward slashes."""

    split: str
    image: str
    mask: str


def write_listing(path: Path, rows: Iterable[ListedPair]) -> None:
    """Write the table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((row.split, row.image, row.mask) for row in rows)
    write_text(path, text.getvalue())


def read_listing(path: Path) -> list[ListedPair]:
    """Read the table; missing columns and rows without a value raise :class:`UserError` with the line."""
    reader = csv.DictReader(io.StringIO(read_text(path, "table of images and masks")))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: the column {missing[0]} is missing, expected the columns {', '.join(COLUMNS)}")
    rows = []
    for number, row in enumerate(reader, start=2):
        values = [row[name] for name in COLUMNS]
        if not all(values):
            raise UserError(f"{path}: line {number} has no value for one of {', '.join(COLUMNS)}")
        rows.append(ListedPair(*values))
    return rows


def open_files(config: DataConfig, split: str) -> FileDataset:
    """The images and masks of a split that the table ``listing`` names, by default ``files.csv`` in the root."""
    root = Path(config.root or "")
    path = Path(config.listing or root / LISTING)
    rows = read_listing(path)
    pairs = [Pair(root / row.image, root / row.mask) for row in rows if row.split == split]
    if not pairs:
        found = ", ".join(sorted({row.split for row in rows})) or "no rows"
        raise UserError(f"{path}: lists no images of {split}, only of {found}; change the column split of some rows")
    absent = next((pair.image for pair in pairs if not pair.image.is_file()), None)
    if absent is not None:
        raise UserError(f"{absent}: no such image, which {path} lists; run dnas data init again, or remove its row")
    classes = read_classes(config.classes or root / "classes.yaml")
    return FileDataset(
        name=config.dataset,
        split=split,
        labels=classes.labels,
        root=root,
        pairs=pair_files(pairs, path),
        decoder=MaskDecoder.of_classes(classes, config.masks),
        size=config.size,
        cache=config.cache,
        cache_dir=config.cache_dir,
        value_range=config.range,
        orientation=config.orientation,
        channels=config.channels,
        max_pixels=config.max_pixels,
    )
