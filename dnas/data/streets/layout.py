"""Random parameters of a street, its light and its camera, in metres; nothing is rendered here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnas.data.streets.camera import FAR, Camera

Floats = npt.NDArray[np.float32]
RGB = tuple[float, float, float]

HOUSE, FENCED, GREEN = 0, 1, 2
"""Use of a stretch of the frontage: a house, a fence with vegetation behind it, or only vegetation."""


@dataclass(frozen=True)
class Frontage:
    """One side of the street as K stretches in order of depth; arrays have one entry per stretch.

    ends: depth where each stretch ends. use: HOUSE, FENCED or GREEN. height: of the house or the vegetation, in metres.
    colour: of wall or leaves (K, 3). pane: colour of the windows (K, 3). bay, storey: horizontal and vertical spacing
    of the windows. fence: height of the fences of this side.
    """

    ends: Floats
    use: npt.NDArray[np.int64]
    height: Floats
    colour: Floats
    pane: Floats
    bay: Floats
    storey: Floats
    fence: float
    fence_colour: RGB


@dataclass(frozen=True)
class Light:
    """Light, haze and exposure. ``sun`` is -1 (left), 0 (overcast) or 1; ``reach`` is shadow length per height."""

    sun: int
    reach: float
    zenith: RGB
    haze: RGB
    clouds: float
    fog: float
    gain: RGB
    noise: float

    def faded(self, depth: float) -> float:
        """Fraction (0 to 1) of the haze's colour in an object at ``depth``."""
        return 1 - math.exp(-self.fog * depth)


@dataclass(frozen=True)
class Street:
    """Lateral positions in metres relative to the camera, from left to right, and the surfaces between them."""

    front_left: float
    kerb_left: float
    kerb_right: float
    front_right: float
    left: Frontage
    right: Frontage
    asphalt: RGB
    paving: RGB
    markings: bool
    crossing: float | None

    @property
    def middle(self) -> float:
        """Lateral position of the middle of the road."""
        return (self.kerb_left + self.kerb_right) / 2


def sample_camera(rng: np.random.Generator, size: tuple[int, int], bend: float) -> Camera:
    """A random camera at the height of a car, with the vanishing point near the middle of an image of ``size``."""
    height, width = size
    focal = float(rng.uniform(0.62, 0.85)) * max(width, 1.2 * height)
    centre = width * (0.5 + float(rng.normal(0, 0.07)) - 8 * bend)
    horizon = height * float(np.clip(rng.normal(0.45, 0.035), 0.36, 0.55))
    return Camera(focal, centre, horizon, float(rng.uniform(1.3, 1.9)), bend)


def sample_street(rng: np.random.Generator) -> Street:
    """A random road with pavements and frontages on both sides; the camera is in one of its lanes."""
    half_road = float(rng.uniform(3.6, 6.5))
    position = float(rng.uniform(-0.55, 0.55)) * half_road
    pavements = rng.uniform(1.8, 4.5, 2)
    grey = float(rng.uniform(70, 130))
    tint = rng.normal(0, 4, 3)
    # The paving has about the grey of the asphalt, so that position identifies a surface better than colour.
    paving = grey + float(rng.normal(12, 18)) + tint + rng.normal(0, 5, 3)
    return Street(
        front_left=-half_road - float(pavements[0]) - position,
        kerb_left=-half_road - position,
        kerb_right=half_road - position,
        front_right=half_road + float(pavements[1]) - position,
        left=_sample_frontage(rng),
        right=_sample_frontage(rng),
        asphalt=_rgb(grey + tint),
        paving=_rgb(paving),
        markings=bool(rng.random() < 0.8),
        crossing=float(rng.uniform(9, 35)) if rng.random() < 0.25 else None,
    )


def _sample_frontage(rng: np.random.Generator) -> Frontage:
    lengths = rng.uniform(7, 24, 26)
    ends = np.cumsum(lengths) - rng.uniform(0, 20)
    ends = ends[: int(np.searchsorted(ends, FAR)) + 1]
    count = len(ends)
    green_share = float(rng.beta(1.2, 2.5))
    use = rng.choice([HOUSE, FENCED, GREEN], count, p=[1 - green_share, 0.55 * green_share, 0.45 * green_share])
    walls = _wall_colours(rng, count)
    leaves = np.array([62, 84, 44]) * rng.uniform(0.6, 1.25, (count, 1)) + rng.normal(0, 6, (count, 3))
    house = use == HOUSE
    terrace = float(rng.uniform(6, 16))  # neighbours have similar heights
    height = np.where(house, (terrace * rng.uniform(0.75, 1.3, count)), rng.uniform(2.2, 9, count))
    return Frontage(
        ends=ends.astype(np.float32),
        use=use,
        height=height.astype(np.float32),
        colour=np.where(house[:, None], walls, leaves).astype(np.float32),
        pane=(rng.uniform(25, 75, (count, 1)) + np.array([0, 6, 14])).astype(np.float32),
        bay=rng.uniform(2.0, 3.6, count).astype(np.float32),
        storey=rng.uniform(2.8, 3.6, count).astype(np.float32),
        fence=float(rng.uniform(1.0, 2.2)),
        fence_colour=_rgb(np.array(_FENCE_COLOURS[int(rng.integers(len(_FENCE_COLOURS)))]) * rng.uniform(0.8, 1.2)),
    )


_WALLS = np.array(
    [[150, 88, 66], [172, 142, 104], [196, 186, 166], [128, 124, 122], [104, 98, 98], [186, 164, 128], [120, 78, 64]]
)
_FENCE_COLOURS = ((120, 92, 66), (64, 68, 70), (150, 146, 138), (52, 74, 62))


def _wall_colours(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    chosen = _WALLS[rng.integers(len(_WALLS), size=count)]
    varied: npt.NDArray[np.float64] = chosen * rng.uniform(0.75, 1.15, (count, 1)) + rng.normal(0, 5, (count, 3))
    return varied


def sample_light(rng: np.random.Generator) -> Light:
    """Random light: sun from one side or overcast, warm or cold, bright or dim, clear or foggy."""
    sun = int(rng.choice([-1, 0, 1], p=[0.35, 0.3, 0.35]))
    overcast = sun == 0
    zenith = np.array([168, 174, 182]) if overcast else np.array([74, 122, 188])
    haze = np.array([198, 202, 206]) if overcast else np.array([190, 206, 220])
    brightness = float(rng.uniform(0.85, 1.05))
    warmth = float(rng.normal(0, 0.045)) + (0.0 if overcast else 0.025)
    exposure = float(rng.uniform(0.72, 1.18))
    foggy = rng.random() < 0.12
    return Light(
        sun=sun,
        reach=float(rng.uniform(0.25, 1.1)),
        zenith=_rgb(zenith * brightness),
        haze=_rgb(haze * brightness),
        clouds=float(rng.uniform(0.0, 1.0)),
        fog=float(rng.uniform(0.012, 0.03) if foggy else rng.uniform(0.001, 0.006)),
        gain=(exposure * (1 + warmth), exposure, exposure * (1 - warmth)),
        noise=float(rng.uniform(1.5, 5.0)),
    )


def _rgb(values: npt.NDArray[np.float64]) -> RGB:
    red, green, blue = (float(value) for value in np.clip(values, 0, 255))
    return red, green, blue
