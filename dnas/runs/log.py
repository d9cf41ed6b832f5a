"""The log of a run: one JSON object a line, append only, readable at whatever moment the writer was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.files import read_bytes, write_atomically


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line and hand it to the operating system, so that a killed process does not lose it.

    numpy and torch scalars become numbers. Raises :class:`UserError` for NaN and infinities, which JSON cannot hold
    and which mean that the run has diverged.
    """
    line = json.dumps(plain(record), allow_nan=False) + "\n"
    with path.open("ab") as stream:
        stream.write(line.encode())


def plain(value: Any, name: str = "") -> Any:
    """``value`` as JSON containers and finite scalars; ``name`` is its dotted path in errors."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, f"{name}.{index}") for index, inner in enumerate(value)]
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, (int, float)):
        raise TypeError(f"a log record holds plain values, {name} is a {type(value).__name__}")
    if not math.isfinite(number):
        raise UserError(
            f"{name} became {number}: the training has diverged; start again with a lower learning rate, "
            "a longer warm-up, gradient clipping or fp32"
        )
    return number


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records; a half line at the end (the writer was killed) is left out, a missing file has none.

    Raises :class:`UserError` that names the line when the file is damaged elsewhere.
    """
    return [record for _, record in _parse(path)]


def repair(path: Path) -> None:
    """Cut a half line off the end, so that the next record starts on a line of its own."""
    if path.exists():
        length = sum(len(line) for line, _ in _parse(path))
        if length < path.stat().st_size:
            os.truncate(path, length)


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop, atomically, the records for which ``keep`` is false; the others keep their bytes."""
    lines = _parse(path)
    kept = [line for line, record in lines if keep(record)]
    if len(kept) < len(lines):
        write_atomically(path, lambda stream: stream.writelines(kept))


def _parse(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    if not path.exists():
        return []
    lines = read_bytes(path, "log of a run").splitlines(keepends=True)
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is no log record; the file is damaged, remove this line")
        parsed.append((line, record))
    return parsed
