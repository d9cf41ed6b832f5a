"""Ray casting per image column: intersections with the houses, fences and vegetation along the street."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnas.data.streets.camera import FAR, Camera
from dnas.data.streets.layout import FENCED, HOUSE, Floats, Frontage, Light, Street

_NONE = 1e6
"""Depth of a missing intersection."""
_GABLE = 14.0
"""Length of a gable, from the street to the back of the house, in metres."""


@dataclass(frozen=True)
class Columns:
    """The intersections of each column's ray; every array is (W,) or (W, 3).

    line: depth of the frontage. wall: depth of the house there or behind a gap. along: position along that wall, in
    metres. top, colour, pane, bay, storey: of the house; shade: brightness of its wall. open: whether the frontage is a
    fence or vegetation, with height green_top and colour green; fence: height of the fence, 0 without one.
    """

    line: Floats
    wall: Floats
    along: Floats
    top: Floats
    colour: Floats
    pane: Floats
    bay: Floats
    storey: Floats
    shade: Floats
    open: npt.NDArray[np.bool_]
    green_top: Floats
    green: Floats
    fence: Floats
    fence_colour: Floats


def follow_rays(street: Street, light: Light, camera: Camera, slope: Floats) -> Columns:
    """Cast rays that go ``slope`` (W,) metres to the right per metre of depth."""
    left = _one_side(street.left, -street.front_left, -1, slope, light, camera)
    right = _one_side(street.right, street.front_right, 1, slope, light, camera)
    return _nearer(left, right)


def _one_side(frontage: Frontage, distance: float, side: int, slope: Floats, light: Light, camera: Camera) -> Columns:
    """Intersect each column's ray with the frontage at ``distance`` on ``side`` (-1 left, 1 right)."""
    outward, bend = side * slope, side * camera.bend
    line = _crossing(outward, bend, distance)
    last = len(frontage.ends) - 1
    stretch = np.minimum(np.searchsorted(frontage.ends, line), last)
    house = frontage.use == HOUSE
    # Through a gap the ray can hit the gable at the start of the next house.
    following = np.full(last + 2, last + 1)
    for index in range(last, -1, -1):
        following[index] = index if house[index] else following[index + 1]
    behind = following[stretch]
    start = np.append(np.append(0, frontage.ends)[:-1], _NONE).astype(np.float32)[behind]
    beside = outward * start - bend * start**2 - distance
    gable = ~house[stretch] & (behind <= last) & (beside >= 0) & (beside <= _GABLE) & (line < FAR)
    seen = np.where(gable, np.minimum(behind, last), stretch)
    wall = np.where(gable, start, np.where(house[stretch], line, _NONE))
    sunny = 0.92 if light.sun == 0 else (1.08 if light.sun == -side else 0.62)
    bare = ~house[stretch] & (line < FAR)
    # Wavy tree tops along the street, which flatten with the distance.
    wavy = 1 + (0.2 * np.sin(1.1 * line) + 0.08 * np.sin(2.9 * line + 1)) * np.clip(30 / line, 0, 1)
    width = len(slope)
    return Columns(
        line=line,
        wall=np.where(wall < FAR, wall, _NONE).astype(np.float32),
        along=np.where(gable, beside, line).astype(np.float32),
        top=frontage.height[seen],
        colour=frontage.colour[seen],
        pane=frontage.pane[seen],
        bay=frontage.bay[seen],
        storey=frontage.storey[seen],
        shade=np.where(gable, 0.8, sunny).astype(np.float32),
        open=bare,
        green_top=np.maximum(frontage.height[stretch] * wavy, 2.2).astype(np.float32),
        green=frontage.colour[stretch] * np.float32(0.5 + 0.5 * sunny),
        fence=np.where(bare & (frontage.use[stretch] == FENCED), frontage.fence, 0).astype(np.float32),
        fence_colour=np.broadcast_to(np.asarray(frontage.fence_colour, np.float32) * sunny, (width, 3)),
    )


def _crossing(outward: Floats, bend: float, distance: float) -> Floats:
    """The smaller depth z with ``outward * z = distance + bend * z**2``; ``_NONE`` if beyond ``FAR``."""
    inner = outward**2 - 4 * bend * distance
    denominator = outward + np.sqrt(np.maximum(inner, 0))
    meets = (inner >= 0) & (denominator > 2 * distance / FAR)
    return np.where(meets, 2 * distance / np.where(meets, denominator, 1), _NONE).astype(np.float32)


def _nearer(left: Columns, right: Columns) -> Columns:
    """For every column, the side that its ray hits first."""
    first = left.line <= right.line
    chosen = {
        name: np.where(first if value.ndim == 1 else first[:, None], value, getattr(right, name))
        for name, value in vars(left).items()
    }
    return Columns(**chosen)
