"""Append-only files of JSON objects, one per line, that stay readable when the writer is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.files import parse_json, read_bytes


@dataclass(frozen=True)
class Line:
    """A line of a file: its bytes, newline included, and its JSON object, None if the line is damaged."""

    content: bytes
    record: dict[str, Any] | None


def append_record(path: Path, record: Mapping[str, Any], *, sync: bool = False) -> None:
    """Append ``record`` as one line and hand it to the operating system, so that it outlives this process.

    ``sync`` waits until the line is on disk, so that it also survives a crash of the machine. NaN and infinities, which
    JSON does not have, raise :class:`ValueError`.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    with path.open("ab") as stream:
        stream.write(line.encode())
        if sync:
            stream.flush()
            os.fsync(stream.fileno())


def read_lines(path: Path, what: str) -> list[Line]:
    """All lines of a file, none if it does not exist; ``what`` says what the file is, for errors.

    The last line is left out if it is incomplete or damaged: a killed writer or a crash of the machine leaves that.
    """
    if not path.exists():
        return []
    *complete, _ = read_bytes(path, what).split(b"\n")
    lines = [Line(content + b"\n", _parse(content)) for content in complete]
    if lines and lines[-1].record is None:
        del lines[-1]
    return lines


def repair(path: Path, what: str) -> None:
    """Cut off what :func:`read_lines` leaves out, so that the next record starts on a line of its own."""
    length = sum(len(line.content) for line in read_lines(path, what))
    if path.exists() and length < path.stat().st_size:
        os.truncate(path, length)


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(content)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
