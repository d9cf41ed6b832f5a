"""Writing a bundle: every operator of an inventory as a file, with programs that measure them on another device."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from dnas.environment import package_versions, source_commit, utc_now
from dnas.errors import UserError
from dnas.files import write_atomically, write_json
from dnas.latency.backends import place_owned, random_inputs
from dnas.latency.provenance import portable_command
from dnas.latency.setup import MeasurementSetup
from dnas.latency.spec import InventoryItem
from dnas.latency.statistics import Effort
from dnas.progress import NoProgress, Progress
from dnas.runtimes import operator_onnx
from dnas.runtimes.int8_operator import int8_operator
from dnas.runtimes.tflite_model import operator_tflite, require_litert

FORMAT = "dnas latency bundle"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "tflite": ("fp32",)}
"""Precisions of the operators, by the format of their files."""
PROGRAMS = {
    "onnx": {"run.py": "run.py", "run.sh": "run.sh"},
    "tflite": {"run.py": "run.py", "run.sh": "run_tflite.sh"},
}
"""The programs of a bundle and their sources, by the format."""
_TYPES = {"fp32": "float32", "fp16": "float16"}


def write_bundle(
    inventory: Sequence[InventoryItem],
    out: Path,
    *,
    space: str,
    input_size: tuple[int, int],
    file_format: str = "onnx",
    precision: str = "fp32",
    batch: int = 1,
    effort: Effort | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the bundle ``out`` and return its manifest: a folder ``operators``, ``run.py`` and ``run.sh``.

    ``file_format`` "onnx": ``run.py`` needs Python with numpy and onnxruntime, ``run.sh`` a shell and ``trtexec``.
    "tflite": ``run.py`` needs numpy and ai-edge-litert (or tflite-runtime), ``run.sh`` a shell and ``benchmark_model``;
    writing it needs ``litert_torch``. Operators in INT8 take and return integers, as inside a network. Raises
    :class:`UserError` for an unknown format or precision, and if there is a bundle already.
    """
    if file_format not in PRECISIONS:
        raise UserError(f"format {file_format!r} of a bundle: expected {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[file_format]:
        known = ", ".join(PRECISIONS[file_format])
        raise UserError(f"precision {precision!r} of a bundle of {file_format} files: expected {known}")
    if (out / MANIFEST).exists():
        raise UserError(f"{out}: holds a bundle already; give another folder, or delete it")
    if file_format == "tflite":
        require_litert()  # before anything is written
    progress = progress or NoProgress()
    items = {item.spec.key: item for item in reversed(inventory)}
    progress.begin(f"export {len(items)} operators", len(items))
    setup = MeasurementSetup(
        device=torch.device("cpu"),
        backend="onnxruntime",
        precision="fp32",
        memory_format="contiguous",
        threads=1,
        batch=batch,
    )
    rows = []
    for number, (key, item) in enumerate(sorted(items.items())):
        name = f"operators/{number:04d}.{file_format}"
        if file_format == "tflite":
            content, inputs = _tflite(item, setup)
        else:
            content, inputs = _onnx(item, setup, precision)
        _write(out / name, content)
        rows.append({"key": key, "file": name, "sha256": hashlib.sha256(content).hexdigest(), "inputs": inputs})
        progress.advance()
    for program, source in PROGRAMS[file_format].items():
        _write(out / program, (resources.files("dnas.latency.remote") / source).read_bytes())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "space": space,
        "input_size": list(input_size),
        "batch": batch,
        "file_format": file_format,
        "precision": precision,
        "effort": {name: float(value) for name, value in dataclasses.asdict(effort or Effort()).items()},
        "command": None if command is None else portable_command(command),
        "commit": source_commit(),
        "software": package_versions(),
        "date": utc_now(),
        "operators": rows,
    }
    manifest["id"] = hashlib.sha256(repr(sorted((row["key"], row["sha256"]) for row in rows)).encode()).hexdigest()[:16]
    write_json(out / MANIFEST, manifest)  # last: its presence makes the folder a bundle
    return out / MANIFEST


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda stream: stream.write(content))


def _onnx(item: InventoryItem, setup: MeasurementSetup, precision: str) -> tuple[bytes, list[dict[str, Any]]]:
    """The ONNX file of an operator, and its inputs."""
    shapes = [[setup.batch, *shape] for shape in item.spec.inputs]
    module = place_owned(item.build(), setup)
    if precision == "int8":
        operator = int8_operator(operator_onnx(module, shapes), random_inputs(item.spec.inputs, setup))
        content, kinds = operator.model, ["float32" if kind is None else "int8" for kind in operator.inputs]
    else:
        dtype = torch.float16 if precision == "fp16" else torch.float32
        content, kinds = operator_onnx(module, shapes, dtype), [_TYPES[precision]] * len(shapes)
    return content, [
        {"name": f"input_{index}", "shape": shape, "type": kind}
        for index, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]


def _tflite(item: InventoryItem, setup: MeasurementSetup) -> tuple[bytes, list[dict[str, Any]]]:
    """The TFLite file of an operator, and its inputs (N, H, W, C) in order."""
    shapes = [(setup.batch, *shape) for shape in item.spec.inputs]
    content = operator_tflite(place_owned(item.build(), setup), shapes)
    return content, [{"shape": [n, h, w, c], "type": "float32"} for n, c, h, w in shapes]
