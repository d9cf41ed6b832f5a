"""Image files as they are stored: pixels, bit depth, palette and orientation, before any of them is interpreted."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image

from dnas.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm", ".npy"}
)
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The formats of these suffixes. Pillow would open any other by its content, some by starting another program."""

MAX_PIXELS = 64_000_000
"""Default limit on the pixels of an image; a few hundred bytes can claim an image that needs gigabytes."""

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow refuses larger images itself."""

_TIFF_SUFFIXES = (".tif", ".tiff")
_ORIENTATION, _BITS, _SAMPLES, _WIDTH, _HEIGHT = 0x0112, 258, 277, 256, 257  # tags of EXIF and TIFF
_GREY_SCALES = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow scales grey values of few bits to 0..255."""


@dataclass(frozen=True)
class StoredImage:
    """The pixels of a file as they are stored, not turned and not scaled.

    pixels: (H, W) values or palette indices, or (H, W, C); integers of any depth, booleans as 0 and 1, or floats.
    bits: bits per value.
    white: the largest value, if the file declares it: 2 ** bits - 1 up to 8 bits; None where it may be less.
    inverted: whether viewers show 0 as white.
    palette: RGB colours uint8 (entries, 3) of a palette file.
    transparent: whether the palette, or the last channel, says how opaque a pixel is.
    orientation: 1 to 8, how viewers turn the file (EXIF); 1 is unturned.
    """

    pixels: npt.NDArray[Any]
    bits: int
    white: int | None = None
    inverted: bool = False
    palette: npt.NDArray[np.uint8] | None = None
    transparent: bool = False
    orientation: int = 1

    @property
    def channels(self) -> int:
        """Number of channels, of palette files as stored: 1."""
        return 1 if self.pixels.ndim == 2 else int(self.pixels.shape[2])


