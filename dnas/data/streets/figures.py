"""Drawing of each kind of thing."""

from __future__ import annotations

import numpy as np

from dnas.data.streets.camera import Kind
from dnas.data.streets.canvas import Canvas, shaded
from dnas.data.streets.car import draw_car
from dnas.data.streets.layout import RGB, Light
from dnas.data.streets.things import Thing

_PAINTS: tuple[RGB, ...] = (
    (112, 114, 118),
    (88, 90, 94),
    (176, 178, 180),
    (34, 34, 38),
    (214, 214, 212),
    (134, 34, 32),
    (36, 58, 112),
    (52, 82, 64),
    (150, 132, 96),
)
_CLOTHES: tuple[RGB, ...] = (
    (40, 42, 50),
    (84, 84, 90),
    (120, 40, 44),
    (46, 66, 110),
    (168, 160, 148),
    (66, 92, 66),
    (196, 170, 60),
    (110, 86, 66),
)
_SKIN: tuple[RGB, ...] = ((206, 164, 138), (172, 126, 98), (108, 74, 56))
_SIGNS: tuple[RGB, ...] = ((186, 34, 38), (38, 74, 160), (222, 222, 220), (224, 186, 40), (36, 110, 66))
_DARK: RGB = (26, 26, 30)


def draw_thing(canvas: Canvas, thing: Thing, light: Light) -> None:
    """Draw ``thing`` at its position."""
    rng = np.random.default_rng(thing.looks)
    if thing.kind == "car":
        draw_car(canvas, thing, light, _pick(rng, _PAINTS), rng)
    elif thing.kind == "tree":
        _tree(canvas, thing, light, rng)
    elif thing.kind == "lamp":
        _lamp(canvas, thing, rng)
    elif thing.kind == "sign":
        _sign(canvas, thing, rng)
    elif thing.kind == "lights":
        _traffic_lights(canvas, thing, rng)
    elif thing.kind == "pedestrian":
        _pedestrian(canvas, thing, rng)
    else:
        _cyclist(canvas, thing, rng)


def _pick(rng: np.random.Generator, colours: tuple[RGB, ...], spread: float = 0.15) -> RGB:
    return shaded(colours[int(rng.integers(len(colours)))], float(rng.uniform(1 - spread, 1 + spread)))


def _tree(canvas: Canvas, thing: Thing, light: Light, rng: np.random.Generator) -> None:
    camera, depth = canvas.camera, thing.depth
    scale = camera.focal / depth
    foot = camera.project(thing.lateral, 0, depth)
    crown = camera.project(thing.lateral, thing.height * 0.68, depth)
    bark = shaded((86, 72, 58), float(rng.uniform(0.6, 1.1)))
    canvas.line([foot, crown], float(rng.uniform(0.22, 0.42)) * scale, bark, depth, Kind.TREE)
    green = shaded((74, 98, 48), float(rng.uniform(0.65, 1.25)))
    green = (green[0] * float(rng.uniform(0.8, 1.35)), green[1], green[2])
    radius = 0.3 * thing.height * scale
    count = int(np.clip(radius, 8, 26))
    around = rng.uniform(0, 2 * np.pi, count)
    outward = np.sqrt(rng.uniform(0, 1, count))
    canvas.ellipse(crown, (0.75 * radius, 0.65 * radius), shaded(green, 0.6), depth, Kind.TREE)
    # From the dark leaves at the bottom and back to the bright ones at the top and towards the sun.
    xs, ys = np.cos(around) * outward, -np.sin(around) * outward
    brightness = 0.82 - 0.28 * ys + 0.22 * light.sun * xs + rng.normal(0, 0.1, count)
    sizes = rng.uniform(0.22, 0.42, count) * radius
    for index in np.argsort(brightness):
        middle = (crown[0] + 0.95 * radius * float(xs[index]), crown[1] + 0.8 * radius * float(ys[index]))
        size = float(sizes[index])
        canvas.ellipse(middle, (size, 0.85 * size), shaded(green, float(brightness[index])), depth, Kind.TREE)


def _lamp(canvas: Canvas, thing: Thing, rng: np.random.Generator) -> None:
    camera, depth = canvas.camera, thing.depth
    scale = camera.focal / depth
    colour = shaded((92, 94, 96), float(rng.uniform(0.5, 1.4)))
    top = camera.project(thing.lateral, thing.height, depth)
    canvas.line([camera.project(thing.lateral, 0, depth), top], 0.15 * scale, colour, depth, Kind.POLE)
    towards_road = -1.0 if thing.lateral > 0 else 1.0
    arm = camera.project(thing.lateral + towards_road * 1.3, thing.height + 0.25, depth)
    canvas.line([top, arm], 0.1 * scale, colour, depth, Kind.POLE)
    canvas.ellipse(arm, (0.35 * scale, 0.1 * scale), (206, 204, 196), depth, Kind.POLE)


