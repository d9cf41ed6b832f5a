"""ONNX export with a parity check, and reading of ONNX files with their metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata
from dnas.export.parity import Parity
from dnas.export.program import Prepared, prepare
from dnas.files import read_bytes, write_atomically
from dnas.runtimes import OnnxModule, onnx_content
from dnas.runtimes.onnx_model import OPSET

OLDEST_OPSET = 18  # the first that PyTorch's exporter writes; its conversion to older ones fails silently

_EXTERNAL = onnx.TensorProto.EXTERNAL


def export_onnx(
    network: nn.Module,
    out: str | Path,
    input_size: tuple[int, int],
    *,
    images: torch.Tensor | None = None,
    tolerance: float | None = None,
    opset: int = OPSET,
    **options: Any,
) -> Parity:
    """Write the network as an ONNX file with input ``images`` and output ``logits``.

    ``input_size`` is (height, width), fixed in the file unless ``dynamic_size``; the batch size is ``batch`` or, with
    ``dynamic_batch``, dynamic. With ``end_to_end`` the file takes images uint8 and returns ``classes`` uint8. All
    ``options`` are those of :func:`dnas.export.prepare`. The file is compared with the network in ONNX Runtime on
    ``images`` (N, 3, H, W), normalised or, for an end-to-end file, uint8; without them on random images. Classes,
    colours, sizes, normalisation, commit and licence are stored as metadata. Raises :class:`UserError`, and writes no
    file, if the network cannot be exported or the outputs differ.
    """
    prepared = prepare(network, input_size, **options)
    model = onnx_of(prepared, opset)
    parity = prepared.compare(OnnxModule(model), images, tolerance, f"{out}: the ONNX file")
    write_atomically(out, lambda stream: stream.write(model))
    return parity


def onnx_of(prepared: Prepared, opset: int = OPSET) -> bytes:
    """The content of the ONNX file of a traced network."""
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"opset {opset}: expected {OLDEST_OPSET} to {newest}")
    model = onnx_content(
        prepared.program, ["images"], [prepared.output_name], prepared.metadata.to_texts(), opset=opset
    )
    written = max(item.version for item in onnx.load_from_string(model).opset_import if item.domain == "")
    if written != opset:
        raise UserError(f"opset {opset}: PyTorch writes this network only in opset {written}; use that one")
    return model


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
    """The number of weights in an ONNX model: its floating-point and quantised initialisers.

    Scales of ``Resize`` and of quantisation do not count. A folded BatchNorm leaves only one bias per channel, so this
    is slightly less than in the PyTorch network.
    """
    quantisation = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    others = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    others |= {name for node in quantisation for name in node.input[1:]}
    quantised = {node.input[0] for node in quantisation}
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    return sum(
        math.prod(item.dims)
        for item in model.graph.initializer
        if item.dims and item.name not in others and (item.data_type in floating or item.name in quantised)
    )
