"""The camera of a scene, and the classes by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

FAR = 140.0
"""Depth in metres at which the street ends and the skyline begins."""


class Kind(IntEnum):
    """The classes, with their indices in CamVid."""

    SKY = 0
    BUILDING = 1
    POLE = 2
    ROAD = 3
    PAVEMENT = 4
    TREE = 5
    SIGN = 6
    FENCE = 7
    CAR = 8
    PEDESTRIAN = 9
    BICYCLIST = 10


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along a street, which may bend.

    Lengths are metres: ``lateral`` to the right of the camera, ``elevation`` above the ground, ``depth`` ahead. The
    middle of the street at depth z is shifted by ``bend * z**2``. Pixels: ``centre`` and ``horizon`` are the column and
    the row of the vanishing point, ``focal`` the focal length.
    """

    focal: float
    centre: float
    horizon: float
    eye: float
    bend: float

    def project(self, lateral: float, elevation: float, depth: float) -> tuple[float, float]:
        """Column and row of a point; ``depth`` must be positive."""
        column = self.centre + self.focal * (lateral / depth + self.bend * depth)
        return column, self.horizon + self.focal * (self.eye - elevation) / depth

    def zoomed(self, factor: float) -> Camera:
        """The same camera with ``factor`` times as many pixels a side."""
        return Camera(self.focal * factor, self.centre * factor, self.horizon * factor, self.eye, self.bend)
