"""The latency table: operator signature -> latency in ms, with its provenance."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from dnas.config import to_mapping
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.latency.device import DeviceInfo, describe_device
from dnas.latency.provenance import CPU_CAPABILITY, Provenance, command_words, differences
from dnas.latency.spec import OperatorSpec
from dnas.latency.statistics import Measurement
from dnas.latency.table_file import read_table_file, write_table_file

UNSTEADY = 0.2
"""Median spread of the entries from which on a table is doubted. Of idle CPUs it is 0.04 to 0.12."""


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of operators on one device, backend, precision and input size; immutable data that never measures.

    ``entries`` maps the key of an :class:`OperatorSpec` to its measurement (ms). ``source`` is the file that the table
    was read from, used in messages only and ignored in comparisons.
    """

    provenance: Provenance
    entries: Mapping[str, Measurement]
    source: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, spec: OperatorSpec) -> bool:
        return spec.key in self.entries

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table; a missing, damaged or edited file raises :class:`UserError` that names it and the reason."""
        provenance, entries = read_table_file(path)
        return cls(provenance, entries, Path(path))

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically; an existing file is replaced."""
        write_table_file(path, self.provenance, self.entries)

    def lookup(self, spec: OperatorSpec) -> float:
        """The median latency of an operator in ms; if missing, :class:`UserError` with the command that measures it."""
        entry = self.entries.get(spec.key)
        if entry is None:
            raise UserError(
                f"{self.source or 'the latency table'}: holds no {spec.key!r}; measure what is missing with "
                f"`{self._build_command()}`"
            )
        return entry.median

    def missing(self, specs: list[OperatorSpec]) -> list[OperatorSpec]:
        """Those of ``specs`` that the table does not have."""
        return [spec for spec in specs if spec not in self]

    def check_usable(
        self,
        *,
        device: str | torch.device | DeviceInfo | None = None,
        backend: str | None = None,
        precision: str | None = None,
        input_size: tuple[int, int] | None = None,
        batch: int | None = None,
        memory_format: str | None = None,
        threads: int | None = None,
        allow_mismatch: bool = False,
    ) -> list[str]:
        """Check that the table was measured for this device and these settings; None is not compared.

        Raises :class:`UserError` naming every difference. With ``allow_mismatch`` the differences are returned
        instead.
        """
        mine = self.provenance
        pairs: dict[str, tuple[object, object]] = {
            "backend": (mine.backend, backend),
            "precision": (mine.precision, precision),
            "input size": (tuple(mine.input_size), None if input_size is None else tuple(input_size)),
            "batch": (mine.batch, batch),
            "memory format": (mine.memory_format, memory_format),
            "threads": (mine.threads, threads),
        }
        if device is not None:
            wanted = device if isinstance(device, DeviceInfo) else describe_device(resolve_device(device, mps=True))
            same_name = {"device": (_device_text(mine.device), _device_text(wanted))}
            pairs = {**same_name, **self._hidden_by_the_name(wanted, here=wanted is not device), **pairs}
        found = [
            f"{name} is {_text(wanted)}, the table's is {_text(own)}"
            for name, (own, wanted) in pairs.items()
            if wanted is not None and own != wanted
        ]
        if found and not allow_mismatch:
            raise UserError(
                f"{self.source or 'the latency table'}: was measured for something else: {'; '.join(found)}; "
                "build a table for these settings, or allow the difference with --allow-mismatch"
            )
        return found

    def _hidden_by_the_name(self, device: DeviceInfo, *, here: bool) -> dict[str, tuple[object, object]]:
        """What tells CPUs of one name apart, where the table has it; ``here``: ``device`` is that of this machine."""
        mine = self.provenance
        pairs: dict[str, tuple[object, object]] = {}
        if mine.device.model is not None:
            pairs["CPU model"] = (mine.device.model, device.model)
        if CPU_CAPABILITY in mine.software and here and device.type == "cpu":
            pairs["CPU capability"] = (mine.software[CPU_CAPABILITY], torch.backends.cpu.get_cpu_capability())
        return pairs

    def slowest(self, count: int) -> list[tuple[str, Measurement]]:
        """The ``count`` entries of highest median latency, slowest first."""
        return sorted(self.entries.items(), key=lambda item: (-item[1].median, item[0]))[:count]

    def by_operator(self) -> dict[str, list[Measurement]]:
        """The entries by kind of operator, in alphabetical order."""
        found: dict[str, list[Measurement]] = {}
        for key, entry in self.entries.items():
            found.setdefault(OperatorSpec.from_key(key).operator, []).append(entry)
        return dict(sorted(found.items()))

    @property
    def median_spread(self) -> float:
        """Median of the entries' spreads, as a fraction of the latency."""
        return float(np.median([entry.spread for entry in self.entries.values()])) if self.entries else 0.0

    def summary(self) -> dict[str, Any]:
        """A summary as plain values: latencies in ms, spreads as fractions of the median."""
        medians = [entry.median for entry in self.entries.values()]
        return {
            "entries": len(medians),
            "operators": {name: len(entries) for name, entries in self.by_operator().items()},
            "fastest_ms": min(medians, default=0.0),
            "median_ms": float(np.median(medians)) if medians else 0.0,
            "slowest_ms": max(medians, default=0.0),
            "total_ms": float(sum(medians)),
            "median_spread": self.median_spread,
            "worst_spread": max((entry.spread for entry in self.entries.values()), default=0.0),
            "device": self.provenance.device.name,
            "backend": self.provenance.backend,
            "precision": self.provenance.precision,
            "input_size": list(self.provenance.input_size),
            "batch": self.provenance.batch,
            "threads": self.provenance.threads,
            "date": self.provenance.date,
        }

    def doubt(self) -> str | None:
        """A line that says that the device was not steady while it was measured; None if it was."""
        if self.median_spread < UNSTEADY:
            return None
        return (
            f"warning: the latencies of half of the operators vary by {100 * self.median_spread:.0f} % or more, usual "
            "is some 10 %: the device was busy or changed its clocks; measure again when it is idle, and compare with "
            "`dnas latency check`"
        )

    def to_mapping(self) -> dict[str, Any]:
        """Provenance and entries as plain containers."""
        rows = {
            key: {
                "latency_ms": entry.median,
                "p10_ms": entry.p10,
                "p90_ms": entry.p90,
                "repetitions": entry.repetitions,
                "rounds": entry.rounds,
            }
            for key, entry in self.entries.items()
        }
        return {"provenance": to_mapping(self.provenance), "entries": rows}

    def merge(self, other: LatencyTable) -> LatencyTable:
        """The union of both tables; of a key that both have, the entry with more timed calls.

        Raises :class:`UserError` if they were measured differently: their latencies would not be comparable.
        """
        found = differences(self.provenance, other.provenance)
        if found:
            raise UserError(f"the tables cannot be merged, they differ in {'; '.join(found)}")
        entries = dict(self.entries)
        for key, entry in other.entries.items():
            if key not in entries or entry.repetitions > entries[key].repetitions:
                entries[key] = entry
        return LatencyTable(self.provenance, entries, self.source)

    def diff(self, other: LatencyTable) -> TableDiff:
        """Compare two tables entry by entry, whatever they were measured on."""
        shared = {
            key: (entry.median, other.entries[key].median)
            for key, entry in self.entries.items()
            if key in other.entries
        }
        return TableDiff(
            latencies_ms=shared,
            only_first=tuple(key for key in self.entries if key not in other.entries),
            only_second=tuple(key for key in other.entries if key not in self.entries),
            measured_differently=tuple(differences(self.provenance, other.provenance)),
        )

    def _build_command(self) -> str:
        mine = self.provenance
        if not mine.effort:  # imported, not measured by dnas: no measurement can be added
            return f"dnas latency build {mine.space} --out NEW.json"
        command = mine.command or (
            f"dnas latency build {mine.space} --out FILE --device {mine.device.type} "
            f"--backend {mine.backend} --precision {mine.precision}{' --cache cold' * (mine.cache == 'cold')}"
        )
        words = [word for word in command_words(command) if word != "--resume"]
        if words[:3] == ["dnas", "latency", "bundle"]:  # measured on another device, from a new bundle
            return shlex.join(words)
        if self.source is not None and "--out" in words[:-1]:  # the table may have moved since
            words[words.index("--out") + 1] = str(self.source)
        return shlex.join([*words, "--resume"])


