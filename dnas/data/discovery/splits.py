"""Which split each image belongs to: by its folder, by lists of names, or drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dnas.data.discovery.pairing import SPLIT_FOLDERS
from dnas.data.splitting import split_parts
from dnas.errors import UserError
from dnas.files import read_text


def assign_splits(
    root: Path, images: Sequence[Path], by_folder: Sequence[str | None], seed: int, val_share: float
) -> tuple[list[str], list[str]]:
    """The split of each image, and notes on how it was found.

    Lists such as ``train.txt`` and ``val.txt`` come first, then folders. Without validation images, ``val_share`` of
    the training images are drawn by ``seed``. Raises :class:`UserError` where lists and folders contradict each other.
    """
    listed = _listed_splits(root, images)
    found: list[str | None] = []
    for path, of_list, of_folder in zip(images, listed, by_folder, strict=True):
        if of_list and of_folder and of_list != of_folder:
            raise UserError(
                f"{path}: in a folder of {of_folder}, but listed in {of_list}.txt; move it or change the list"
            )
        found.append(of_list or of_folder)
    notes = []
    if any(listed):
        dropped = sum(split is None for split in found)
        notes.append("splits as the lists of names say" + (f"; {dropped} images are in no list" if dropped else ""))
    elif any(found):
        notes.append("splits as the folders say")
        found = [split or "train" for split in found]
    else:
        found = ["train"] * len(found)
    if "val" not in found:
        places = [index for index, split in enumerate(found) if split == "train"]
        if len(places) < 2:
            raise UserError(
                f"{root}: {len(places)} training images with masks, expected at least 2, one for validation"
            )
        _, held_out = split_parts(len(places), seed, val_share)
        for index in held_out:
            found[places[index]] = "val"
        notes.append(f"no validation split: {len(held_out)} of {len(places)} images were drawn by seed {seed}")
    return [split or "" for split in found], notes


def _listed_splits(root: Path, images: Sequence[Path]) -> list[str | None]:
    """The split of each image by lists of names or paths; None for images that are in no list."""
    lists: dict[str, set[str]] = {}
    for path in sorted(root.rglob("*.txt")):
        split = SPLIT_FOLDERS.get(path.stem.lower())
        if split is not None:
            words = (line.split()[0] for line in read_text(path, "list of names").splitlines() if line.strip())
            lists.setdefault(split, set()).update(words)
    if not lists:
        return [None] * len(images)
    names = {split: {variant for word in words for variant in _variants(word)} for split, words in lists.items()}
    found: list[str | None] = []
    for path in images:
        own = {path.stem, path.name, path.relative_to(root).as_posix()}
        matches = [split for split, listed in names.items() if own & listed]
        if len(matches) > 1:
            raise UserError(f"{path}: listed in {matches[0]}.txt and in {matches[1]}.txt; expected one split")
        found.append(matches[0] if matches else None)
    return found if any(found) else [None] * len(images)


def _variants(word: str) -> set[str]:
    path = Path(word)
    return {word.removeprefix("./"), path.name, path.stem}
