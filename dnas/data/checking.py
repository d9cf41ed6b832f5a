"""Reading the files of a dataset to say what is in them, what is wrong and what is doubtful."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from dnas.data.dataset import SegmentationDataset
from dnas.data.labels import IGNORE_LABEL
from dnas.errors import UserError

_MOSTLY = 0.9
"""Share of ignored pixels above which a split is doubtful."""
_FAR_APART = 3.0
"""Factor between the sizes of images above which they are doubtful."""


@dataclass(frozen=True)
class FileFacts:
    """What one item holds: size of the file (height, width), pixels by label, a hash of the image; or the problem."""

    name: str
    size: tuple[int, int] = (0, 0)
    pixels: tuple[int, ...] = ()
    image_hash: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class SplitFacts:
    """What the looked-at items of a split hold.

    pixels, images: of each class, those with its label and those that show it. ignored: pixels without a class.
    sizes: number of images by (height, width) of the file. skipped: what lies beside the files and is not read.
    problems: a line for each item that cannot be used.
    """

    split: str
    total: int
    looked_at: int
    names: tuple[str, ...]
    pixels: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int
    sizes: dict[tuple[int, int], int]
    problems: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    is_255_stated: bool = True
    hashes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def usable(self) -> int:
        """Number of the looked-at items without a problem."""
        return self.looked_at - len(self.problems)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each class in the labelled pixels."""
        total = max(1, sum(self.pixels))
        return tuple(count / total for count in self.pixels)


def look_at(
    dataset: SegmentationDataset,
    indices: Sequence[int] | None = None,
    advance: Callable[[], object] | None = None,
    threads: int | None = None,
) -> SplitFacts:
    """Read the items ``indices``, by default all, with ``threads`` threads, by default one for each core.

    ``advance`` is called after each item.
    """
    chosen = range(len(dataset)) if indices is None else indices

    def look(index: int) -> FileFacts:
        found = look_at_item(dataset, index)
        if advance is not None:
            advance()
        return found

    # Reading a file changes the filters of warnings for a moment, which threads would mix up.
    with warnings.catch_warnings(), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        found = list(pool.map(look, chosen))
    sound = [item for item in found if item.problem is None]
    classes = dataset.labels.num_classes
    counts = torch.tensor([item.pixels for item in sound], dtype=torch.int64).reshape(-1, 256)
    return SplitFacts(
        split=dataset.split,
        total=len(dataset),
        looked_at=len(found),
        names=dataset.labels.names,
        pixels=tuple(counts.sum(0)[:classes].tolist()),
        images=tuple((counts > 0).sum(0)[:classes].tolist()),
        ignored=int(counts.sum(0)[IGNORE_LABEL]),
        sizes=dict(Counter(item.size for item in sound).most_common()),
        problems=tuple(item.problem for item in found if item.problem is not None),
        skipped=dataset.skipped(),
        is_255_stated=dataset.is_255_stated,
        hashes={item.image_hash: item.name for item in sound},
    )


def look_at_item(dataset: SegmentationDataset, index: int) -> FileFacts:
    """Read one item."""
    name = dataset.file_name(index)
    try:
        image, mask = dataset[index]
        size = dataset.native_size(index)
    except UserError as error:
        return FileFacts(name, problem=str(error))
    pixels = torch.bincount(mask.as_subclass(torch.Tensor).flatten(), minlength=256).tolist()
    digest = hashlib.blake2b(image.as_subclass(torch.Tensor).contiguous().numpy().tobytes(), digest_size=12)
    return FileFacts(name, size, tuple(pixels), digest.hexdigest())


def errors_of(split: SplitFacts) -> list[str]:
    """What makes a split unusable, most serious first: broken files, nothing labelled, a class read as ignored."""
    found = list(split.problems)
    if split.problems:
        return found
    if split.looked_at and not sum(split.pixels):
        found.append(
            f"{split.split}: none of the pixels of {split.looked_at} masks has a class, all are ignored; state the "
            "values of the classes in the classes file"
        )
    elif split.ignored and not split.is_255_stated and sum(count > 0 for count in split.pixels) == 1:
        only = next(name for name, count in zip(split.names, split.pixels, strict=True) if count)
        found.append(
            f"{split.split}: {split.looked_at} masks hold nothing but {only!r} and the value 255, which may be a class "
            "or ignored pixels; write into the classes file ignore: 255, or values: [255] at the class"
        )
    return found


def warnings_of(splits: Sequence[SplitFacts]) -> list[str]:
    """What is doubtful about the splits, the first of which is trained on."""
    found: list[str] = []
    for split in splits:
        found += _doubts(split)
    train = splits[0]
    for other in splits[1:]:
        unseen = [
            name
            for name, ours, theirs in zip(train.names, train.pixels, other.pixels, strict=True)
            if theirs > ours == 0
        ]
        if unseen:
            found.append(f"{other.split} shows {_listed(unseen)}, which the masks of {train.split} never do")
        shared = sorted(train.hashes.keys() & other.hashes.keys(), key=lambda digest: other.hashes[digest])
        if shared:
            first = shared[0]
            found.append(
                f"{len(shared)} images are in {train.split} and in {other.split}, such as {train.hashes[first]} and "
                f"{other.hashes[first]}: scores on {other.split} will be too good"
            )
    return found


def _doubts(split: SplitFacts) -> list[str]:
    found = [f"{split.split}: {text}" for text in split.skipped]
    absent = [name for name, count in zip(split.names, split.pixels, strict=True) if not count]
    if absent and sum(split.pixels):
        found.append(f"{split.split}: no pixel of {split.usable} masks is {_listed(absent)}")
    labelled = sum(split.pixels)
    if labelled and split.ignored > _MOSTLY * (labelled + split.ignored):
        share = 100 * split.ignored / (labelled + split.ignored)
        found.append(f"{split.split}: {share:.1f} % of the pixels are ignored")
    areas = sorted(height * width for height, width in split.sizes)
    if areas and areas[-1] > _FAR_APART * areas[0]:
        smallest, largest = (f"{width}x{height}" for height, width in _extremes(split.sizes))
        found.append(
            f"{split.split}: images from {smallest} to {largest} pixels; set size, or a crop, to train on them"
        )
    return found


def _extremes(sizes: dict[tuple[int, int], int]) -> tuple[tuple[int, int], tuple[int, int]]:
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return ordered[0], ordered[-1]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
