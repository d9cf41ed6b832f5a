"""Transforms from stored pixels to network inputs: augmentation for training, and normalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import pydantic
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from typing_extensions import Self

from dnas.config import Field, config
from dnas.data.colours import adjust_channels, adjust_contrast
from dnas.data.config import DataConfig
from dnas.data.decode import resize_image, resize_mask
from dnas.data.labels import IGNORE_LABEL
from dnas.data.on_device import DeviceFinish, Prepared, pack_numbers
from dnas.data.rand_augment import RandAugmentConfig, rand_augment

Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]]
"""Image uint8 (3, H, W) and mask uint8 (H, W) to a float32 image (3, h, w) and int64 labels (h, w)."""

_Side = Annotated[int, Field(ge=1, le=16384)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0)]


@config
class AugmentationConfig:
    """Augmentation of training images, and normalisation of all images.

    crop: (height, width) of a random crop of training images, padded if the image is smaller; null is the image's own
        size.
    scale: range of the random factor by which images are resized before the crop.
    flip: probability of a horizontal flip.
    brightness, contrast, saturation: random factors from 1 - x to 1 + x. hue: random shift of -x to x of a full turn.
    rand_augment: random operators after the crop and before the jitter of colours; null for none.
    on_device: flip, change colours and normalise on the device that trains, from bytes, which frees the processes that
        read images; the result differs by rounding only. Null is on GPUs.
    mean, std: of each channel in 0..1; the defaults are those of ImageNet, which pretrained networks expect.
    """

    crop: tuple[_Side, _Side] | None = None
    scale: tuple[Annotated[float, Field(gt=0, le=16)], Annotated[float, Field(gt=0, le=16)]] = (1.0, 1.0)
    flip: _Share = 0.5
    brightness: _Share = 0.0
    contrast: _Share = 0.0
    saturation: _Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    rand_augment: RandAugmentConfig | None = None
    on_device: bool | None = None
    mean: tuple[_Share, ...] = (0.485, 0.456, 0.406)
    std: tuple[_Deviation, ...] = (0.229, 0.224, 0.225)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"given scale {self.scale[0]} to {self.scale[1]}, expected the smaller number first")
        if len(self.mean) != len(self.std):
            raise ValueError(f"given {len(self.mean)} means and {len(self.std)} deviations, expected one a channel")
        return self


class EvalTransform:
    """Normalises an image and converts its labels to int64; see :func:`eval_transform`."""

    def __init__(self, config: AugmentationConfig, image_size: tuple[int, int] | None = None) -> None:
        self._mean, self._std = list(config.mean), list(config.std)
        self._image_size = image_size

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 (3, H, W) and int64 (H, W), of the same size unless images are resized."""
        if self._image_size is not None:
            image = tv_tensors.Image(resize_image(image, self._image_size))
        plain = F.to_dtype(image.as_subclass(torch.Tensor), torch.float32, scale=True)
        return F.normalize(plain, self._mean, self._std), mask.as_subclass(torch.Tensor).to(torch.int64)

    def prepare(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> Prepared:
        """Bytes of the same sizes, for :meth:`finish`."""
        if self._image_size is not None:
            image = tv_tensors.Image(resize_image(image, self._image_size))
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor), torch.zeros(0)

    def finish(self, device: torch.device) -> DeviceFinish:
        """What turns a batch of :meth:`prepare` into inputs on a device."""
        return DeviceFinish(self._mean, self._std, device)


