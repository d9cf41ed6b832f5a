"""Annotations in polygons, and drawing them as masks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dnas.data.decode import read_size
from dnas.data.discovery.run_lengths import RunLengths
from dnas.data.stored import read_stored_size
from dnas.errors import UserError

_FARTHEST = 1e6
"""Pixels from the corner of the image; annotations may reach a little beyond it."""

BACKGROUND_NAMES = ("background", "_background_", "__background__", "bg")


@dataclass(frozen=True)
class Shape:
    """A region of one class: ``points`` (x, y) in pixels, or the ``runs`` of a mask at ``corner`` (left, top).

    Raises :class:`UserError` for a name that is no text, and for points that are no numbers of a picture's size.
    """

    name: str
    points: tuple[tuple[float, float], ...] = ()
    runs: RunLengths | None = None
    corner: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UserError(f"a region of the class {str(self.name)[:60]!r}, expected a name")
        values = [*itertools.chain.from_iterable(self.points), *self.corner]
        if not all(isinstance(value, int | float) and abs(value) < _FARTHEST for value in values):
            raise UserError(f"a region of {self.name!r} with coordinates that are no pixels: {str(self.points)[:60]}")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with shapes in the order in which they cover each other; ``size``: (height, width) it was annotated at.

    A size of None is not known.
    """

    image: Path
    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Annotations:
    """All annotated images of an export, its classes in their order, and what was left out."""

    source: str
    images: tuple[AnnotatedImage, ...]
    names: tuple[str, ...]
    skipped: Mapping[str, int]


def draw_mask(item: AnnotatedImage, indices: Mapping[str, int], outside: int) -> npt.NDArray[np.uint8]:
    """The shapes as class indices uint8 (H, W) of the image as displayed; ``outside`` where there is no shape.

    Raises :class:`UserError` for an image of another size than the annotations.
    """
    size = read_size(item.image)
    if item.size is not None and item.size != size:
        height, width, orientation = read_stored_size(item.image)
        turned = f"; its EXIF orientation is {orientation}, turn the file" if item.size == (height, width) else ""
        raise UserError(
            f"{item.image}: annotated at {item.size[1]}x{item.size[0]} pixels, but the image is "
            f"{size[1]}x{size[0]}{turned}"
        )
    canvas = Image.new("L", (size[1], size[0]), outside)
    pen = ImageDraw.Draw(canvas)
    for shape in item.shapes:
        if shape.runs is not None:
            bitmap = shape.runs.bitmap(size)
            canvas.paste(indices[shape.name], shape.corner, Image.fromarray(bitmap.astype(np.uint8) * 255))
        elif len(shape.points) >= 3:
            # Rounded, as a share of the width that is a whole pixel may come out a little below it.
            pen.polygon([(round(x, 3), round(y, 3)) for x, y in shape.points], fill=indices[shape.name])
    return np.array(canvas)


def rectangle(left: float, top: float, right: float, bottom: float) -> tuple[tuple[float, float], ...]:
    """The corners of a box."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def find_image(root: Path, beside: Path, name: str, known: Mapping[str, Sequence[Path]]) -> Path | None:
    """The image that an annotation names: beside it, below the root, or the only one of that name; None if missing.

    ``known``: the images below the root by file name.
    """
    plain = name.replace("\\", "/")
    for path in (beside / plain, root / plain):
        if os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises for a name that is too long)
            return path
    found = known.get(Path(plain).name, ())
    return found[0] if len(found) == 1 else None
