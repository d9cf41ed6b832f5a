"""TensorRT export: an engine for this machine's GPU, built from the ONNX export, with a parity check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata
from dnas.export.onnx_file import onnx_of
from dnas.export.parity import Parity
from dnas.export.program import prepare
from dnas.files import read_bytes, read_json, write_atomically, write_json
from dnas.runtimes.tensorrt_runtime import WORKSPACE_BYTES, TensorRTModule, build_engine, import_tensorrt


def export_tensorrt(
    network: nn.Module,
    out: str | Path,
    input_size: tuple[int, int],
    *,
    images: torch.Tensor | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
    tolerance: float | None = None,
    **options: Any,
) -> Parity:
    """Build a TensorRT engine with fixed batch and input size for this machine's GPU, and compare it with the network.

    Precision ``fp32`` computes without TF32; ``fp16`` computes in half precision with float32 images and logits. The
    other ``options`` are those of :func:`dnas.export.prepare`, without dynamic sizes. The metadata is written to
    ``OUT.json``. Raises :class:`UserError`, and writes no file, if TensorRT or a CUDA device is missing, if the engine
    cannot be built, or if its output differs.
    """
    trt = check_buildable(options)
    prepared = prepare(network, input_size, **options)
    engine = build_engine(trt, onnx_of(prepared), workspace_bytes)
    parity = prepared.compare(TensorRTModule(engine), images, tolerance, f"{out}: the TensorRT engine")
    write_engine(out, engine, prepared.metadata)
    return parity


def check_buildable(options: Mapping[str, Any]) -> Any:
    """The ``tensorrt`` package; :class:`UserError` if no engine with these options can be built on this machine."""
    trt = import_tensorrt()
    if not torch.cuda.is_available():
        raise UserError(
            "a TensorRT engine is built on the GPU that runs it, and this machine has no usable CUDA device"
        )
    if options.get("dynamic_batch") or options.get("dynamic_size"):
        raise UserError("a TensorRT engine has fixed batch and image sizes; leave the dynamic ones out")
    return trt


def write_engine(out: str | Path, engine: bytes, metadata: ExportMetadata) -> None:
    """Write an engine, and its metadata beside it."""
    write_json(metadata_path(out), metadata.to_texts())
    write_atomically(out, lambda stream: stream.write(engine))


def metadata_path(engine: str | Path) -> Path:
    """The JSON file with the metadata of an engine."""
    return Path(f"{engine}.json")


def read_engine(path: str | Path) -> tuple[bytes, ExportMetadata | None]:
    """The content of an engine file, and its metadata or None if the metadata file is missing."""
    content = read_bytes(path, "TensorRT engine")
    metadata_file = metadata_path(path)
    if not metadata_file.is_file():
        return content, None
    values = read_json(metadata_file, "metadata of a TensorRT engine")
    metadata = ExportMetadata.from_texts(values) if isinstance(values, dict) else None
    if metadata is None:
        raise UserError(f"{metadata_file}: not the metadata of a TensorRT engine; export the engine again")
    return content, metadata
