"""The journal of a table build: one line per finished round, on disk before the next round starts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import zlib
from pathlib import Path
from typing import Any

from dnas.config import parse_config, to_mapping
from dnas.errors import UserError
from dnas.json_lines import Line, append_record, read_lines, repair
from dnas.latency.provenance import Provenance
from dnas.latency.statistics import Round

FORMAT = "dnas latency journal"
SCHEMA_VERSION = 1
WHAT = "journal of a table build"


class Journal:
    """An append-only file of JSON lines, each with a checksum.

    An incomplete or damaged line loses its own round and nothing else. The first line holds the provenance of the first
    session; each session ("sitting" in the file) starts with a line that names the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.provenance: Provenance | None = None
        self.seconds = 0.0
        self.sittings = 0
        self.rounds: dict[str, list[Round]] = {}
        self._holder: dict[str, Any] = {}
        self._read()

    @property
    def holder(self) -> str:
        """A description of the process that began the last session."""
        if not self._holder:
            return "another process"
        return "process {pid} on {host}, since {date}".format(**{"pid": "?", "host": "?", "date": "?", **self._holder})

    def begin(self, provenance: Provenance) -> None:
        """Begin a session: write the header if there is none yet, and a line that names this process."""
        if self.provenance is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self.provenance = provenance
            self._append({"format": FORMAT, "schema_version": SCHEMA_VERSION, "provenance": to_mapping(provenance)})
        repair(self.path, WHAT)
        self.sittings += 1
        self._append({"sitting": {"pid": os.getpid(), "host": platform.node(), "date": provenance.date}})

    def append(self, key: str, entry: Round, seconds: float) -> None:
        """Add a finished round; ``seconds`` is the duration of its visit."""
        self._append({"key": key, "round": dataclasses.asdict(entry), "seconds": round(seconds, 6)})

    def remove(self) -> None:
        """Delete the file, once its content is in the table."""
        self.path.unlink(missing_ok=True)

    def _append(self, record: dict[str, Any]) -> None:
        append_record(self.path, {"crc": _checksum(record), "record": record}, sync=True)

    def _read(self) -> None:
        for line in read_lines(self.path, WHAT):
            record = _intact(line)
            if record is None:
                continue
            if "provenance" in record:
                self._read_header(record)
            elif isinstance(record.get("sitting"), dict):
                self._holder = record["sitting"]
                self.sittings += 1
            else:
                self._read_round(record)
        if self.provenance is None and self.rounds:
            raise UserError(
                f"{self.path}: the first line of this journal is damaged, so it is unknown how it was measured; "
                "delete it and start again"
            )

    def _read_header(self, record: dict[str, Any]) -> None:
        if record.get("format") != FORMAT or record.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{self.path}: not a journal of this version of dnas; delete it and start again")
        self.provenance = parse_config(Provenance, record["provenance"], str(self.path))

    def _read_round(self, record: dict[str, Any]) -> None:
        try:
            values = record["round"]
            samples = tuple(float(value) for value in values["samples_ms"])
            entry = Round(samples, int(values["calls_per_sample"]), bool(values["throttled"]))
            key, seconds = str(record["key"]), float(record["seconds"])
        except (KeyError, TypeError, ValueError):
            return
        if samples and all(math.isfinite(value) and value >= 0 for value in samples) and entry.calls_per_sample > 0:
            self.rounds.setdefault(key, []).append(entry)
            self.seconds += seconds


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, allow_nan=False, separators=(",", ":")).encode())


def _intact(line: Line) -> dict[str, Any] | None:
    """The record of a line, None if the line is damaged."""
    try:
        outer = line.record or {}
        record, wanted = outer["record"], outer["crc"]
        return record if isinstance(record, dict) and _checksum(record) == wanted else None
    except (ValueError, KeyError, RecursionError):
        return None
