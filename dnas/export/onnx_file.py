"""ONNX export with a parity check, and reading of ONNX files with their metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata, describe
from dnas.export.parity import TOLERANCES, Parity, check_parity
from dnas.files import read_bytes, write_atomically
from dnas.runtimes import OnnxModule, onnx_content, trace

_EXTERNAL = onnx.TensorProto.EXTERNAL


def export_onnx(
    network: nn.Module,
    out: str | Path,
    input_size: tuple[int, int],
    *,
    dynamic_batch: bool = False,
    batch: int = 1,
    class_names: Iterable[str] = (),
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
    images: torch.Tensor | None = None,
    fold_batch_norm: bool = True,
    precision: str = "fp32",
    tolerance: float | None = None,
) -> Parity:
    """Write the network as an ONNX file (opset 20) with input ``images`` and output ``logits``.

    ``input_size`` is (height, width), fixed in the file; the batch size is ``batch`` or, with ``dynamic_batch``,
    dynamic. The file is compared with the network in ONNX Runtime on random images and on the normalised ``images``
    (N, 3, H, W). Class names, ``mean``, ``std``, input size, parameters and multiply-adds are stored as metadata.
    Raises :class:`UserError`, and writes no file, if the network cannot be exported or the outputs differ.
    """
    size = None if dynamic_batch else batch
    described = describe(
        network, input_size, class_names=tuple(class_names), mean=tuple(mean), std=tuple(std), precision=precision
    )
    model = onnx_bytes(
        network, input_size, batch=size, fold_batch_norm=fold_batch_norm, precision=precision, metadata=described
    )
    parity = check_parity(
        network,
        OnnxModule(model),
        input_size,
        batch=size,
        images=images,
        tolerance=TOLERANCES[precision] if tolerance is None else tolerance,
        what=f"{out}: the ONNX file",
    )
    write_atomically(out, lambda stream: stream.write(model))
    return parity


def onnx_bytes(
    network: nn.Module,
    input_size: tuple[int, int],
    *,
    batch: int | None = 1,
    fold_batch_norm: bool = True,
    precision: str = "fp32",
    metadata: ExportMetadata | None = None,
) -> bytes:
    """The network as the content of an ONNX file; ``batch`` None makes the batch size dynamic."""
    program = trace(network, input_size, batch=batch, fold_batch_norm=fold_batch_norm, precision=precision)
    texts = metadata.to_texts() if metadata is not None else None
    return onnx_content(program, ["images"], ["logits"], texts)


def read_onnx(path: str | Path) -> tuple[Any, ExportMetadata | None]:
    """The model (``onnx.ModelProto``) of an ONNX file, and its :class:`ExportMetadata` or None.

    A file that refers to data in other files is refused: it could name any file of this machine.
    """
    content = read_bytes(path, "ONNX file")
    try:
        model = onnx.load_model_from_string(content)
        outside = next((tensor.name for tensor in _tensors(model) if tensor.data_location == _EXTERNAL), None)
        if outside is not None:
            raise UserError(
                f"{path}: refused: its tensor {outside[:100]!r} lies in another file; export it with its data inside"
            )
        onnx.checker.check_model(model)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"{path}: not a valid ONNX file ({''.join(reason)[:200]}); export it again") from error
    return model, ExportMetadata.from_texts({item.key: item.value for item in model.metadata_props})


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors in a model: initialisers and constants, in subgraphs and functions too."""
    waiting = [message]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, onnx.TensorProto):
            yield inner
            continue
        for _, value in inner.ListFields():
            parts = value if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]
            waiting += [part for part in parts if hasattr(part, "ListFields")]


def count_initialisers(model: Any) -> int:
    """The number of weights in an ONNX model: its floating-point initialisers, except the scales of ``Resize``.

    A folded BatchNorm leaves only one bias per channel, so this is slightly less than in the PyTorch network.
    """
    shapes = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    count = 0
    for item in model.graph.initializer:
        if item.data_type in floating and item.name not in shapes and item.dims:
            size = 1
            for length in item.dims:
                size *= int(length)
            count += size
    return count
