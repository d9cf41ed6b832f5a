"""The camera of a scene, and the class indices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

FAR = 140.0
"""Depth in metres at which the street ends and the skyline begins."""


class Kind(IntEnum):
    """The CamVid classes with their indices."""

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

    Coordinates are in metres: ``lateral`` to the right of the camera, ``elevation`` above the ground, ``depth`` ahead.
    ``eye`` is the elevation of the camera. The middle of the street at depth z is shifted by ``bend * z**2``. In
    pixels, ``centre`` and ``horizon`` are column and row of the vanishing point, and ``focal`` is the focal length.
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
        """The same camera with ``factor`` times the resolution per axis."""
        return Camera(self.focal * factor, self.centre * factor, self.horizon * factor, self.eye, self.bend)
