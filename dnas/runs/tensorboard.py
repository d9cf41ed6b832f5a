"""A copy of a run's log for TensorBoard (the extra ``dnas[tensorboard]``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dnas.errors import UserError


class TensorBoardMirror:
    """Writes the numbers of each log record as scalars named by their dotted path, one writer per kind of record.

    The step counts the records of that kind, so it continues across epochs and resumptions.
    """

    def __init__(self, path: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """``records`` are those in the log; later points, of epochs that are repeated, are dropped."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "TensorBoard is not installed: pip install 'dnas[tensorboard]', or leave --tensorboard out"
            ) from None
        self._open: Any = SummaryWriter
        self._path = path
        self._counts = Counter(str(record.get("kind")) for record in records)
        self._writers: dict[str, Any] = {}

    def write(self, record: Mapping[str, Any]) -> None:
        """Copy the numbers of one record."""
        kind = str(record.get("kind"))
        index = self._counts[kind]
        if kind not in self._writers:
            self._writers[kind] = self._open(str(self._path / kind), purge_step=index)
        for name, value in _numbers(record, ""):
            self._writers[kind].add_scalar(name, value, index)
        self._counts[kind] += 1

    def close(self) -> None:
        """Flush and close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
