"""Masks as run lengths: lists of numbers, and the compressed texts of COCO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dnas.errors import UserError

Counts = npt.NDArray[np.int64]

_MOST_DIGITS = 7
"""Characters of a number in a compressed text, 5 bits each: more than any mask needs."""
_LARGEST_SIDE = 1 << 20


@dataclass(frozen=True, eq=False)
class RunLengths:
    """A mask (height, width) ``size`` as alternating counts of zeros and ones, which begin with zeros.

    by_columns: whether the pixels are counted down the columns, as COCO does, or along the rows. source: for messages.
    The counts are those of the mask's pixels, so :meth:`bitmap` needs no more memory than ``size`` says.
    """

    counts: Counts
    size: tuple[int, int]
    by_columns: bool
    source: str

    def bitmap(self, limit: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """The mask (H, W); raises :class:`UserError` if a side is larger than that of ``limit``, (height, width)."""
        height, width = self.size
        if height > limit[0] or width > limit[1]:
            raise UserError(f"{self.source}: a mask of {width}x{height} pixels, but the image is {limit[1]}x{limit[0]}")
        flat = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        return flat.reshape(width, height).T if self.by_columns else flat.reshape(height, width)


def coco_run_lengths(segmentation: Any, source: str) -> RunLengths:
    """The mask of a COCO annotation: ``{"size": [height, width], "counts": list or compressed text}``.

    Raises :class:`UserError`, prefixed by ``source``, for anything else, before memory for the mask is allocated.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
        raise UserError(f"{source}: size of run lengths: expected [height, width], given {str(size)[:60]}")
    numbers = _from_text(counts, source) if isinstance(counts, str) else _from_list(counts, source)
    return _checked(numbers, (size[0], size[1]), True, source)


def row_run_lengths(counts: Sequence[int], size: tuple[int, int], source: str) -> RunLengths:
    """A mask (height, width) ``size`` whose pixels are counted along the rows; raises as :func:`coco_run_lengths`."""
    return _checked(_from_list(list(counts), source), size, False, source)


def _checked(counts: Counts, size: tuple[int, int], by_columns: bool, source: str) -> RunLengths:
    height, width = size
    if not (1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE):
        raise UserError(f"{source}: run lengths of a mask of {width}x{height} pixels")
    # Each count is at most 2**35, and a file has far fewer than 2**28 of them, so the sum does not overflow.
    if (counts < 0).any() or int(counts.sum()) != height * width:
        raise UserError(f"{source}: run lengths of {int(counts.sum())} pixels, expected {height * width}")
    return RunLengths(counts, size, by_columns, source)


def _from_list(counts: Any, source: str) -> Counts:
    largest = 1 << (5 * _MOST_DIGITS)
    if not isinstance(counts, list) or not all(type(count) is int and 0 <= count < largest for count in counts):
        raise UserError(f"{source}: run lengths: expected a list of numbers of pixels, or the compressed text of COCO")
    return np.array(counts, np.int64)


def _from_text(text: str, source: str) -> Counts:
    """The counts of COCO's compressed text.

    A character is 5 bits of a number, from the lowest on, plus 48; its sixth bit says that the number goes on, and the
    highest of the number's last 5 bits is its sign. From the fourth number on, they are differences to the number two
    before. (Format of the COCO API's masks.)
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        codes = np.array([-1])
    ends = np.flatnonzero((codes & 0x20) == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        raise UserError(f"{source}: a text that is no compressed run lengths")
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > _MOST_DIGITS:
        raise UserError(f"{source}: a run length of {digits.max()} characters, expected at most {_MOST_DIGITS}")
    place = np.arange(len(codes)) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & 0x10, 1 << (5 * digits), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values
