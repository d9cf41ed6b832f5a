"""A cache of decoded images on disk, one file for each image, mapped into memory when it is read.

A file is a header of 64 bytes and the bytes of the planes. It belongs to the image and the mask of the same names,
sizes and times of change, and to the settings that its folder stands for; any other content counts as absent. Files
are replaced as a whole, so that several processes may fill and read the same folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dnas.data.labels import IGNORE_LABEL
from dnas.errors import UserError
from dnas.files import user_cache, write_atomically, write_json

_HEADER = struct.Struct("<8s32sIII12x")
"""Mark, digest of the sources, channels, height, width."""
_MARK = b"dnaspix1"
"""Changes when the same file is decoded to other pixels than before."""
_SETTINGS = "settings.json"
_RESERVE = 2**30
"""Bytes that are left free on the disk: a run folder may lie there."""

Planes = tuple[torch.Tensor, torch.Tensor]
"""Image uint8 (C, H, W) and mask uint8 (H, W)."""


class DiskCache:
    """Images and masks by index, stored when they are first read.

    Reading checks shape and labels; nothing in a file is executed. What cannot be stored later on (a full disk) is read
    from its source again.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        name: str,
        settings: str,
        sources: Sequence[tuple[Path, Path]],
        channels: int,
        num_classes: int,
        size: tuple[int, int] | None,
    ) -> None:
        """``root``: None is the cache of the user. ``settings``: everything that decides the pixels of a source.

        ``sources``: the files of image and mask of every index. ``size``: (height, width) of all images, if it is set.
        Raises :class:`UserError` if the folder cannot be written, or if its disk has too little room for all images.
        """
        key = hashlib.sha256(f"{settings}\n{channels} {size}".encode("utf-8", "backslashreplace")).hexdigest()[:16]
        parent = user_cache() / "images" if root is None else Path(root).expanduser().absolute()
        self.folder = parent / f"{name}-{key}"
        self._sources, self._channels, self._classes, self._size = tuple(sources), channels, num_classes, size
        self._absent: dict[int, bytes] = {}
        if not (self.folder / _SETTINGS).exists():
            write_json(self.folder / _SETTINGS, {"settings": settings, "channels": channels, "size": size})
        if size is not None:
            self._require_room(size[0] * size[1])

    def get(self, index: int) -> Planes | None:
        """Image and mask ``index``, mapped from the disk (writing to them changes the copy alone); None if absent."""
        digest = self._digest(index)
        found = None
        with contextlib.suppress(OSError, ValueError, struct.error):
            found = self._mapped(self._path(index), digest)
        if found is None:
            self._absent[index] = digest
        return found

    def put(self, index: int, image: torch.Tensor, mask: torch.Tensor) -> None:
        """Store image and mask ``index``, which :meth:`get` did not find; nothing if there is no room."""
        # That of before the files were read: they may have changed since.
        digest = self._absent.pop(index, None)
        header = _HEADER.pack(_MARK, digest or b"", image.shape[0], image.shape[1], image.shape[2])
        with contextlib.suppress(OSError, UserError):
            if digest is not None and shutil.disk_usage(self.folder).free - image.nbytes - mask.nbytes > _RESERVE:
                parts = (header, image.contiguous().numpy().data, mask.contiguous().numpy().data)
                write_atomically(self._path(index), lambda stream: [stream.write(part) for part in parts])

    def _mapped(self, path: Path, digest: bytes) -> Planes | None:
        with _opened(path) as file:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return None
            mark, stored, channels, height, width = _HEADER.unpack(os.read(file, _HEADER.size))
            pixels = height * width
            fits = status.st_size == _HEADER.size + (channels + 1) * pixels and pixels > 0
            if (mark, stored, channels) != (_MARK, digest, self._channels) or not fits:
                return None
            if self._size is not None and (height, width) != self._size:
                return None
            memory = mmap.mmap(file, status.st_size, access=mmap.ACCESS_COPY)
        planes = torch.from_numpy(np.frombuffer(memory, np.uint8, offset=_HEADER.size)).view(-1, height, width)
        mask = planes[-1]
        # A label that is no class would end a training on a GPU without a word about its cause.
        if bool(((mask >= self._classes) & (mask != IGNORE_LABEL)).any()):
            return None
        return planes[:-1], mask

    def _digest(self, index: int) -> bytes:
        """A hash of names, sizes and times of change of the sources; of a missing file, which its reader reports."""
        found = [_facts(path) for path in self._sources[index]]
        return hashlib.sha256(repr(found).encode()).digest()

    def _path(self, index: int) -> Path:
        names = hashlib.sha256(repr([str(path) for path in self._sources[index]]).encode()).hexdigest()
        return self.folder / f"{names[:24]}.pixels"

    def _require_room(self, pixels: int) -> None:
        missing = len(self._sources) - sum(1 for _ in self.folder.glob("*.pixels"))
        needed, free = missing * (self._channels + 1) * pixels, shutil.disk_usage(self.folder).free
        if missing > 0 and needed > free - _RESERVE:
            raise UserError(
                f"{self.folder}: the cache of {missing} images needs {needed / 2**30:.1f} GiB, the disk has "
                f"{free / 2**30:.1f} GiB free, of which 1 is left alone; set cache_dir of the data to a folder on "
                "a larger disk, a smaller size, or cache: false"
            )


def _facts(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file descriptor for reading; a pipe is not waited for."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        yield file
    finally:
        os.close(file)
