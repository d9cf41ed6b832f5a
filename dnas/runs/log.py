"""The records in the log of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.files import write_atomically
from dnas.json_lines import read_lines

WHAT = "log of a run"
_LARGEST = 10**7


def plain(value: Any, name: str = "") -> Any:
    """``value`` as JSON containers and finite scalars, those of numpy and torch included.

    Raises :class:`UserError` for NaN and infinities, which JSON cannot hold and which mean that the training has
    diverged; ``name`` is the dotted path of ``value`` in errors.
    """
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
    """All records; a missing file has none, and an incomplete or damaged last line is left out.

    Raises :class:`UserError` that names the line if the file is damaged elsewhere.
    """
    return [record for _, record in _intact(path)]


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop, atomically, the records for which ``keep`` is false; the others keep their bytes."""
    lines = _intact(path)
    kept = [content for content, record in lines if keep(record)]
    if len(kept) < len(lines):
        write_atomically(path, lambda stream: stream.writelines(kept))


def _intact(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    found = []
    for number, line in enumerate(read_lines(path, WHAT), start=1):
        if line.record is None:
            raise UserError(f"{path}: line {number} is no log record; the file is damaged, remove this line")
        problem = _problem(line.record)
        if problem is not None:
            raise UserError(f"{path}: line {number}: {problem}; the file is damaged, remove this line")
        found.append((line.content, line.record))
    return found


def _problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the common entries of a record; None if nothing is."""
    for key in ("epoch", "step"):
        value = record.get(key, 0)
        if type(value) is not int or not 0 <= value <= _LARGEST:
            return f"{key}: given {str(value)[:40]!r}, expected an integer from 0 to {_LARGEST}"
    kind = record.get("kind", "")
    if not isinstance(kind, str):
        return f"kind: given {str(kind)[:40]!r}, expected a text"
    if kind in ("epoch", "step") and "epoch" not in record:
        return "epoch: missing"
    return None
