"""Pairs of image and mask files, checked before any file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dnas.data.decode import IMAGE_SUFFIXES
from dnas.errors import UserError


@dataclass(frozen=True)
class Pair:
    """The files of one item."""

    image: Path
    mask: Path


def require_folder(path: Path, layout: str) -> Path:
    """``path`` if it is a folder, else :class:`UserError` with the expected ``layout`` and the folder's content."""
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path}: is a file, expected a folder; {layout}")
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    found = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))[:8]
    raise UserError(f"{path}: no such folder; {layout}; {parent} contains {', '.join(found) or 'nothing'}")


def pair_by_stem(images: Path, masks: Path, mask_stem: Callable[[str], str | None] = str) -> tuple[Pair, ...]:
    """Pairs of the image files of two folders with equal stems, sorted by name.

    ``mask_stem`` maps a mask's stem to that of its image, or to None for files that are not masks. An image without a
    mask, a mask without an image, two files with the same stem, and folders without images raise :class:`UserError`.
    """
    image_files = _by_stem(images, lambda stem: stem)
    mask_files = _by_stem(masks, mask_stem)
    if not image_files:
        raise UserError(f"{images}: contains no images, expected files such as NAME.jpg or NAME.png")
    _check_paired(image_files, mask_files, "image without a mask", masks)
    _check_paired(mask_files, image_files, "mask without an image", images)
    return tuple(Pair(image_files[stem], mask_files[stem]) for stem in sorted(image_files))


def pair_files(pairs: Iterable[Pair], where: Path) -> tuple[Pair, ...]:
    """The given pairs, sorted by image; an empty list or a missing mask raises :class:`UserError`."""
    ordered = tuple(sorted(pairs, key=lambda pair: pair.image))
    if not ordered:
        raise UserError(f"{where}: contains no images")
    missing = [pair for pair in ordered if not pair.mask.is_file()]
    if missing:
        raise UserError(f"{missing[0].image}: image without a mask{_more(missing)}; expected {missing[0].mask}")
    return ordered


def _by_stem(folder: Path, stem_of: Callable[[str], str | None]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = stem_of(path.stem)
        if stem is None or path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if stem in files:
            raise UserError(f"{path}: same name as {files[stem].name}, expected one file for each name; remove one")
        files[stem] = path
    return files


def _check_paired(files: dict[str, Path], others: dict[str, Path], problem: str, where: Path) -> None:
    unpaired = [path for stem, path in files.items() if stem not in others]
    if unpaired:
        first, more = unpaired[0], _more(unpaired)
        raise UserError(f"{first}: {problem}{more}; expected the same name in {where}, add or remove it")


def _more(problems: list[Path] | list[Pair]) -> str:
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
