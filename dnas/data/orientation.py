"""Images and masks of different EXIF orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from dnas.data.stored import turned
from dnas.errors import UserError

Orientation = Literal["turned", "stored"]
"""Whether image and mask fit each other as viewers show them, or as they are stored."""


def align_mask(
    mask: npt.NDArray[Any],
    orientations: tuple[int, int],
    size: tuple[int, int],
    paths: tuple[Path, Path],
    wanted: Orientation | None = None,
) -> npt.NDArray[Any]:
    """A mask (H, W, ...) as stored, turned to fit its image of ``size`` (height, width), which is turned already.

    ``orientations`` are the EXIF orientations (1 to 8) of image and mask, ``paths`` their files. Where they differ,
    the mask may belong to the image as displayed or as stored; unless ``wanted`` says which, or only the first has the
    right size, this is a :class:`UserError`.
    """
    of_image, of_mask = orientations
    as_shown = turned(mask, of_mask)
    if of_image == of_mask or wanted == "turned":
        return as_shown
    as_stored = turned(mask, of_image)
    if wanted == "stored":
        return as_stored
    fits_shown, fits_stored = as_shown.shape[:2] == size, as_stored.shape[:2] == size
    if not fits_stored:
        return as_shown
    image, path = paths
    differing = f"{image.name} has EXIF orientation {of_image}, its mask {of_mask}"
    if fits_shown:
        raise UserError(
            f"{path}: {differing}, so that the mask may fit the image as displayed or as stored; "
            "set orientation: turned or orientation: stored in the data to say which holds"
        )
    raise UserError(
        f"{path}: {differing}, and the mask has the size of the image as stored: the mask was not turned with it; "
        "set orientation: stored in the data, which turns it, or turn the file"
    )
