"""Drawing of cars: a box for the body, a tapered one for the cabin, and details such as wheels and lamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnas.data.streets.camera import Kind
from dnas.data.streets.canvas import Canvas, shaded
from dnas.data.streets.layout import RGB, Light
from dnas.data.streets.things import Thing

_DARK: RGB = (26, 26, 30)
_GLASS: RGB = (44, 52, 60)
_FLOOR = 0.24
_TAPER = 0.14
"""Inset of the roof from the body on each side, in metres."""


@dataclass(frozen=True)
class _Body:
    """Dimensions of a car in metres: lateral extent, depths, and the heights of waist and roof."""

    left: float
    right: float
    near: float
    far: float
    waist: float
    roof: float
    cabin_near: float
    cabin_far: float

    @property
    def flank(self) -> float:
        """Lateral position of the visible side."""
        return self.left if self.left + self.right > 0 else self.right


def draw_car(canvas: Canvas, thing: Thing, light: Light, paint: RGB, rng: np.random.Generator) -> None:
    """Draw a car whose near end is at the position of ``thing``, back to front."""
    body = _sample_body(thing, rng)
    # The visible side faces the middle of the view; it is bright if the sun is on that side.
    lit = 0.9 if light.sun == 0 else (1.12 if (light.sun < 0) == (thing.lateral > 0) else 0.66)
    _level(canvas, body, 0, (30, 30, 33), None)
    _side(canvas, body, shaded(paint, lit), shaded(_GLASS, lit))
    _tops(canvas, body, paint)
    _wheels(canvas, body)
    _near_end(canvas, body, paint)
    lamps: RGB = (190, 36, 34) if rng.random() < 0.5 else (236, 234, 214)
    _details(canvas, body, lamps)


def _sample_body(thing: Thing, rng: np.random.Generator) -> _Body:
    van = thing.height > 1.8
    half = 1.0 if van else 0.88
    far = thing.depth + float(rng.uniform(3.7, 4.8))
    return _Body(
        left=thing.lateral - half,
        right=thing.lateral + half,
        near=thing.depth,
        far=far,
        waist=0.55 * thing.height,
        roof=thing.height,
        cabin_near=thing.depth + (0.1 if van else 0.5),
        cabin_far=far - 0.9,
    )


def _quad(canvas: Canvas, corners: tuple[tuple[float, float, float], ...], depth: float, colour: RGB) -> None:
    """A quadrilateral with ``corners`` (lateral, elevation, depth), with the haze of ``depth``."""
    canvas.polygon([canvas.camera.project(*corner) for corner in corners], colour, depth, Kind.CAR)


def _level(canvas: Canvas, body: _Body, elevation: float, colour: RGB, kind: Kind | None) -> None:
    corners = ((body.left, body.near), (body.right, body.near), (body.right, body.far), (body.left, body.far))
    points = [canvas.camera.project(x, elevation, z) for x, z in corners]
    canvas.polygon(points, colour, body.near, kind)


def _side(canvas: Canvas, body: _Body, paint: RGB, glass: RGB) -> None:
    x, near, far = body.flank, body.near, body.far
    inner = x + (_TAPER if x == body.left else -_TAPER)
    corners = ((x, _FLOOR, near), (x, body.waist, near), (x, body.waist, far), (x, _FLOOR, far))
    _quad(canvas, corners, near, paint)
    window = ((x, body.waist, near), (inner, body.roof, body.cabin_near), (inner, body.roof, body.cabin_far))
    _quad(canvas, (*window, (x, body.waist, far)), near, glass)


def _tops(canvas: Canvas, body: _Body, paint: RGB) -> None:
    """Bonnet and roof, if the camera is above them."""
    if canvas.camera.eye > body.waist:
        _level(canvas, body, body.waist, shaded(paint, 1.12), Kind.CAR)
    if canvas.camera.eye > body.roof:
        left, right = body.left + _TAPER, body.right - _TAPER
        near, far, top = body.cabin_near, body.cabin_far, body.roof
        corners = ((left, top, near), (right, top, near), (right, top, far), (left, top, far))
        _quad(canvas, corners, body.near, shaded(paint, 1.15))


def _wheels(canvas: Canvas, body: _Body) -> None:
    camera = canvas.camera
    for depth in (body.near + 0.8, body.far - 0.8):
        x, y = camera.project(body.flank, 0.3, depth)
        width = abs(camera.project(body.flank, 0.3, depth + 0.3)[0] - x)
        canvas.ellipse((x, y), (max(1.0, width), 0.3 * camera.focal / depth), _DARK, body.near, Kind.CAR)


def _near_end(canvas: Canvas, body: _Body, paint: RGB) -> None:
    def upright(inset: float, bottom: float, upper_inset: float, top: float, back: float, colour: RGB) -> None:
        corners = ((body.left + inset, bottom, body.near), (body.left + upper_inset, top, back))
        mirrored = ((body.right - upper_inset, top, back), (body.right - inset, bottom, body.near))
        _quad(canvas, (*corners, *mirrored), body.near, colour)

    upright(0, _FLOOR, 0, body.waist, body.near, shaded(paint, 0.84))
    upright(0.06, body.waist, 0.16, body.roof, body.cabin_near, shaded(paint, 0.95))
    upright(0.16, body.waist + 0.06, 0.26, body.roof - 0.1, body.cabin_near, _GLASS)


def _details(canvas: Canvas, body: _Body, lamps: RGB) -> None:
    """Lamps, number plate and tyres of the near end."""
    near, scale = body.near, canvas.camera.focal / body.near
    for x in (body.left + 0.2, body.right - 0.2):
        middle = canvas.camera.project(x, 0.78 * body.waist, near)
        canvas.ellipse(middle, (0.15 * scale, 0.09 * scale), lamps, near, Kind.CAR)
    _patch(canvas, (body.left + body.right) / 2, 0.26, 0.42, 0.54, near, (212, 208, 180))
    for x in (body.left + 0.16, body.right - 0.16):
        _patch(canvas, x, 0.1, 0, _FLOOR + 0.03, near, _DARK)


def _patch(canvas: Canvas, middle: float, half: float, bottom: float, top: float, depth: float, colour: RGB) -> None:
    left, right = middle - half, middle + half
    _quad(
        canvas, ((left, bottom, depth), (right, bottom, depth), (right, top, depth), (left, top, depth)), depth, colour
    )
