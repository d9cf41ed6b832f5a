"""The pictures that a command is given: files, folders, patterns, and the frames of videos."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dnas.data.decode import ValueRange, to_image
from dnas.data.stored import IMAGE_SUFFIXES, PILLOW_MAX_PIXELS, read_stored
from dnas.errors import UserError
from dnas.input_channels import RGB

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the images of a network are read: their channels, and the values that become 0 and 255 (None: 8 bits).

    See ``channels`` and ``range`` of :class:`dnas.data.DataConfig`.
    """

    channels: int = RGB
    value_range: ValueRange | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image or a video; ``name`` is that of its predictions, a relative path without suffix."""

    path: Path
    name: str

    def frames(self, reading: Reading = Reading()) -> Iterator[tuple[str, Tensor]]:
        """Name and pixels uint8 (channels, H, W): one of an image, one for each frame of a video."""
        if self.path.suffix.lower() in VIDEO_SUFFIXES:
            for index, frame in enumerate(_video(self.path, reading.channels)):
                yield f"{self.name}/{index:06d}", frame
        else:
            # The user names these images: tiles are for large ones, so the limit is that of the decoder.
            stored = read_stored(self.path, PILLOW_MAX_PIXELS)
            yield self.name, to_image(stored, self.path, reading.value_range, reading.channels)


def find_pictures(given: Sequence[str], without: Path | None = None) -> tuple[tuple[Picture, ...], int]:
    """The pictures that the arguments name, and the number of other files that were skipped in folders.

    An argument is a file, a folder, which is searched with its subfolders, or a pattern such as ``images/*.png``. Files
    below ``without``, the folder of the predictions, are not pictures. Raises :class:`UserError` if nothing is found.
    """
    found: dict[Path, str] = {}
    skipped = 0
    for argument in given:
        for path, name in _named(argument):
            if without is not None and path.resolve().is_relative_to(without.resolve()):
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                found.setdefault(path, name)
            elif len(given) == 1 and path == Path(argument):
                raise UserError(f"{path}: neither an image nor a video, by its suffix")
            else:
                skipped += 1
    if not found:
        raise UserError(f"{', '.join(given)}: holds no images or videos; give files, a folder or a pattern")
    stems = Counter(str(Path(name).with_suffix("")) for name in found.values())
    pictures = []
    for path, name in found.items():
        stem = str(Path(name).with_suffix(""))
        pictures.append(Picture(path=path, name=stem if stems[stem] == 1 else name))
    twice = [name for name, count in Counter(picture.name for picture in pictures).items() if count > 1]
    if twice:
        raise UserError(f"several pictures are named {twice[0]}, their predictions would replace each other")
    return tuple(pictures), skipped


def _named(argument: str) -> Iterator[tuple[Path, str]]:
    """The files of an argument with their names: relative to a folder, or the bare name."""
    path = Path(argument)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield file, file.relative_to(path).as_posix()
    elif path.is_file():
        yield path, path.name
    else:
        matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise UserError(f"{argument}: no such file or folder, and no file matches it as a pattern")
        for match in matches:
            if Path(match).is_file():
                yield Path(match), Path(match).name


def _video(path: Path, channels: int) -> Iterator[Tensor]:
    """The frames of a video, uint8 (channels, H, W); one channel is grey."""
    if channels not in (1, RGB):
        raise UserError(f"{path}: the frames of a video have 3 channels or are grey, the network takes {channels}")
    try:
        import av
    except ImportError:
        raise UserError(f'{path}: videos need PyAV; install it with: pip install "dnas[video]"') from None
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24" if channels == RGB else "gray"))
                yield pixels.permute(2, 0, 1) if channels == RGB else pixels[None]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise UserError(f"{path}: not a readable video ({error})") from None
