"""Image files as network inputs: bytes by channel, turned as viewers show them; every error names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dnas.data.stored import IMAGE_SUFFIXES, StoredImage, read_stored, read_stored_size, turned
from dnas.errors import UserError

__all__ = [
    "IMAGE_SUFFIXES",
    "ValueRange",
    "read_image",
    "read_mask",
    "read_size",
    "resize_image",
    "resize_mask",
    "to_image",
]

ValueRange = tuple[float, float]
"""The values of a file that become 0 and 255."""


def read_image(path: Path, value_range: ValueRange | None = None, channels: int = 3) -> torch.Tensor:
    """The image as uint8 (channels, H, W), turned according to its EXIF orientation; see :func:`to_image`."""
    return to_image(read_stored(path), path, value_range, channels)


def read_mask(path: Path) -> npt.NDArray[Any]:
    """The values of a mask as stored, turned by its own EXIF orientation: (H, W), or uint8 (H, W, 3) colours.

    Palette indices are not converted to colours. Raises :class:`UserError` for a file that is not readable.
    """
    stored = read_stored(path)
    return turned(mask_values(stored, path), stored.orientation)


def mask_values(stored: StoredImage, path: Path) -> npt.NDArray[Any]:
    """The values (H, W) or colours uint8 (H, W, 3) of a mask, not turned."""
    pixels = stored.pixels
    if pixels.dtype.kind == "f":
        raise UserError(f"{path}: a mask of floating-point values, expected class indices (grey or palette) or colours")
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 2 and stored.transparent:
        return pixels[..., 0]
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (3, 4):
        raise UserError(
            f"{path}: a mask of {pixels.shape[2]} channels with {stored.bits} bits, expected class indices (grey or "
            "palette) or RGB colours of 8 bits"
        )
    return pixels[..., :3]


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of :func:`read_image`, read from the header only."""
    height, width, orientation = read_stored_size(path)
    return (width, height) if orientation >= 5 else (height, width)


def to_image(stored: StoredImage, path: Path, value_range: ValueRange | None = None, channels: int = 3) -> torch.Tensor:
    """A stored image as uint8 (channels, H, W), turned according to its EXIF orientation.

    As RGB, grey images get three equal channels, palette images their colours, and alpha is dropped. Values of more
    than 8 bits become bytes by ``value_range``, which is the whole 16 bits if the file uses the upper half of them;
    otherwise it has to be given, as the values may have any number of bits. Raises :class:`UserError` for that, and
    for another number of channels than expected.
    """
    if stored.palette is not None:
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(stored.palette)] = stored.palette
        pixels = palette[stored.pixels]
    else:
        pixels = _to_bytes(stored, path, value_range)
        pixels = ~pixels if stored.inverted else pixels
    planes = turned(_select_channels(pixels, stored, channels, path), stored.orientation)
    return torch.from_numpy(np.ascontiguousarray(planes)).permute(2, 0, 1)


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 (C, H, W) to (C, *size), bilinear with antialiasing."""
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


def _to_bytes(stored: StoredImage, path: Path, value_range: ValueRange | None) -> npt.NDArray[np.uint8]:
    pixels = stored.pixels
    if value_range is None:
        if stored.white == 255:
            return pixels.astype(np.uint8, copy=False)
        if stored.white is not None and stored.white < 255:
            return np.rint(pixels * (255 / stored.white)).astype(np.uint8)
        value_range = (0, stored.white) if stored.white else _whole_range(stored, path)
    low, high = value_range
    # Equal steps: 65535 of 16 bits and 4095 of 12 bits both keep the upper 8 bits.
    step = 1.0 if pixels.dtype.kind != "f" else 0.0
    scaled = (pixels.astype(np.float64) - low) * (256 / (high - low + step))
    return np.floor(scaled).clip(0, 255).astype(np.uint8)


def _whole_range(stored: StoredImage, path: Path) -> ValueRange:
    """0 to 65535 for a file that uses the upper half; for any other the range of the values is not known."""
    pixels = stored.pixels
    low, high = pixels.min(), pixels.max()
    if stored.bits == 16 and pixels.dtype.kind in "iu" and low >= 0 and 32768 <= high <= 65535:
        return 0, 65535
    kind = "floating-point" if pixels.dtype.kind == "f" else f"{stored.bits}-bit"
    likely = float(high) if pixels.dtype.kind == "f" else (1 << max(8, int(high).bit_length())) - 1
    whole = "" if stored.bits != 16 else f", or range: [0, 65535] for a dark image of {stored.bits} bits"
    raise UserError(
        f"{path}: {kind} values from {low} to {high}, whose bit depth is not known: set range: [LOW, HIGH] in the data "
        f"to the values of black and white, for example range: [0, {likely:g}]{whole}"
    )


def _select_channels(
    pixels: npt.NDArray[np.uint8], stored: StoredImage, channels: int, path: Path
) -> npt.NDArray[np.uint8]:
    """(H, W, channels) of (H, W) or (H, W, C) pixels."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    found = pixels.shape[2]
    if found == channels:
        return pixels
    opaque = found - stored.transparent if found in (2, 4) and stored.palette is None else found
    if opaque == channels:
        return pixels[..., :channels]
    if channels == 3 and opaque == 1:
        return pixels[..., [0, 0, 0]]
    raise UserError(
        f"{path}: an image of {found} channels, expected {channels}; set channels: {found} in the data, or convert it"
    )
