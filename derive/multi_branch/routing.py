"""Routing of a drawing's arrows: horizontal and vertical segments that avoid the boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.path import Path as CurvePath

Point = tuple[float, float]
Route = tuple[Point, ...]

_CORNER = 0.12
_CLEARANCE = 0.04
_DETOUR = 0.5
_LEVEL = 0.02


@dataclass(frozen=True)
class Box:
    """The box of a node: centre, width and height in drawing units."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        """The x of the left side."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """The x of the right side."""
        return self.x + self.width / 2

    def side_facing(self, y: float) -> float:
        """The y of the upper or lower side, whichever faces ``y``."""
        return self.y + math.copysign(self.height / 2, y - self.y)


def best_route(start: Box, end: Box, boxes: Iterable[Box]) -> Route:
    """The route from ``start`` to ``end`` that crosses the fewest of ``boxes``; ties: the simplest."""
    others = [box for box in boxes if box not in (start, end)]
    routes = list(_routes(start, end))
    return min(routes, key=lambda route: sum(_crosses(route, box) for box in others))


def _routes(start: Box, end: Box) -> Iterator[Route]:
    """Possible routes, the preferred first."""
    rise = end.y - start.y
    if end.left <= start.right:
        yield (start.x, start.side_facing(end.y)), (start.x, end.side_facing(start.y))
        return
    if abs(rise) < _LEVEL:
        yield (start.right, start.y), (end.left, start.y)
    else:
        vertical_first = ((start.x, start.side_facing(end.y)), (start.x, end.y), (end.left, end.y))
        horizontal_first = ((start.right, start.y), (end.x, start.y), (end.x, end.side_facing(start.y)))
        gap = end.left - 0.13
        step = ((start.right, start.y), (gap, start.y), (gap, end.y), (end.left, end.y))
        bent = [vertical_first, horizontal_first] if rise < 0 else [horizontal_first, vertical_first]
        yield from [step, *bent] if abs(rise) < 0.6 else [*bent, step]
    for level in (start.y + _DETOUR, start.y - _DETOUR, end.y + _DETOUR, end.y - _DETOUR):
        yield (
            (start.x, start.side_facing(level)),
            (start.x, level),
            (end.x, level),
            (end.x, end.side_facing(level)),
        )


def _crosses(route: Route, box: Box) -> bool:
    half_width, half_height = box.width / 2 + _CLEARANCE, box.height / 2 + _CLEARANCE
    return any(
        min(x0, x1) < box.x + half_width
        and max(x0, x1) > box.x - half_width
        and min(y0, y1) < box.y + half_height
        and max(y0, y1) > box.y - half_height
        for (x0, y0), (x1, y1) in pairwise(route)
    )


def rounded_path(route: Route) -> CurvePath:
    """The route as a curve with rounded corners."""
    points = [np.array(point) for point in route]
    vertices, codes = [points[0]], [CurvePath.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        arriving, leaving = corner - before, after - corner
        radius = min(_CORNER, float(np.hypot(*arriving)) / 2, float(np.hypot(*leaving)) / 2)
        vertices += [corner - radius * _unit(arriving), corner, corner + radius * _unit(leaving)]
        codes += [CurvePath.LINETO, CurvePath.CURVE3, CurvePath.CURVE3]
    return CurvePath([*vertices, points[-1]], [*codes, CurvePath.LINETO])


def _unit(
    vector: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    length = float(np.hypot(*vector))
    return vector / length if length else vector
