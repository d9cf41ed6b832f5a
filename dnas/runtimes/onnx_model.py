"""Conversion of a ``torch.export`` program to ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from dnas.errors import UserError
from dnas.runtimes.trace import quiet_torch, trace_operator

OPSET = 20
BFLOAT16_OPSET = 22  # the first with bfloat16 convolutions


def onnx_content(
    program: ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSET,
) -> bytes:
    """The program as the content of a valid ONNX file without paths of this machine."""
    import onnx  # a search imports this module for its latency table but does not need onnx

    try:
        with quiet_torch():
            exported = torch.onnx.export(
                program,
                input_names=list(input_names),
                output_names=None if output_names is None else list(output_names),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise UserError(f"the network cannot be written as ONNX: {str(error).strip()[:300]}") from error
    if exported is None:
        raise UserError("the network cannot be written as ONNX: torch.onnx.export returned nothing")
    model = exported.model_proto
    _strip(model)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def operator_onnx(module: nn.Module, shapes: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32) -> bytes:
    """A module with inputs of ``shapes`` as ONNX, BatchNorms folded; inputs, weights and outputs have ``dtype``."""
    program = trace_operator(module, shapes, dtype=dtype)
    with torch.inference_mode(False):
        names = [f"input_{index}" for index in range(len(shapes))]
        return onnx_content(program, names, opset=BFLOAT16_OPSET if dtype == torch.bfloat16 else OPSET)


def _strip(model: Any) -> None:
    """Remove the exporter's metadata: stack traces with paths of this machine, which can exceed the weights."""
    for holder in [model, model.graph, *model.functions]:
        _strip_graph(holder)


def _strip_graph(graph: Any) -> None:
    for group in ("node", "input", "output", "value_info", "initializer"):
        for item in getattr(graph, group, ()):
            if not isinstance(item, str):
                item.ClearField("metadata_props")
                item.ClearField("doc_string")
    for node in getattr(graph, "node", ()):
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _strip_graph(inner)
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
