"""The objects in a street ("things"): number, positions and drawing order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from dnas.data.streets.camera import Camera
from dnas.data.streets.layout import Floats, Light, Street

ThingKind = Literal["car", "tree", "lamp", "sign", "lights", "pedestrian", "cyclist"]


@dataclass(frozen=True)
class Thing:
    """One object: kind, position of its foot (metres), height (metres), and a seed for its appearance."""

    kind: ThingKind
    lateral: float
    depth: float
    height: float
    looks: int


def sample_things(rng: np.random.Generator, street: Street) -> tuple[Thing, ...]:
    """Random street furniture, trees, traffic and people, from the farthest to the nearest."""
    things = [*_furniture(rng, street), *_traffic(rng, street), *_people(rng, street)]
    return tuple(sorted(things, key=lambda thing: -thing.depth))


def cast_shadows(
    things: tuple[Thing, ...], street: Street, light: Light, camera: Camera, size: tuple[int, int]
) -> Floats:
    """Brightness (H, W) of the ground with the shadows of ``things``: 1 outside of shadows."""
    shadow = Image.new("L", (size[1], size[0]), 255)
    draw = ImageDraw.Draw(shadow)
    for thing in things:
        if thing.kind == "car" or light.sun == 0 or thing.depth < 3:
            continue
        tip = thing.lateral - light.sun * light.reach * thing.height
        tip = min(max(tip, street.front_left), street.front_right)
        half = 1.1 if thing.kind == "tree" else 0.22
        near, far = thing.depth - half, thing.depth + half
        points = [camera.project(thing.lateral, 0, near), camera.project(tip, 0, near)]
        points += [camera.project(tip, 0, far), camera.project(thing.lateral, 0, far)]
        draw.polygon(points, fill=155)
    return np.asarray(shadow, np.float32) / np.float32(255)


def _new(rng: np.random.Generator, kind: ThingKind, lateral: float, depth: float, height: float) -> Thing:
    return Thing(kind, float(lateral), float(depth), float(height), int(rng.integers(2**31)))


def _furniture(rng: np.random.Generator, street: Street) -> Iterator[Thing]:
    """Lamps, signs, traffic lights and trees along the kerbs."""
    avenue = rng.random() < 0.45
    for kerb, out in ((street.kerb_left, -1), (street.kerb_right, 1)):
        room = abs((street.front_left if out < 0 else street.front_right) - kerb)
        spacing = rng.uniform(18, 32)
        for depth in np.arange(rng.uniform(5, 5 + spacing), 90, spacing):
            if rng.random() < 0.75:
                yield _new(rng, "lamp", kerb + 0.45 * out, depth, rng.uniform(5, 8.5))
        for depth in rng.uniform(5, 60, int(rng.integers(0, 5))):
            yield _new(rng, "sign", kerb + rng.uniform(0.4, 0.9) * out, depth, rng.uniform(2.2, 3.4))
        if rng.random() < 0.3:
            yield _new(rng, "lights", kerb + 0.5 * out, rng.uniform(8, 35), rng.uniform(2.9, 3.6))
        if avenue or rng.random() < 0.25:
            for depth in np.arange(rng.uniform(6, 14), 80, rng.uniform(8, 15)):
                height = rng.uniform(4.5, 9)
                yield _new(rng, "tree", kerb + out * rng.uniform(0.5, 0.9) * room, depth, height)


def _traffic(rng: np.random.Generator, street: Street) -> Iterator[Thing]:
    """Rows of parked cars, moving cars in both lanes, and cyclists at the edge of the road."""
    for kerb, out in ((street.kerb_left, -1), (street.kerb_right, 1)):
        parked = rng.beta(0.7, 1.1)
        for depth in np.arange(rng.uniform(4, 9), 75, 6.2):
            if rng.random() < parked:
                yield _new(rng, "car", kerb - 1.15 * out, depth + rng.uniform(-0.4, 0.4), _car_height(rng))
        lane = (street.middle + kerb) / 2
        if abs(kerb - street.middle) > 4.2:
            lane -= 0.5 * out  # leaves room for parked cars
        depths = np.cumsum(rng.uniform(6, 40, 4)) + 4
        for depth in depths[: int(rng.integers(0, 4))]:
            yield _new(rng, "car", lane, depth, _car_height(rng))
        for depth in rng.uniform(6, 40, int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15]))):
            yield _new(rng, "cyclist", kerb - out * rng.uniform(2.2, 3.1), depth, rng.uniform(1.65, 1.9))


def _car_height(rng: np.random.Generator) -> float:
    """A random height in metres; 15 % are vans."""
    return float(rng.uniform(1.9, 2.5) if rng.random() < 0.15 else rng.uniform(1.38, 1.62))


def _people(rng: np.random.Generator, street: Street) -> Iterator[Thing]:
    """Pedestrians on the pavements, alone or in small groups, and sometimes on the road."""
    for kerb, front in ((street.kerb_left, street.front_left), (street.kerb_right, street.front_right)):
        for depth in rng.uniform(5, 45, int(rng.integers(0, 5))):
            place = kerb + (front - kerb) * rng.uniform(0.15, 0.8)
            for _ in range(int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))):
                spot = place + rng.normal(0, 0.35)
                yield _new(rng, "pedestrian", spot, depth + rng.normal(0, 0.3), rng.uniform(1.2, 1.9))
    if rng.random() < 0.3:
        depth = street.crossing or rng.uniform(8, 30)
        place = rng.uniform(street.kerb_left, street.kerb_right)
        yield _new(rng, "pedestrian", place, depth, rng.uniform(1.5, 1.9))