def _sign(canvas: Canvas, thing: Thing, rng: np.random.Generator) -> None:
    camera, depth = canvas.camera, thing.depth
    scale = camera.focal / depth
    x, y = camera.project(thing.lateral, thing.height, depth)
    canvas.line([camera.project(thing.lateral, 0, depth), (x, y)], 0.09 * scale, (120, 122, 124), depth, Kind.POLE)
    radius = float(rng.uniform(0.3, 0.45)) * scale
    colour, shape = _pick(rng, _SIGNS), int(rng.integers(3))
    if shape == 0:
        canvas.ellipse((x, y), (radius, radius), colour, depth, Kind.SIGN)
        canvas.ellipse((x, y), (0.62 * radius, 0.62 * radius), (224, 224, 222), depth, Kind.SIGN)
    elif shape == 1:
        canvas.polygon(
            [(x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius), (x, y - radius)], colour, depth, Kind.SIGN
        )
    else:
        wide, tall = radius * float(rng.uniform(0.8, 1.8)), radius * float(rng.uniform(0.7, 1.2))
        canvas.polygon(
            [(x - wide, y - tall), (x + wide, y - tall), (x + wide, y + tall), (x - wide, y + tall)],
            colour,
            depth,
            Kind.SIGN,
        )


def _traffic_lights(canvas: Canvas, thing: Thing, rng: np.random.Generator) -> None:
    camera, depth = canvas.camera, thing.depth
    scale = camera.focal / depth
    x, y = camera.project(thing.lateral, thing.height, depth)
    canvas.line([camera.project(thing.lateral, 0, depth), (x, y)], 0.13 * scale, (70, 72, 74), depth, Kind.POLE)
    wide, tall = 0.19 * scale, 0.5 * scale
    case = [(x - wide, y - tall), (x + wide, y - tall), (x + wide, y + tall), (x - wide, y + tall)]
    canvas.polygon(case, (32, 34, 34), depth, Kind.SIGN)
    on = int(rng.integers(3))
    for position, colour in enumerate(((220, 48, 40), (228, 170, 40), (60, 196, 110))):
        shown = colour if position == on else shaded(colour, 0.25)
        canvas.ellipse((x, y + 0.6 * tall * (position - 1)), (0.6 * wide, 0.6 * wide), shown, depth, Kind.SIGN)


def _pedestrian(canvas: Canvas, thing: Thing, rng: np.random.Generator) -> None:
    camera, depth, height = canvas.camera, thing.depth, thing.height
    stride = float(rng.uniform(0.02, 0.2))
    trousers, coat, skin = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES), _pick(rng, _SKIN)
    scale = camera.focal / depth * height

    def at(x: float, y: float) -> tuple[float, float]:
        return camera.project(thing.lateral + x * height, y * height, depth)

    for foot in (-stride, stride):
        canvas.line([at(foot, 0), at(0.3 * foot, 0.5)], 0.1 * scale, trousers, depth, Kind.PEDESTRIAN)
    for hand in (-0.15, 0.15):
        canvas.line(
            [at(0.7 * hand, 0.8), at(hand + 0.5 * stride, 0.46)],
            0.06 * scale,
            shaded(coat, 0.85),
            depth,
            Kind.PEDESTRIAN,
        )
    canvas.polygon([at(-0.1, 0.44), at(-0.13, 0.82), at(0.13, 0.82), at(0.1, 0.44)], coat, depth, Kind.PEDESTRIAN)
    canvas.ellipse(at(0, 0.92), (0.065 * scale, 0.08 * scale), skin, depth, Kind.PEDESTRIAN)
    hair = _pick(rng, ((40, 32, 28), (96, 70, 44), (150, 148, 146)))
    canvas.ellipse(at(0, 0.96), (0.065 * scale, 0.05 * scale), hair, depth, Kind.PEDESTRIAN)


def _cyclist(canvas: Canvas, thing: Thing, rng: np.random.Generator) -> None:
    camera, depth = canvas.camera, thing.depth
    scale = camera.focal / depth
    jacket, trousers, skin = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES), _pick(rng, _SKIN)
    # From behind, a bicycle is a narrow line; from the side, two wheels and a frame.
    length = 0.12 if rng.random() < 0.6 else float(rng.uniform(0.35, 0.55))

    def at(x: float, y: float) -> tuple[float, float]:
        return camera.project(thing.lateral + x, y, depth)

    for wheel in (-length, length):
        x, y = at(wheel, 0.34)
        canvas.ellipse(
            (x, y), (max(0.05, 0.34 * min(1.0, length / 0.5)) * scale, 0.34 * scale), _DARK, depth, Kind.BICYCLIST
        )
    frame = [at(-length, 0.34), at(-0.2 * length, 0.85), at(0.8 * length, 0.9), at(length, 0.34)]
    canvas.line(frame, 0.06 * scale, _pick(rng, _PAINTS), depth, Kind.BICYCLIST)
    for side in (-0.08, 0.08):
        canvas.line([at(side - 0.3 * length, 0.95), at(side, 0.35)], 0.13 * scale, trousers, depth, Kind.BICYCLIST)
    lean = 0.5 * length
    torso = [at(-0.2 - 0.3 * length, 0.88), at(-0.22 + lean, 1.45), at(0.22 + lean, 1.45), at(0.2 - 0.3 * length, 0.88)]
    canvas.polygon(torso, jacket, depth, Kind.BICYCLIST)
    canvas.line([at(lean, 1.35), at(length, 0.98)], 0.09 * scale, jacket, depth, Kind.BICYCLIST)
    canvas.ellipse(at(1.2 * lean, 1.6), (0.11 * scale, 0.14 * scale), skin, depth, Kind.BICYCLIST)
    canvas.ellipse(at(1.2 * lean, 1.67), (0.12 * scale, 0.09 * scale), _pick(rng, _SIGNS), depth, Kind.BICYCLIST)
