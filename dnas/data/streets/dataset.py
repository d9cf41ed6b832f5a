"""The dataset of generated road scenes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dnas.data.dataset import SegmentationDataset
from dnas.data.labels import builtin_classes
from dnas.data.seeding import mix_seed
from dnas.data.streets.backdrop import render_backdrop, smooth_noise
from dnas.data.streets.camera import Camera
from dnas.data.streets.canvas import Canvas
from dnas.data.streets.figures import draw_thing
from dnas.data.streets.layout import Floats, Light, sample_camera, sample_light, sample_street
from dnas.data.streets.things import Thing, cast_shadows, sample_things

DEFAULT_SIZE = (128, 256)


def render_street(seed: int, size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """One scene: image uint8 (H, W, 3) and mask uint8 (H, W) of the 11 CamVid classes.

    The scene depends only on ``seed``: other sizes show the same street. The noise also depends on the size.
    """
    rng = np.random.default_rng(mix_seed("scene", seed))
    texture = np.random.default_rng(mix_seed("texture", seed))
    bend = float(rng.normal(0, 0.0016)) if rng.random() < 0.6 else 0.0
    street, light = sample_street(rng), sample_light(rng)
    camera = sample_camera(rng, size, bend)
    things = sample_things(rng, street)
    shadows = cast_shadows(things, street, light, camera, size)
    backdrop = render_backdrop(street, light, camera, size, shadows, texture)
    canvas = Canvas(backdrop.image, backdrop.mask, light, camera)
    for thing in things:
        if _visible(thing, camera, backdrop.depth):
            draw_thing(canvas, thing, light)
    image, mask = canvas.finish()
    return _expose(image, light, texture), mask.copy()


def _visible(thing: Thing, camera: Camera, limits: Floats) -> bool:
    """Whether a thing may be visible: within the image, and not hidden by the frontage around a bend."""
    width = len(limits)
    column = camera.project(thing.lateral, 0, thing.depth)[0]
    farther = camera.project(thing.lateral, 0, thing.depth + 5)[0]  # a car's other end
    margin = 3 * camera.focal / thing.depth
    if max(column, farther) < -margin or min(column, farther) > width + margin:
        return False
    return bool(thing.depth < limits[min(max(round(column), 0), width - 1)])


def _expose(image: Floats, light: Light, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Apply camera effects: exposure, colour temperature, uneven light, sensor noise."""
    height, width = image.shape[:2]
    uneven = 1 + 0.03 * smooth_noise(rng, (height, width), (3, 4))
    exposed = image * np.asarray(light.gain, np.float32)
    exposed *= uneven[..., None]
    exposed += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(light.noise)
    pixels: npt.NDArray[np.uint8] = exposed.clip(0, 255, out=exposed).astype(np.uint8)
    return pixels


class StreetsDataset(SegmentationDataset):
    """Road scenes generated on access; each image depends only on (seed, split, index, size)."""

    def __init__(self, *, split: str, count: int, size: tuple[int, int], seed: int, cache: bool) -> None:
        labels = builtin_classes("camvid").labels
        super().__init__(name="streets", split=split, labels=labels, count=count, size=size, cache=cache)
        self._pixels = size
        self._seed = seed

    def file_name(self, index: int) -> str:
        """A name such as ``streets/train/0003``."""
        return f"streets/{self.split}/{self._position(index):04d}"

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = render_street(mix_seed("streets", self._seed, self.split, index), self._pixels)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)

    def _native_size(self, index: int) -> tuple[int, int]:
        return self._pixels
