"""The file of a latency table: JSON with a checksum, validated when it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.config import Field, config, parse_config, to_mapping
from dnas.errors import UserError
from dnas.files import read_json, write_text
from dnas.latency.provenance import Provenance
from dnas.latency.spec import OperatorSpec
from dnas.latency.statistics import Measurement

FORMAT = "dnas latency table"
SCHEMA_VERSION = 1
LARGEST_MS = 1e6


@config
class _Entry:
    """One operator: latency and percentiles in ms, number of timed calls and of rounds; both are 0 if predicted."""

    latency_ms: float = Field(ge=0, le=LARGEST_MS)
    p10_ms: float = Field(ge=0, le=LARGEST_MS)
    p90_ms: float = Field(ge=0, le=LARGEST_MS)
    repetitions: int = Field(ge=0)
    rounds: int = Field(ge=0)


@config
class _Document:
    """The whole file."""

    format: str
    schema_version: int
    checksum: str
    provenance: Provenance
    entries: dict[str, _Entry]


def write_table_file(path: str | Path, provenance: Provenance, entries: Mapping[str, Measurement]) -> None:
    """Write the table atomically: one line per entry, sorted by key, numbers with all their digits."""
    content = {
        "provenance": to_mapping(provenance),
        "entries": {key: dataclasses.asdict(_record(entries[key])) for key in sorted(entries)},
    }
    head = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "checksum": checksum(content)}
    lines = [f'  "{name}": {json.dumps(value)},' for name, value in head.items()]
    provenance_text = json.dumps(content["provenance"], indent=2, allow_nan=False).replace("\n", "\n  ")
    lines.append(f'  "provenance": {provenance_text},')
    rows = [f"    {json.dumps(key)}: {json.dumps(row, allow_nan=False)}" for key, row in content["entries"].items()]
    lines.append('  "entries": {\n' + ",\n".join(rows) + "\n  }")
    write_text(path, "{\n" + "\n".join(lines) + "\n}\n")


def read_table_file(path: str | Path) -> tuple[Provenance, dict[str, Measurement]]:
    """Read and validate a table; any problem with the file raises :class:`UserError` that names it."""
    values = read_json(path, "latency table")
    _check_head(path, values)
    content = {name: values.get(name) for name in ("provenance", "entries")}
    if values.get("checksum") != checksum(content):
        raise UserError(
            f"{path}: the content does not match its checksum: the file was damaged or edited by hand; "
            "restore the original, or remove it and rebuild the table with `dnas latency build`"
        )
    document = parse_config(_Document, values, str(path))
    for key, entry in document.entries.items():
        _check_entry(path, key, entry)
    return document.provenance, {key: _measurement(entry) for key, entry in document.entries.items()}


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content as canonical JSON, which does not depend on the order of keys or on white space."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _check_head(path: str | Path, values: object) -> None:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: not a latency table (no format: {FORMAT!r}); make one with `dnas latency build`")
    version = values.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {version!r}, this dnas reads version {SCHEMA_VERSION}; "
            "use the dnas that wrote the table, or rebuild it"
        )


def _check_entry(path: str | Path, key: str, entry: _Entry) -> None:
    try:
        OperatorSpec.from_key(key)
    except UserError as error:
        raise UserError(f"{path}: entries: {error}") from None
    if not entry.p10_ms <= entry.latency_ms <= entry.p90_ms:
        raise UserError(
            f"{path}: entries.{key}: latency_ms {entry.latency_ms} does not lie between "
            f"p10_ms {entry.p10_ms} and p90_ms {entry.p90_ms}; rebuild the table"
        )


def _record(measurement: Measurement) -> _Entry:
    return _Entry(
        latency_ms=measurement.median,
        p10_ms=measurement.p10,
        p90_ms=measurement.p90,
        repetitions=measurement.repetitions,
        rounds=measurement.rounds,
    )


def _measurement(entry: _Entry) -> Measurement:
    return Measurement(
        median=entry.latency_ms,
        p10=entry.p10_ms,
        p90=entry.p90_ms,
        repetitions=entry.repetitions,
        rounds=entry.rounds,
    )
