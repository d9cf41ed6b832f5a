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
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
"""The formats of these suffixes. Pillow would open any other by its content, some by starting another program."""

MAX_PIXELS = 64_000_000
"""Default limit on the pixels of an image; a few hundred bytes can claim an image that needs gigabytes."""

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow refuses larger images itself."""

_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """The image as uint8 (3, H, W) RGB, rotated according to its EXIF orientation.

    Grey images get three equal channels, palette images their colours, alpha is dropped and 16 bits are reduced to the
    upper 8. A file that is missing, truncated, not an image, or whose header gives more than ``max_pixels`` raises
    :class:`UserError`.
    """
    array = np.asarray(_to_rgb(_load(path, max_pixels), path))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def read_mask(path: Path, max_pixels: int = MAX_PIXELS) -> npt.NDArray[Any]:
    """The stored mask: (H, W) values of a grey or palette file, or uint8 (H, W, 3) colours.

    Palette indices are not converted to colours. Raises :class:`UserError` like :func:`read_image`.
    """
    image = _load(path, max_pixels)
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
        with _quiet(), _open(path) as image:
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


def _open(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")  # opening a pipe would wait for its writer
    return Image.open(path, formats=_FORMATS)


def _load(path: Path, max_pixels: int) -> Image.Image:
    try:
        with _quiet(), _open(path) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"{path}: its header gives {image.width}x{image.height} pixels, more than max_pixels={max_pixels} "
                    "of the data; raise that (--data-set max_pixels=N) if the file is what it should be, or remove it"
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except UserError:
        raise
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error, MemoryError, ...
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