def read_stored(path: Path, max_pixels: int = MAX_PIXELS) -> StoredImage:
    """Read a file; one that is missing, truncated or of an unknown kind raises :class:`UserError`.

    So does one whose header gives more than ``max_pixels``, before anything of that size is allocated.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path, max_pixels)
    try:
        with _quiet(), _open(path) as image:
            _check_pixels(path, image.height, image.width, max_pixels)
            # The further frames of JPEG files are previews and depth maps of cameras.
            frames = getattr(image, "n_frames", 1) if image.format in ("TIFF", "GIF", "WEBP", "PNG") else 1
            if frames > 1:
                raise UserError(f"{path}: holds {frames} pages or frames, expected one image; store one a file")
            arguments = _tile_arguments(image)
            if image.mode in ("RGB", "RGBA", "LA") and ";16" in str(arguments[:1]):
                alpha = image.mode != "RGB"
                return StoredImage(_deep_pixels(path), 16, transparent=alpha, orientation=_orientation(image))
            image.load()
            return _of_pillow(image, arguments)
    except UserError:
        raise
    except Exception as error:  # for a broken file the decoders raise OSError, SyntaxError, struct.error, ...
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in _TIFF_SUFFIXES:
            pixels, bits = _read_tiff(path, error, max_pixels)
            return StoredImage(pixels, bits, 255 if pixels.dtype == np.uint8 else None)
        raise unreadable(path, error) from None


def read_stored_size(path: Path) -> tuple[int, int, int]:
    """Height and width as stored, and the orientation, read from the header only."""
    if path.suffix.lower() == ".npy":
        shape = _read_array(path).pixels.shape
        return int(shape[0]), int(shape[1]), 1
    try:
        with _quiet(), _open(path) as image:
            width, height = image.size
            return height, width, _orientation(image)
    except Exception as error:
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in _TIFF_SUFFIXES:
            shape = _read_tiff(path, error)[0].shape
            return int(shape[0]), int(shape[1]), 1
        raise unreadable(path, error) from None


def _open(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")  # opening a pipe would wait for its writer
    return Image.open(path, formats=_FORMATS)


def _check_pixels(path: Path, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise UserError(
            f"{path}: its header gives {width}x{height} pixels, more than max_pixels={max_pixels} of the data; "
            "raise that (--data-set max_pixels=N) if the file is right, cut it and its mask into tiles, or remove it"
        )


def turned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """(H, W, ...) as viewers show it for an EXIF orientation of 1 to 8."""
    if orientation >= 5:  # 5 to 8 exchange rows and columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file that a decoder refused."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such image file")
    if isinstance(error, Image.DecompressionBombError):
        pixels, limit = (int(number) / 1e6 for number in re.findall(r"[0-9]+", str(error))[:2])
        return UserError(
            f"{path}: an image of {pixels:.0f} megapixels, expected at most {limit:.0f}, as images are read whole; cut "
            "it and its mask into tiles"
        )
    return UserError(f"{path}: not a readable image, it may be corrupt or truncated ({error}); replace or remove it")


def _of_pillow(image: Image.Image, arguments: tuple[Any, ...]) -> StoredImage:
    orientation = _orientation(image)
    pixels: npt.NDArray[Any] = np.array(image)
    if image.mode in ("1", "L"):
        values, white, inverted = _unscaled(pixels, arguments)
        return StoredImage(values, white.bit_length(), white, inverted, orientation=orientation)
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        indices = pixels if pixels.ndim == 2 else np.array(image.getchannel(0))
        see_through = image.mode == "PA" or "transparency" in image.info
        return StoredImage(indices, 8, 255, palette=colours, transparent=see_through, orientation=orientation)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image, pixels, arguments, orientation)
    if image.mode not in ("LA", "RGB", "RGBA", "RGBX"):
        pixels = np.array(image.convert("RGB"))  # CMYK, YCbCr, Lab
    transparent = image.mode in ("LA", "RGBA")
    return StoredImage(pixels, 8, 255, transparent=transparent, orientation=orientation)


def _unscaled(values: npt.NDArray[Any], arguments: tuple[Any, ...]) -> tuple[npt.NDArray[Any], int, bool]:
    """Grey values as stored in the file, the value of white, and whether viewers show them inverted.

    Pillow gives them as displayed: scaled to 0..255, and inverted for bitmaps (PBM) and "white is zero" of TIFF.
    """
    rawmode = arguments[0] if arguments and isinstance(arguments[0], str) else ""
    if values.dtype == np.bool_:
        inverted = rawmode.startswith("1;I")
        return values.astype(np.uint8) ^ np.uint8(inverted), 1, inverted
    white = _declared_white(arguments)
    for name, factor in _GREY_SCALES.items():
        if rawmode.startswith(name):
            white = 255 // factor
    inverted = rawmode.startswith(("L;I", "L;2I", "L;4I"))
    stored = values if white == 255 else np.rint(values * (white / 255)).astype(np.uint8)
    return (np.uint8(white) - stored if inverted else stored), white, inverted


def _deep_grey(
    image: Image.Image, pixels: npt.NDArray[Any], arguments: tuple[Any, ...], orientation: int
) -> StoredImage:
    """Grey values of more than 8 bits; those of the PNM formats, which declare their white, as stored."""
    deep = 16 if image.mode.startswith("I;16") or image.format == "PNG" else 32
    if image.format != "PPM" or image.mode == "F":
        return StoredImage(pixels, deep, orientation=orientation)
    white = _declared_white(arguments, 65535)
    return StoredImage(np.rint(pixels * (white / 65535)).astype(np.int32), white.bit_length(), white)


def _declared_white(arguments: tuple[Any, ...], otherwise: int = 255) -> int:
    """The largest value that a PNM file declares: the decoder's arguments are then (mode, largest value)."""
    declared = len(arguments) == 2 and arguments[0] in ("L", "I") and isinstance(arguments[1], int) and arguments[1] > 0
    return int(arguments[1]) if declared else otherwise


