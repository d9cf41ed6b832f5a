"""Reading image files; every error names the file."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dnas.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: Path) -> torch.Tensor:
    """The image as uint8 (3, H, W) RGB, rotated according to its EXIF orientation.

    Grey images get three equal channels, palette images their colours, alpha is dropped and 16 bits are reduced to the
    upper 8. A file that is missing, truncated or not an image raises :class:`UserError`.
    """
    array = np.asarray(_to_rgb(_load(path), path))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def read_mask(path: Path) -> npt.NDArray[Any]:
    """The stored mask: (H, W) values of a grey or palette file, or uint8 (H, W, 3) colours.

    Palette indices are not converted to colours. Raises :class:`UserError` like :func:`read_image`.
    """
    image = _load(path)
    if image.mode in ("L", "P", "1", *_DEEP_MODES):
        values: npt.NDArray[Any] = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == np.bool_ else values
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0))
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[..., :3]
    raise UserError(f"{path}: a mask of mode {image.mode}, expected class indices (grey or palette) or RGB colours")


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of :func:`read_image`, read from the header only."""
    try:
        with _quiet(), Image.open(path) as image:
            width, height = image.size
            transposed = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 exchange rows and columns
    except Exception as error:
        raise _unreadable(path, error) from None
    return (width, height) if transposed else (height, width)


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 (3, H, W) to (3, *size), bilinear with antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized: torch.Tensor = F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 (H, W) to ``size`` by nearest exact interpolation, which keeps mask and image aligned."""
    if tuple(mask.shape) == size:
        return mask
    # As a plain tensor: for a tv_tensors.Mask torchvision uses the older "nearest", which is half a pixel off.
    plain = mask.as_subclass(torch.Tensor).unsqueeze(0)
    resized: torch.Tensor = F.resize(plain, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return resized.squeeze(0)


def _load(path: Path) -> Image.Image:
    try:
        with _quiet(), Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (
        Exception
    ) as error:  # for a broken file the decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise _unreadable(path, error) from None


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in _DEEP_MODES:
        # Pillow would clip 16 bits to 255 instead of scaling them.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{path}: values from {values.min()} to {values.max()}, expected an 8 or 16 bit image")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise UserError(f"{path}: an image of floating-point values, expected 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Pillow's warnings about unusual but readable files; files that it cannot read raise errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such image file")
    return UserError(f"{path}: not a readable image, it may be corrupt or truncated ({error}); replace or remove it")
