"""Which files of a folder are images, which are masks, and which belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dnas.data.decode import IMAGE_SUFFIXES
from dnas.errors import UserError

_IMAGE_WORDS = (
    "image,images,img,imgs,jpegimages,jpeg,jpegs,photo,photos,picture,pictures,rgb,input,inputs,leftimg8bit,"
    "frames,original,originals,sat"
)
IMAGE_FOLDERS = frozenset(_IMAGE_WORDS.split(","))
_MASK_WORDS = (
    "annotation,annotations,annot,gt,groundtruth,ground_truth,ground-truth,label,labels,mask,masks,seg,"
    "segmentation,segmentations,segmentationclass,segmentationclassraw,target,targets,labelids,lbl,anno,annos,"
    "gtfine,trimaps"
)
MASK_FOLDERS = frozenset(_MASK_WORDS.split(","))
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MASK_ENDING = re.compile(
    r"[._ -]+(mask|masks|label|labels|labelids|gt|seg|segmentation|annotation|annot|anno|groundtruth|ground_truth|"
    r"target|train_id|labeltrainids)$",
    re.IGNORECASE,
)
_LETTER_ENDING = re.compile(r"_(l|m|p)$", re.IGNORECASE)
"""Endings of masks in folders of masks, as in CamVid; elsewhere they may mean left and so on."""
_IMAGE_ENDING = re.compile(r"[._ -]+(image|img|rgb|sat|photo|leftimg8bit|input)$", re.IGNORECASE)
_JOINED = re.compile(r"annot$|_?(masks?|labels?|annotations?|gt)$", re.IGNORECASE)
_JOINED_IMAGES = re.compile(r"_?(images?|imgs?)$", re.IGNORECASE)
"""Endings of folders such as ``trainannot`` or ``train_masks``."""


@dataclass(frozen=True)
class FoundPair:
    """An image, its mask, and the split its folders name, if they do."""

    image: Path
    mask: Path
    split: str | None


@dataclass(frozen=True)
class FoundFiles:
    """The pairs of a folder, and what has no partner."""

    pairs: tuple[FoundPair, ...]
    images_alone: tuple[Path, ...]
    masks_alone: tuple[Path, ...]


def image_files(root: Path) -> list[Path]:
    """All image files below ``root`` but hidden ones, sorted."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def pair_masks(root: Path, images: str | None = None, masks: str | None = None) -> FoundFiles:
    """Pair images and masks below ``root`` by their names, folders and endings.

    images, masks: patterns below ``root`` such as ``photos/*.jpg``, where names do not tell which files are masks.

    Raises :class:`UserError` where no files are masks by their names, and for images with several masks.
    """
    image_paths, mask_paths = _told_apart(root, images, masks)
    named = frozenset(part.lower() for pattern in (images, masks) if pattern for part in Path(pattern).parts[:-1])
    by_key: dict[str, list[Path]] = {}
    for path in mask_paths:
        by_key.setdefault(_key(root, path, True, named), []).append(path)
    used: set[Path] = set()
    pairs, alone = [], []
    for path in image_paths:
        found = by_key.get(_key(root, path, False, named), [])
        if len(found) > 1:
            names = " and ".join(other.relative_to(root).as_posix() for other in found[:3])
            raise UserError(
                f"{path}: {names} may be its mask; choose by --masks PATTERN, such as --masks 'masks/*.png'"
            )
        if found:
            pairs.append(FoundPair(path, found[0], split_of(root, path) or split_of(root, found[0])))
            used.add(found[0])
        else:
            alone.append(path)
    return FoundFiles(tuple(pairs), tuple(alone), tuple(path for path in mask_paths if path not in used))


def split_of(root: Path, path: Path) -> str | None:
    """The split that the folders of a file name: the last that is one."""
    for part in reversed(path.relative_to(root).parts[:-1]):
        for word in (part, _JOINED.sub("", part), *re.split(r"[_ -]", part)):
            if word.lower() in SPLIT_FOLDERS:
                return SPLIT_FOLDERS[word.lower()]
    return None


def _told_apart(root: Path, images: str | None, masks: str | None) -> tuple[list[Path], list[Path]]:
    every = image_files(root)
    if not every:
        raise UserError(f"{root}: contains no image files; expected files such as NAME.jpg, also in subfolders")
    mask_paths = _matching(root, masks) if masks else [path for path in every if _is_mask(root, path)]
    chosen = set(mask_paths)
    image_paths = _matching(root, images) if images else [path for path in every if path not in chosen]
    if not mask_paths and not masks:
        folders = sorted({path.parent.relative_to(root).as_posix() for path in every})[:6]
        raise UserError(
            f"{root}: contains {len(every)} images (in {', '.join(folders) or 'no folder'}), but none that is a mask "
            "by its folder (masks, labels, ...) or ending (_mask, ...), and no annotations in polygons; choose by "
            "--images PATTERN and --masks PATTERN"
        )
    return image_paths, mask_paths


def _matching(root: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in root.glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{root}: no image file matches {pattern!r}; give a pattern below it, such as 'photos/*.jpg'")
    return found


def _is_mask(root: Path, path: Path) -> bool:
    parts = path.relative_to(root).parts[:-1]
    if any(part.lower() in MASK_FOLDERS or _ends_like_masks(part) for part in parts):
        return True
    if any(part.lower() in IMAGE_FOLDERS for part in parts):
        return False
    return _MASK_ENDING.search(path.stem) is not None


def _ends_like_masks(part: str) -> bool:
    shortened = _JOINED.sub("", part)
    return shortened != part and shortened.lower() in {*SPLIT_FOLDERS, *IMAGE_FOLDERS}


def _shortened(part: str) -> str:
    """A folder such as ``train_masks`` or ``train_images`` without its ending."""
    without_image = _JOINED_IMAGES.sub("", part)
    if without_image.lower() in SPLIT_FOLDERS:
        return without_image
    return _JOINED.sub("", part) if _ends_like_masks(part) else part


def _key(root: Path, path: Path, is_mask: bool, named: frozenset[str]) -> str:
    """What image and mask have in common: the stem, and the folders without those for images and masks.

    ``named``: further folders that stand for images or masks.
    """
    place = path.relative_to(root)
    folders = [_shortened(part).lower() for part in place.parts[:-1]]
    kept = [part for part in folders if part not in IMAGE_FOLDERS | MASK_FOLDERS | named]
    stem = _MASK_ENDING.sub("", place.stem)
    if stem == place.stem and is_mask:
        stem = _LETTER_ENDING.sub("", stem)
    stem = _IMAGE_ENDING.sub("", stem) or place.stem
    return str(PurePosixPath(*kept, stem.lower()))


def by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Paths by their stem in lower case."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.stem.lower(), []).append(path)
    return found


def relative_names(root: Path, paths: Sequence[Path]) -> str:
    """A few paths below ``root``, for messages."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(path.relative_to(root).as_posix() for path in paths[:3]) + more
