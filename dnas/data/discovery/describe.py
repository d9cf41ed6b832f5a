"""From a folder as it is to a data file: pairs, splits, classes, bit depth and channels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from dnas.data.discovery.exports import find_annotations
from dnas.data.discovery.hub import holds_table, unpack_table
from dnas.data.discovery.images import ImageFacts, look_at_images
from dnas.data.discovery.pairing import FoundPair, pair_masks, relative_names, split_of
from dnas.data.discovery.polygons import BACKGROUND_NAMES, Annotations, draw_mask
from dnas.data.discovery.splits import assign_splits
from dnas.data.discovery.tables import ListedClass, find_table, read_table
from dnas.data.discovery.values import FoundClasses, classes_of_masks, look_at_masks
from dnas.data.labels import IGNORE_LABEL
from dnas.data.listing import LISTING, ListedPair, write_listing
from dnas.data.splitting import evenly_spaced
from dnas.errors import UserError
from dnas.files import dump_yaml, read_yaml, write_atomically, write_text
from dnas.progress import NoProgress, Progress
from dnas.text import encodable

_MASKS_READ = 1000


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """What the user settles where a folder can be read in several ways.

    images, masks: patterns below the folder that choose the files of each.
    classes: a table of class names and colours.
    outside: what pixels outside of all polygons are.
    val_share: the share of the training images drawn for validation by ``seed``, if there is no validation split.
    """

    images: str | None = None
    masks: str | None = None
    classes: Path | None = None
    outside: Literal["background", "ignore"] = "background"
    val_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Description:
    """What was written: the data file, the number of images of each split, the classes, and what was decided."""

    data_file: Path
    images: dict[str, int]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def describe_folder(root: Path, out: Path, options: InitOptions, progress: Progress | None = None) -> Description:
    """Look at the folder ``root`` and write ``data.yaml``, ``classes.yaml`` and ``files.csv`` to ``out``.

    Annotations in polygons are drawn as masks into ``out/masks``; a table of the Hugging Face ``datasets`` library is
    unpacked into ``out``. Nothing in ``root`` is changed but for files that are written there if ``out`` is the same
    folder. Raises :class:`UserError` where several readings are possible, naming them and the option that decides.
    """
    progress = progress or NoProgress()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, expected one with images and masks or annotations")
    if (out / "data.yaml").exists():
        raise UserError(f"{out / 'data.yaml'}: exists already; remove it, or give another folder by --out")
    for path in (root.resolve(), out.resolve()):
        if encodable(str(path)) != str(path):
            raise UserError(f"{path}: is not valid UTF-8, which a data file cannot hold; rename the file or folder")
    notes: list[str] = []
    if holds_table(root):
        root = unpack_table(root, out / "files", progress)
        notes.append(f"images and masks were unpacked into {root}")
    annotations = None if options.masks else find_annotations(root)
    if annotations is None:
        pairs, classes = _masked(root, out, options, notes)
    else:
        pairs, classes = _annotated(root, out, annotations, options, notes, progress)
    facts = look_at_images([pair.image for pair in pairs], progress)
    splits, how = assign_splits(
        root, [pair.image for pair in pairs], [pair.split for pair in pairs], options.seed, options.val_share
    )
    notes += [*how, *classes.notes, *facts.notes]
    rows = [
        ListedPair(split, _place(pair.image, root), _place(pair.mask, root))
        for pair, split in zip(pairs, splits, strict=True)
        if split
    ]
    counts = {split: sum(row.split == split for row in rows) for split in ("train", "val", "test")}
    if not counts["train"]:
        raise UserError(f"{root}: no image belongs to train; the splits come from {'; '.join(how)}")
    write_listing(out / LISTING, rows)
    write_text(out / "classes.yaml", dump_yaml(classes.file))
    write_text(out / "data.yaml", _data_file(root, out, classes, facts, notes))
    names = tuple(entry["name"] for entry in classes.file["classes"])
    return Description(out / "data.yaml", {name: n for name, n in counts.items() if n}, names, tuple(notes))


def _masked(
    root: Path, out: Path, options: InitOptions, notes: list[str]
) -> tuple[tuple[FoundPair, ...], FoundClasses]:
    found = pair_masks(root, options.images, options.masks)
    if not found.pairs:
        alone = relative_names(root, (found.images_alone[:1] + found.masks_alone[:1]))
        raise UserError(
            f"{root}: {len(found.images_alone)} images and {len(found.masks_alone)} masks, but no two belong together "
            f"by their names ({alone}); choose by --images PATTERN and --masks PATTERN"
        )
    for paths, what in ((found.images_alone, "images without a mask"), (found.masks_alone, "masks without an image")):
        if paths:
            notes.append(f"{len(paths)} {what} are left out: {relative_names(root, paths)}")
    sample = [found.pairs[i].mask for i in evenly_spaced(len(found.pairs), min(len(found.pairs), _MASKS_READ))]
    content = look_at_masks(sample)
    own = root / "classes.yaml"
    if options.classes is None and own.is_file():
        return found.pairs, FoundClasses(read_yaml(own, "classes file"), None, (f"classes from {own.name}",))
    table = options.classes or find_table(root)
    listed: tuple[ListedClass, ...] = () if table is None else read_table(table)
    return found.pairs, classes_of_masks(content, listed, "" if table is None else table.name)


def _annotated(
    root: Path,
    out: Path,
    annotations: Annotations,
    options: InitOptions,
    notes: list[str],
    progress: Progress,
) -> tuple[tuple[FoundPair, ...], FoundClasses]:
    """Draw the masks of annotations in polygons."""
    notes.append(f"{annotations.source} annotations of {len(annotations.images)} images were drawn as masks")
    notes += [f"{count} {what} are left out" for what, count in annotations.skipped.items() if count]
    names = list(annotations.names)
    own = next((name for name in names if name.lower() in BACKGROUND_NAMES), None)
    outside = IGNORE_LABEL
    if options.outside == "background":
        background = own or "background"
        names = [background, *(name for name in names if name != background)]
        outside = 0
        notes.append(f"pixels outside of all polygons are {background!r}; --outside ignore leaves them out")
    if not annotations.images:
        raise UserError(f"{root}: {annotations.source} annotations, but none of their images is there")
    indices = {name: index for index, name in enumerate(names)}
    progress.begin("drawing masks", len(annotations.images))
    pairs = []
    for item in annotations.images:
        place = Path(os.path.relpath(item.image, root))
        mask = out / "masks" / Path(*(part for part in place.parts if part != "..")).with_suffix(".png")
        _save_mask(mask, draw_mask(item, indices, outside))
        pairs.append(FoundPair(item.image, mask, split_of(root, item.image) if root in item.image.parents else None))
        progress.advance()
    file: dict[str, Any] = {"classes": [{"name": name} for name in names], "ignore": IGNORE_LABEL}
    return tuple(pairs), FoundClasses(file, "indices", (f"classes from {annotations.source}",))


def _save_mask(path: Path, mask: npt.NDArray[np.uint8]) -> None:
    write_atomically(path, lambda stream: Image.fromarray(mask).save(stream, format="PNG"))


def _place(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _data_file(root: Path, out: Path, classes: FoundClasses, facts: ImageFacts, notes: Sequence[str]) -> str:
    values: Mapping[str, Any] = {
        "dataset": "files",
        "root": _place(root, out),
        "listing": LISTING,
        "classes": "classes.yaml",
        **({} if classes.masks is None else {"masks": classes.masks}),
        **facts.settings,
    }
    comments = "".join(f"# {' '.join(note.split())}\n" for note in notes)
    return f"# Written by dnas data init; dnas data check shows what is in it.\n{comments}{dump_yaml(values)}"
