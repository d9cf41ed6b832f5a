"""From the results of a bundle to a latency table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.config import Field, config, parse_config
from dnas.environment import utc_now
from dnas.errors import UserError
from dnas.files import read_json, read_text
from dnas.json_lines import read_lines
from dnas.latency.device import DeviceInfo
from dnas.latency.provenance import Provenance
from dnas.latency.remote.bundle import FORMAT, MANIFEST, SCHEMA_VERSION
from dnas.latency.statistics import Effort, Measurement, Round, summarise
from dnas.latency.table import LatencyTable

RESULTS = "results.jsonl"
BENCHMARK_MODEL_ROUNDS = 5
"""As in run_tflite.sh."""
_WHAT = "results of a latency bundle"
_INTEGERS = ("rounds", "extra_rounds", "most_samples")
_BACKENDS = {"onnx": "onnxruntime", "tflite": "tflite"}
"""What run.py runs files with, by their format; bundles of earlier versions name none and are ONNX."""
_TYPES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}


@config
class _Device:
    name: str
    memory_bytes: int = Field(ge=0)
    cores: int | None


@config
class _Session:
    """What ``run.py`` writes at the start of a session."""

    manifest: str
    date: str
    device: _Device
    provider: str
    threads: int = Field(ge=1)
    software: dict[str, str]
    before: dict[str, str]


@config
class _Round:
    samples_ms: tuple[float, ...] = Field(min_length=1)
    calls_per_sample: int = Field(ge=1)
    throttled: bool


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle; :class:`UserError` if the folder is none."""
    path = bundle / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{bundle}: no bundle ({MANIFEST} is missing); write one with dnas latency bundle SPACE --out DIR"
        )
    manifest = read_json(path, "manifest of a latency bundle")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not the manifest of a latency bundle")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {manifest.get('schema_version')}, expected {SCHEMA_VERSION}")
    if manifest.setdefault("file_format", "onnx") not in tuple(_BACKENDS):
        raise UserError(f"{path}: file_format {manifest['file_format']!r}, expected {' or '.join(_BACKENDS)}")
    return manifest


def collect(bundle: Path, out: Path) -> LatencyTable:
    """Write the table ``out`` of what was measured with ``bundle``, by ``run.py`` or else by ``run.sh``.

    Raises :class:`UserError` if something has not been measured yet, for results of another bundle, and for sessions on
    different devices or with different settings.
    """
    manifest = read_manifest(bundle)
    effort = _effort(manifest)
    if (bundle / RESULTS).exists():
        provenance, entries = _of_runner(bundle, manifest, effort)
    elif (bundle / "trtexec").is_dir():
        provenance, entries = _of_trtexec(bundle, manifest, effort)
    elif (bundle / "benchmark_model").is_dir():
        provenance, entries = _of_benchmark_model(bundle, manifest, effort)
    else:
        raise UserError(f"{bundle}: holds no results; run python3 run.py (or sh run.sh) in it on the device")
    keys = [row["key"] for row in manifest["operators"]]
    missing = [key for key in keys if key not in entries]
    if missing:
        raise UserError(
            f"{bundle}: {len(missing)} of {len(keys)} operators are not measured yet, the first {missing[0]!r}; run it "
            "on the device again, it continues"
        )
    table = LatencyTable(provenance, {key: entries[key] for key in keys}, out)
    table.save(out)
    return table


def _effort(manifest: Mapping[str, Any]) -> Effort:
    values: dict[str, Any] = {
        name: int(value) if name in _INTEGERS else float(value) for name, value in manifest["effort"].items()
    }
    return Effort(**values)


def _of_runner(bundle: Path, manifest: Mapping[str, Any], effort: Effort) -> tuple[Provenance, dict[str, Measurement]]:
    path = bundle / RESULTS
    sessions: list[_Session] = []
    rounds: dict[str, list[Round]] = {}
    seconds, after = 0.0, None
    for line in read_lines(path, _WHAT):
        record = line.record
        if not isinstance(record, dict):
            continue  # cut off by an interruption: only its own round is lost
        if "session" in record:
            sessions.append(parse_config(_Session, record["session"], f"{path}: session"))
        elif "finished" in record:
            seconds += float(record["finished"]["seconds"])
            after = record["finished"]["after"]
        elif "key" in record:
            found = parse_config(_Round, record.get("round", {}), f"{path}: {record['key']}")
            entry = Round(found.samples_ms, found.calls_per_sample, found.throttled)
            rounds.setdefault(record["key"], []).append(entry)
    if not sessions:
        raise UserError(f"{path}: names no device, its first line is damaged; delete it and measure again")
    first = sessions[0]
    _check_sessions(path, sessions, str(manifest["id"]))
    kind = _TYPES.get(first.provider, first.provider.removesuffix("ExecutionProvider").lower())
    provenance = _provenance(
        manifest,
        device=DeviceInfo(
            type=kind,
            name=first.device.name,
            memory_bytes=first.device.memory_bytes,
            cores=first.device.cores if kind == "cpu" else None,
        ),
        backend=_BACKENDS[manifest["file_format"]],
        threads=first.threads,
        software=first.software,
        date=sessions[-1].date,
        seconds=round(seconds, 3),
        sittings=len(sessions),
        before=first.before,
        after=after or {},
        notes=f"measured on the device by run.py of a bundle, {first.provider}",
    )
    complete = {key: found for key, found in rounds.items() if len(found) >= effort.rounds}
    return provenance, {key: summarise(found, effort) for key, found in complete.items()}


