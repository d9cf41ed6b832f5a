"""An operator in INT8 as it runs inside a quantised network: integers in, integers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnas.runtimes.quantise import OnnxRuntimeQuantiser


@dataclass(frozen=True)
class Scale:
    """How the integers of an input or output stand for numbers: ``scale * (integer - zero_point)``; None for floats."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Int8Operator:
    """A quantised ONNX model without conversions at its ends, and what the integers there mean."""

    model: bytes
    inputs: tuple[Scale | None, ...]
    outputs: tuple[Scale | None, ...]

    def to_integers(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Float inputs as int8; what the model takes as floats stays."""
        return [
            tensor
            if kind is None
            else (tensor / kind.scale).round().add(kind.zero_point).clamp(-128, 127).to(torch.int8)
            for tensor, kind in zip(tensors, self.inputs, strict=True)
        ]

    def to_floats(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs of the model as floats."""
        return tuple(
            tensor if kind is None else (tensor.float() - kind.zero_point) * kind.scale
            for tensor, kind in zip(tensors, self.outputs, strict=True)
        )


def int8_operator(model: bytes, inputs: Sequence[Tensor]) -> Int8Operator:
    """Quantise the float32 ONNX ``model`` with its ``inputs`` as calibration, weights per channel.

    In a network an operator gets the integers of the one before. So the conversions from and to floats at the ends are
    removed, and the model takes and returns int8.
    """
    import onnx

    arrays = tuple(tensor.detach().cpu().float().numpy() for tensor in inputs)
    proto = onnx.load_from_string(OnnxRuntimeQuantiser(model, [arrays], whole=True).quantise())
    values = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    found_inputs = tuple(_integer_input(proto.graph, item, values, onnx) for item in proto.graph.input)
    found_outputs = tuple(_integer_output(proto.graph, item, values, onnx) for item in proto.graph.output)
    onnx.checker.check_model(proto)
    return Int8Operator(proto.SerializeToString(deterministic=True), found_inputs, found_outputs)


def _integer_input(graph: Any, item: Any, values: dict[str, Any], onnx: Any) -> Scale | None:
    readers = [node for node in graph.node if item.name in node.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return None
    quantise = readers[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == quantise.output[0]:
                node.input[index] = item.name
    graph.node.remove(quantise)
    item.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return _scale(quantise, values)


def _integer_output(graph: Any, item: Any, values: dict[str, Any], onnx: Any) -> Scale | None:
    makers = [node for node in graph.node if item.name in node.output]
    read = any(item.name in node.input for node in graph.node)
    if len(makers) != 1 or makers[0].op_type != "DequantizeLinear" or read:
        return None
    dequantise = makers[0]
    integers = dequantise.input[0]
    if not any(integers in node.output for node in graph.node):  # an input that is passed on
        return None
    graph.node.remove(dequantise)
    item.name = integers
    item.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return _scale(dequantise, values)


def _scale(node: Any, values: dict[str, Any]) -> Scale:
    return Scale(float(np.ravel(values[node.input[1]])[0]), int(np.ravel(values[node.input[2]])[0]))
