"""Drawing objects on image and mask at once, with colours faded by the haze."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dnas.data.streets.camera import Camera, Kind
from dnas.data.streets.layout import RGB, Floats, Light

Points = Sequence[tuple[float, float]]
DETAIL = 2
"""Supersampling factor of the canvas per axis, for anti-aliased edges."""


def shaded(colour: RGB, factor: float) -> RGB:
    """``colour`` scaled in brightness by ``factor``."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


class Canvas:
    """An image and a mask at ``DETAIL`` times the resolution, on which objects are drawn from far to near.

    Shapes are given in pixels of the canvas (see ``camera``); each has one ``kind`` and one ``depth``.
    """

    def __init__(self, image: Floats, mask: npt.NDArray[np.uint8], light: Light, camera: Camera) -> None:
        height, width = mask.shape
        size = (width * DETAIL, height * DETAIL)
        pixels = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        self._image = pixels.resize(size, Image.Resampling.NEAREST)
        self._mask = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        self._on_image, self._on_mask = ImageDraw.Draw(self._image), ImageDraw.Draw(self._mask)
        self._light = light
        self.camera = camera.zoomed(DETAIL)

    def polygon(self, points: Points, colour: RGB, depth: float, kind: Kind | None) -> None:
        """A filled polygon; with ``kind`` None it changes only the image."""
        self._on_image.polygon(points, fill=self._seen(colour, depth))
        if kind is not None:
            self._on_mask.polygon(points, fill=int(kind))

    def ellipse(
        self,
        middle: tuple[float, float],
        radii: tuple[float, float],
        colour: RGB,
        depth: float,
        kind: Kind,
    ) -> None:
        """A filled ellipse."""
        x, y = middle
        box = (x - radii[0], y - radii[1], x + radii[0], y + radii[1])
        self._on_image.ellipse(box, fill=self._seen(colour, depth))
        self._on_mask.ellipse(box, fill=int(kind))

    def line(self, points: Points, width: float, colour: RGB, depth: float, kind: Kind) -> None:
        """A line of ``width`` pixels, but at least one pixel of the final image, so that thin poles have no gaps."""
        wide = max(DETAIL, round(width))
        self._on_image.line(points, fill=self._seen(colour, depth), width=wide)
        self._on_mask.line(points, fill=int(kind), width=wide)

    def finish(self) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """Image float32 (H, W, 3) in 0..255 and mask uint8 (H, W), at the final size."""
        image = np.asarray(self._image.reduce(DETAIL), np.float32)
        return image, np.asarray(self._mask)[DETAIL // 2 :: DETAIL, DETAIL // 2 :: DETAIL]

    def _seen(self, colour: RGB, depth: float) -> tuple[int, int, int]:
        share, haze = self._light.faded(depth), self._light.haze
        return (
            min(255, max(0, int(colour[0] + (haze[0] - colour[0]) * share))),
            min(255, max(0, int(colour[1] + (haze[1] - colour[1]) * share))),
            min(255, max(0, int(colour[2] + (haze[2] - colour[2]) * share))),
        )