def _tile_arguments(image: Image.Image) -> tuple[Any, ...]:
    """How the file stores its pixels, in Pillow's words, such as ``("L;4",)`` for grey of 4 bits; before loading."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _deep_pixels(path: Path) -> npt.NDArray[Any]:
    """Colour pixels of 16 bits, which Pillow would cut to the upper 8."""
    if path.suffix.lower() in _TIFF_SUFFIXES:
        return _read_tiff(path, None)[0]
    pixels: npt.NDArray[Any] = decode_image(str(path), mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    return pixels


def _read_array(path: Path, max_pixels: int = MAX_PIXELS) -> StoredImage:
    try:
        # Mapped, so that nothing is allocated for what a header only claims.
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")  # opening a pipe would wait for its writer
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise unreadable(path, error) from None
    except Exception as error:  # NumPy evaluates the header as a literal, which can raise almost anything
        raise UserError(f"{path}: not a readable array of NumPy ({error}); replace or remove it") from None
    if not isinstance(pixels, np.ndarray) or pixels.ndim not in (2, 3) or pixels.dtype.kind not in "biuf":
        raise UserError(
            f"{path}: an array of shape {pixels.shape} and type {pixels.dtype}, expected (H, W[, C]) numbers"
        )
    _check_pixels(path, int(pixels.shape[0]), int(pixels.shape[1]), max_pixels)
    pixels = pixels.astype(np.uint8) if pixels.dtype.kind == "b" else np.array(pixels)
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return StoredImage(flat, 8 * pixels.itemsize, 255 if pixels.dtype == np.uint8 else None)


def _read_tiff(path: Path, error: Exception | None, max_pixels: int = MAX_PIXELS) -> tuple[npt.NDArray[Any], int]:
    """The pixels (H, W, C) of a TIFF file that Pillow cannot read, and their bits."""
    described = _describe_tiff(path)
    if described is None:
        raise unreadable(path, error or ValueError("no TIFF header"))
    samples, bits, height, width = described
    _check_pixels(path, height, width, max_pixels)
    try:
        import tifffile
    except ImportError:
        raise UserError(
            f"{path}: a TIFF file of {samples} channels with {bits} bits each, which needs tifffile: "
            "pip install 'dnas[tiff]', or store it as .npy (H, W, C)"
        ) from None
    try:
        with tifffile.TiffFile(path) as opened:
            shape = opened.series[0].shape  # which further pages and tags may make larger than the header
            if math.prod(shape) > max_pixels * max(1, samples):
                raise ValueError(f"an array of shape {shape}, its header gives {height}x{width}x{samples}")
            pixels: npt.NDArray[Any] = opened.series[0].asarray()
    except Exception as problem:
        raise unreadable(path, problem) from None
    if not pixels.size:
        raise UserError(f"{path}: holds no pixels, it may be corrupt or truncated; replace or remove it")
    if pixels.ndim == 3 and pixels.shape[2] != samples and pixels.shape[0] == samples:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim not in (2, 3):
        raise UserError(f"{path}: holds an array of shape {pixels.shape}, expected one image (H, W, C)")
    return pixels, bits


def _describe_tiff(path: Path) -> tuple[int, int, int, int] | None:
    """Channels, bits, height and width of a TIFF file, from its header; None if it has none."""
    try:
        with path.open("rb") as stream:
            header = stream.read(8)
            if header[2:3] == b"+":  # BigTIFF has a header of 16 bytes
                header += stream.read(8)
            directory = TiffImagePlugin.ImageFileDirectory_v2(header)
            stream.seek(directory.next)
            directory.load(stream)
            bits = directory.get(_BITS, (1,))
            height, width = int(directory.get(_HEIGHT, 0)), int(directory.get(_WIDTH, 0))
            return int(directory.get(_SAMPLES, 1)), int(bits[0] if isinstance(bits, tuple) else bits), height, width
    except Exception:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Pillow's warnings about unusual but readable files; files that it cannot read raise errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
