"""Pairs of image and mask files, checked before any file is read."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dnas.data.decode import IMAGE_SUFFIXES
from dnas.errors import UserError

_INIT = "dnas data init DIR writes data for folders of any layout"


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
        seen = describe_others(images)
        raise UserError(
            f"{images}: contains no images, expected files such as NAME.jpg or NAME.png"
            + (f"; it contains {seen}, which are not read; {_INIT}" if seen else "")
        )
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


def describe_others(folder: Path) -> str:
    """What a folder contains besides image files, in words: subfolders with images, files of other kinds; or ""."""
    suffixes: Counter[str] = Counter()
    nested: Counter[str] = Counter()
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts) or path.is_dir():
            continue
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        if len(place.parts) > 1:
            nested.update([place.parts[0]] if is_image else [])
        elif not is_image:
            suffixes.update([path.suffix or "without a suffix"])
    found = []
    if nested:
        names = ", ".join(sorted(nested)[:4]) + (", ..." if len(nested) > 4 else "")
        found.append(f"{nested.total()} images in subfolders ({names})")
    found += [f"{count} {suffix} files" for suffix, count in suffixes.most_common(4)]
    return ", ".join(found)


def _check_paired(files: dict[str, Path], others: dict[str, Path], problem: str, where: Path) -> None:
    unpaired = [path for stem, path in files.items() if stem not in others]
    if not unpaired:
        return
    first, more = unpaired[0], _more(unpaired)
    alike = sorted(path.name for path in where.rglob(f"*{glob.escape(first.stem)}*") if path.is_file())[:2]
    if alike:
        hint = f"; it contains {' and '.join(alike)}, whose name or kind differs: if they belong together, {_INIT}"
    else:
        seen = describe_others(where)
        hint = f"; it contains {seen}, which are not read: {_INIT}" if seen else ""
    raise UserError(f"{first}: {problem}{more}; expected the same name in {where}, add or remove it{hint}")


def _more(problems: list[Path] | list[Pair]) -> str:
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
