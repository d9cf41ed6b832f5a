"""Files out of archives and folders, without ever writing outside the target folder."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dnas.errors import UserError

Place = Callable[[PurePosixPath], PurePosixPath | None]
"""From the path of a file in an archive to its path below the target folder; None for files that are not needed."""


@dataclass(frozen=True)
class Member:
    """A file of an archive: its path, its size in bytes, and how it is read."""

    path: PurePosixPath
    size: int
    open: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]


@contextlib.contextmanager
def members(source: Path) -> Iterator[list[Member]]:
    """The files of a ZIP or TAR archive (compressed or not) or of a folder.

    Raises :class:`UserError` for a file that is neither, for an archive that is cut off, and for one with a member
    whose path leads out of it (``..``, an absolute path) or that is a link or a device: no such data set has any.
    """
    if source.is_dir():
        yield [_of_folder(source, path) for path in sorted(source.rglob("*")) if path.is_file()]
    elif not source.exists():
        raise UserError(f"{source}: no such archive or folder")
    elif zipfile.is_zipfile(source):
        with _damaged(source), zipfile.ZipFile(source) as archive:
            yield [_of_zip(source, archive, info) for info in archive.infolist() if not info.is_dir()]
    elif tarfile.is_tarfile(source):
        with _damaged(source), tarfile.open(source) as archive:
            yield [_of_tar(source, archive, info) for info in archive if not info.isdir()]
    else:
        raise UserError(
            f"{source}: not a ZIP or TAR archive; the download may be incomplete, or a page that asks to log in"
        )


def unpack(source: Path, out: Path, place: Place) -> int:
    """Write the files that ``place`` wants below ``out``; returns their number, and leaves all others out.

    A file that is there already at its full size is kept, so that an interrupted call can be repeated. Two members with
    the same place are a :class:`UserError`, as is a disk without room for all of them.
    """
    with members(source) as found:
        placed: dict[PurePosixPath, Member] = {}
        for member in found:
            target = place(member.path)
            if target is None:
                continue
            if target in placed:
                raise UserError(f"{source}: {placed[target].path} and {member.path} are both to become {target}")
            placed[_inside(target, source)] = member
        missing = {path: member for path, member in placed.items() if not _is_there(out / path, member.size)}
        _check_room(out, sum(member.size for member in missing.values()))
        for path, member in missing.items():
            with member.open() as stream:
                _copy(stream, out / path)
    return len(placed)


def _copy(stream: IO[bytes], path: Path) -> None:
    """Write a file that has its name only when it is complete; not flushed to disk, which takes long for many files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(stream, file)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _inside(path: PurePosixPath, source: Path) -> PurePosixPath:
    """``path`` if it stays below the folder that it is joined to; backslashes and drives count on some systems."""
    parts = path.parts
    if path.is_absolute() or ".." in parts or not parts or any("\\" in part or ":" in part for part in parts):
        raise UserError(f"{source}: the path {str(path)!r} leads out of the archive; it is not what was published")
    return path


def _of_folder(root: Path, path: Path) -> Member:
    return Member(PurePosixPath(path.relative_to(root).as_posix()), path.stat().st_size, lambda: path.open("rb"))


def _of_zip(source: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        raise UserError(f"{source}: {info.filename} is a link; it is not what was published")
    path = _inside(PurePosixPath(info.filename), source)
    return Member(path, info.file_size, lambda: archive.open(info))


def _of_tar(source: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if not info.isfile():
        raise UserError(f"{source}: {info.name} is a link or a device; it is not what was published")

    def extract() -> IO[bytes]:
        stream = archive.extractfile(info)
        assert stream is not None  # a regular file has content
        return stream

    return Member(_inside(PurePosixPath(info.name), source), info.size, extract)


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _check_room(out: Path, needed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{out}: needs {needed / 2**30:.1f} GB of disk, {free / 2**30:.1f} GB are free")


@contextlib.contextmanager
def _damaged(source: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{source}: the archive is damaged ({error}); download it again") from None