def _check_sessions(path: Path, sessions: list[_Session], expected: str) -> None:
    for session in sessions:
        if session.manifest != expected:
            raise UserError(f"{path}: results of another bundle (its operators differ); measure with this one")
        for name in ("device", "provider", "threads", "software"):
            one, other = getattr(sessions[0], name), getattr(session, name)
            if one != other:
                raise UserError(
                    f"{path}: sessions with different {name}: {one} and {other}; delete the file and measure again"
                )


def _of_trtexec(bundle: Path, manifest: Mapping[str, Any], effort: Effort) -> tuple[Provenance, dict[str, Measurement]]:
    folder = bundle / "trtexec"
    entries = {}
    for row in manifest["operators"]:
        path = folder / f"{Path(row['file']).stem}.json"
        if path.exists():
            entries[row["key"]] = summarise([Round(_compute_times(path), 1)], effort)
    fields = [part.strip() for part in _line(folder / "device.txt").split(",")]
    if not fields[0]:
        raise UserError(f"{folder / 'device.txt'}: names no device; write its name into this file")
    memory = int(fields[1]) << 20 if len(fields) > 1 and fields[1].isdecimal() else 0
    software = {"tensorrt": _line(folder / "version.txt") or "unknown"} | (
        {"driver": fields[2]} if len(fields) > 2 else {}
    )
    provenance = _provenance(
        manifest,
        device=DeviceInfo(type="cuda", name=fields[0], memory_bytes=memory),
        backend="tensorrt",
        threads=1,
        software=software,
        date=utc_now(),
        seconds=0.0,
        sittings=1,
        before={},
        after={},
        notes="measured on the device by trtexec, run.sh of a bundle",
    )
    return provenance, entries


def _compute_times(path: Path) -> tuple[float, ...]:
    """The compute times in ms that trtexec exported."""
    rows = read_json(path, "times of trtexec")
    try:
        times = tuple(float(row["computeMs"]) for row in rows)
    except (KeyError, TypeError, ValueError):
        times = ()
    if not times or min(times) < 0:
        raise UserError(f"{path}: holds no computeMs, expected the exported times of trtexec; delete it, measure again")
    return times


def _of_benchmark_model(
    bundle: Path, manifest: Mapping[str, Any], effort: Effort
) -> tuple[Provenance, dict[str, Measurement]]:
    folder = bundle / "benchmark_model"
    settings = re.fullmatch(r"threads=(\d+) arguments=(.*)", _line(folder / "settings.txt"))
    name = _line(folder / "device.txt")
    if settings is None:
        raise UserError(f"{folder / 'settings.txt'}: damaged; delete {folder} and measure again")
    if not name:
        raise UserError(f"{folder / 'device.txt'}: names no device; write its name into this file")
    entries = {}
    for row in manifest["operators"]:
        paths = [folder / f"{Path(row['file']).stem}.{number}.txt" for number in range(1, BENCHMARK_MODEL_ROUNDS + 1)]
        if all(path.exists() for path in paths):
            entries[row["key"]] = summarise([_benchmark_round(path) for path in paths], effort)
    provenance = _provenance(
        manifest,
        device=DeviceInfo(type="cpu", name=name, memory_bytes=0),
        backend="tflite",
        threads=int(settings[1]),
        software={},
        date=utc_now(),
        seconds=0.0,
        sittings=1,
        before={},
        after={},
        notes=f"measured on the device by benchmark_model {settings[2]}".strip() + ", run.sh of a bundle",
    )
    return provenance, entries


def _benchmark_round(path: Path) -> Round:
    """The timed calls of one run of benchmark_model: their median, or their mean if it prints no median."""
    found = None
    for match in re.finditer(r"count=(\d+) first=\S+ curr=\S+ min=\S+ max=\S+ avg=(\S+).*", read_text(path)):
        median = re.search(r"median=(\S+)", match[0])
        found = match[1], match[2] if median is None else median[1]
    try:
        calls, microseconds = (0, 0.0) if found is None else (int(found[0]), float(found[1]))
    except ValueError:
        calls, microseconds = 0, 0.0
    if calls < 1 or not 0 < microseconds < math.inf:
        raise UserError(f"{path}: holds no times of benchmark_model (count=... avg=...); delete it and measure again")
    return Round((microseconds / 1e3,), calls)


def _line(path: Path) -> str:
    lines = read_text(path).splitlines() if path.exists() else []
    return lines[0].strip() if lines else ""


def _provenance(manifest: Mapping[str, Any], **measured: Any) -> Provenance:
    height, width = manifest["input_size"]
    return Provenance(
        space=manifest["space"],
        input_size=(height, width),
        precision=manifest["precision"],
        memory_format="contiguous",
        batch=manifest["batch"],
        effort=manifest["effort"],
        commit=manifest["commit"],
        command=manifest["command"],
        **measured,
    )