@dataclass(frozen=True)
class TableDiff:
    """Two tables compared: (first, second) latency in ms by key, and the keys that only one of them has."""

    latencies_ms: Mapping[str, tuple[float, float]]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    measured_differently: tuple[str, ...]

    @property
    def ratios(self) -> dict[str, float]:
        """Second latency over first by key, without entries whose first latency is 0."""
        return {key: second / first for key, (first, second) in self.latencies_ms.items() if first > 0}

    @property
    def median_relative_difference(self) -> float:
        """Median over the shared keys of |second - first| / first (0 without shared keys)."""
        values = [abs(ratio - 1) for ratio in self.ratios.values()]
        return float(np.median(values)) if values else 0.0

    def by_operator(self) -> dict[str, list[tuple[float, float]]]:
        """The (first, second) latencies in ms by kind of operator, in alphabetical order."""
        found: dict[str, list[tuple[float, float]]] = {}
        for key, pair in self.latencies_ms.items():
            found.setdefault(OperatorSpec.from_key(key).operator, []).append(pair)
        return dict(sorted(found.items()))

    def ratios_by_operator(self) -> dict[str, dict[str, float]]:
        """By kind of operator: number of shared entries, and median, p10 and p90 of second / first."""
        rows = {}
        for operator, pairs in self.by_operator().items():
            ratios = [second / first for first, second in pairs if first > 0]
            if ratios:
                p10, median, p90 = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
                rows[operator] = {"entries": len(ratios), "median": median, "p10": p10, "p90": p90}
        return rows

    def largest(self, count: int) -> list[tuple[str, float, float]]:
        """The ``count`` entries (key, first, second ms) whose ratio is furthest from 1, in either direction."""
        pairs = [(key, *pair) for key, pair in self.latencies_ms.items() if min(pair) > 0]
        return sorted(pairs, key=lambda row: (-abs(math.log(row[2] / row[1])), row[0]))[:count]

    def to_mapping(self, largest: int = 10) -> dict[str, Any]:
        """The comparison as plain values, with the ``largest`` differences."""
        return {
            "entries": len(self.latencies_ms),
            "median_relative_difference": self.median_relative_difference,
            "operators": self.ratios_by_operator(),
            "largest": [
                {"key": key, "first_ms": first, "second_ms": second, "ratio": second / first}
                for key, first, second in self.largest(largest)
            ],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "measured_differently": list(self.measured_differently),
        }


def _device_text(device: DeviceInfo) -> str:
    return f"{device.type} {device.name}" + (f" ({device.cores} cores)" if device.cores else "")


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
