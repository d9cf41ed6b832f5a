"""TensorRT export: an engine for this machine's GPU, built from the ONNX export, with a parity check."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata, describe
from dnas.export.onnx_file import onnx_bytes
from dnas.export.parity import TOLERANCES, Parity, check_parity
from dnas.files import read_bytes, read_json, write_atomically, write_json
from dnas.runtimes.tensorrt_runtime import WORKSPACE_BYTES, TensorRTModule, build_engine, import_tensorrt


def export_tensorrt(
    network: nn.Module,
    out: str | Path,
    input_size: tuple[int, int],
    *,
    batch: int = 1,
    class_names: Iterable[str] = (),
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
    images: torch.Tensor | None = None,
    precision: str = "fp32",
    workspace_bytes: int = WORKSPACE_BYTES,
    tolerance: float | None = None,
) -> Parity:
    """Build a TensorRT engine with fixed batch and input size for this machine's GPU, and compare it with the network.

    Precision ``fp32`` computes without TF32; ``fp16`` computes in half precision with float32 images and logits. The
    metadata is written to ``OUT.json``. Raises :class:`UserError`, and writes no file, if TensorRT or a CUDA device is
    missing, if the engine cannot be built, or if its output differs.
    """
    trt = import_tensorrt()
    if not torch.cuda.is_available():
        raise UserError(
            "a TensorRT engine is built on the GPU that runs it, and this machine has no usable CUDA device"
        )
    described = describe(
        network, input_size, class_names=tuple(class_names), mean=tuple(mean), std=tuple(std), precision=precision
    )
    model = onnx_bytes(network, input_size, batch=batch, precision=precision, metadata=described)
    engine = build_engine(trt, model, workspace_bytes)
    parity = check_parity(
        network,
        TensorRTModule(engine),
        input_size,
        batch=batch,
        images=images,
        tolerance=TOLERANCES[precision] if tolerance is None else tolerance,
        what=f"{out}: the TensorRT engine",
    )
    write_json(metadata_path(out), described.to_texts())
    write_atomically(out, lambda stream: stream.write(engine))
    return parity


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