class TrainTransform:
    """Random scale, crop, flip and colours, then normalisation; see :func:`train_transform`."""

    def __init__(self, config: AugmentationConfig) -> None:
        self._config = config
        self._jitter = v2.ColorJitter(
            brightness=config.brightness, contrast=config.contrast, saturation=config.saturation, hue=config.hue
        )
        self._fill = [round(255 * value) for value in config.mean]
        self._normalise = EvalTransform(config)

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 (3, h, w) and int64 (h, w) of the crop's size; random numbers come from torch's CPU generator."""
        return self._transform(image, mask, None)

    def focused(self, image: tv_tensors.Image, mask: tv_tensors.Mask, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, but the crop contains a random pixel of the class ``label``, if the mask has one."""
        return self._transform(image, mask, _random_pixel(mask, label))

    def prepare(self, image: tv_tensors.Image, mask: tv_tensors.Mask, label: int | None = None) -> Prepared:
        """Bytes of the crop's size and the random numbers for :meth:`finish`; ``label`` as in :meth:`focused`.

        The random numbers are those that the whole transform draws.
        """
        image, mask = self._scale_and_crop(image, mask, None if label is None else _random_pixel(mask, label))
        flip = self._draws_flip()
        if self._config.rand_augment is not None:
            # Its rotations come after the flip.
            image, mask = _flipped(image, mask) if flip else (image, mask)
            flip = False
            image, mask = rand_augment(image, mask, self._config.rand_augment, self._fill)
        numbers = pack_numbers(flip, self._jitter.make_params([image]))
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor), numbers

    def finish(self, device: torch.device) -> DeviceFinish:
        """What turns a batch of :meth:`prepare` into inputs on a device."""
        return self._normalise.finish(device)

    def _transform(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask, focus: Sequence[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self._scale_and_crop(image, mask, focus)
        if self._draws_flip():
            image, mask = _flipped(image, mask)
        if self._config.rand_augment is not None:
            image, mask = rand_augment(image, mask, self._config.rand_augment, self._fill)
        return self._normalise(self._jitter_colours(image), mask)

    def _scale_and_crop(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask, focus: Sequence[int] | None
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        height, width = int(image.shape[-2]), int(image.shape[-1])
        crop = self._config.crop or (height, width)
        low, high = self._config.scale
        scale = low + (high - low) * torch.rand(()).item()
        top, tall, rows, above = _window(height, crop[0], scale, None if focus is None else focus[0])
        left, wide, columns, before = _window(width, crop[1], scale, None if focus is None else focus[1])
        # Cropping before resizing gives the same image (within a fraction of a pixel) with less work.
        image = tv_tensors.Image(resize_image(F.crop(image, top, left, tall, wide), (rows, columns)))
        mask = tv_tensors.Mask(resize_mask(F.crop(mask, top, left, tall, wide), (rows, columns)))
        padding = [before, above, crop[1] - columns - before, crop[0] - rows - above]
        if any(padding):
            image = F.pad(image, padding, fill=self._fill)
            mask = F.pad(mask, padding, fill=IGNORE_LABEL)
        return image, mask

    def _draws_flip(self) -> bool:
        return torch.rand(()).item() < self._config.flip

    def _jitter_colours(self, image: tv_tensors.Image) -> tv_tensors.Image:
        parameters = self._jitter.make_params([image])
        if image.shape[-3] != 3:
            # Saturation and hue are of RGB.
            factors = (parameters["brightness_factor"], parameters["contrast_factor"])
            return tv_tensors.Image(adjust_channels(image, *factors))
        adjustments: tuple[tuple[Callable[..., tv_tensors.Image], float | None], ...] = (
            (F.adjust_brightness, parameters["brightness_factor"]),
            (adjust_contrast, parameters["contrast_factor"]),
            (F.adjust_saturation, parameters["saturation_factor"]),
            (F.adjust_hue, parameters["hue_factor"]),
        )
        for position in parameters["fn_idx"].tolist():
            adjust, factor = adjustments[position]
            if factor is not None:
                image = adjust(image, factor)
        return image


def _window(length: int, crop: int, scale: float, focus: int | None = None) -> tuple[int, int, int, int]:
    """A random position of a crop along one axis; it contains the pixel ``focus`` of the image, if given.

    Returns start and length of the window in the image, its length after scaling, and the padding before it. If the
    crop is larger than the scaled image, the window is the whole image at a random position in the crop.
    """
    scaled = max(1, round(length * scale))
    resized = min(crop, scaled)
    low, high = 0, abs(scaled - crop)
    if focus is not None and scaled > crop:
        place = min(scaled - 1, int((focus + 0.5) * scaled / length))
        low, high = max(0, place - crop + 1), min(high, place)
    free = low + _random_integer(high - low)
    if scaled <= crop:
        return 0, length, resized, free
    cut = min(length, max(1, round(resized * length / scaled)))
    start = min(round(free * length / scaled), length - cut)
    if focus is not None:
        # Rounding to whole pixels of the image must not lose the one that is wanted.
        start = min(max(start, focus - cut + 1), focus)
    return start, cut, resized, 0


def _random_integer(largest: int) -> int:
    return int(torch.randint(largest + 1, ()).item())


def _random_pixel(mask: tv_tensors.Mask, label: int) -> list[int] | None:
    """(row, column) of a random pixel of a class; None if there is none."""
    pixels = (mask.as_subclass(torch.Tensor) == label).nonzero()
    if not len(pixels):
        return None
    found: list[int] = pixels[_random_integer(len(pixels) - 1)].tolist()
    return found


def _flipped(image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    return F.horizontal_flip(image), F.horizontal_flip(mask)


def finish_device(config: AugmentationConfig, device: torch.device) -> torch.device | None:
    """``device`` if images are finished on it, else None; see :class:`AugmentationConfig`."""
    wanted = device.type == "cuda" if config.on_device is None else config.on_device
    return device if wanted else None


def train_transform(config: AugmentationConfig) -> TrainTransform:
    """The training transform: random scale, crop, flip and colours, then normalisation.

    It uses torch's CPU generator, which :func:`dnas.data.batches` seeds for every sample.
    """
    return TrainTransform(config)


def eval_transform(config: AugmentationConfig, image_size: tuple[int, int] | None = None) -> EvalTransform:
    """The transform for evaluation: normalisation only.

    ``image_size``: (height, width) to which images are resized first; their labels keep their size.
    """
    return EvalTransform(config, image_size)


def measured_statistics(config: AugmentationConfig, data: DataConfig) -> AugmentationConfig:
    """``config`` with the mean and deviation of ``data``, if it has them."""
    if data.mean is None or data.std is None:
        return config
    return dataclasses.replace(config, mean=data.mean, std=data.std)
