"""Tracing a network as a ``torch.export`` program, with BatchNorms folded into the preceding convolutions.

The folding works on the exported graph. ``torch.fx.experimental.optimization.fuse`` needs symbolic tracing, which does
not work for networks that read the sizes of their inputs.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dnas.errors import UserError
from dnas.input_channels import input_channels

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def trace(
    network: nn.Module,
    input_size: tuple[int, int],
    *,
    batch: int | None = 1,
    fold_batch_norm: bool = True,
    precision: str = "fp32",
) -> ExportedProgram:
    """The network in eval mode on the CPU as a program for images (batch, 3, height, width).

    ``batch`` None makes the batch size dynamic. Precision ``fp16`` computes in half precision with float32 images and
    logits. The network is not changed. Raises :class:`UserError` if it cannot be traced.
    """
    height, width = input_size
    if height < 1 or width < 1 or (batch is not None and batch < 1):
        raise UserError(f"input size {height}x{width}, batch {batch}: expected integers of at least 1")
    if precision not in _DTYPES:
        raise UserError(f"unknown export precision {precision!r}, expected one of {', '.join(_DTYPES)}")
    module = copy.deepcopy(network).eval().requires_grad_(False).to("cpu", torch.float32)
    # A dynamic batch is traced with size 2: torch.export treats sizes 0 and 1 as constants.
    images = torch.zeros(2 if batch is None else batch, input_channels(module), height, width)
    program = _export(module, (images,), dynamic=batch is None)
    if fold_batch_norm:
        program = _export(_folded(program), (images,), dynamic=batch is None)
    if precision != "fp32":
        program = _export(_Cast(program, _DTYPES[precision]), (images,), dynamic=batch is None)
    return program


def trace_operator(
    module: nn.Module, shapes: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.float32
) -> ExportedProgram:
    """A module with one or more inputs of ``shapes`` (N, C, H, W), in eval mode on the CPU, BatchNorms folded.

    Unlike in :func:`trace`, inputs and outputs also have ``dtype``: an operator inside a network converts no types. The
    module is not changed. Raises :class:`UserError` if it cannot be traced.
    """
    # Measurements run in inference mode, whose tensors torch.export cannot trace.
    with torch.inference_mode(False):
        copied = copy.deepcopy(module).eval().requires_grad_(False).to("cpu", torch.float32)
        inputs = tuple(torch.zeros(tuple(shape)) for shape in shapes)
        program = _export(_folded(_export(copied, inputs)), inputs)
        if dtype != torch.float32:
            inputs = tuple(tensor.to(dtype) for tensor in inputs)
            program = _export(unguarded_module(program).to(dtype), inputs)
    return program


def _export(module: nn.Module, inputs: tuple[torch.Tensor, ...], *, dynamic: bool = False) -> ExportedProgram:
    shapes = ({0: Dim("batch", min=1)},) if dynamic else None
    try:
        with quiet_torch(), torch.no_grad():
            return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        kind = "with a dynamic batch size " if dynamic else ""
        size = "x".join(map(str, inputs[0].shape[2:]))
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"the network cannot be traced {kind}at {size}: {''.join(reason)[:300]}") from error


class _Cast(nn.Module):
    """A traced program that computes in ``dtype`` with float32 input and output."""

    def __init__(self, program: ExportedProgram, dtype: torch.dtype) -> None:
        super().__init__()
        self.program = unguarded_module(program).to(dtype)
        self.dtype = dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.program(images.to(self.dtype))
        return logits.float()


def unguarded_module(program: ExportedProgram) -> GraphModule:
    """The program as a module that runs the graph without checking input shapes."""
    module = program.module(check_guards=False)
    if not isinstance(module, GraphModule):
        raise TypeError(f"torch.export: expected a GraphModule, given {type(module).__name__}")
    return module


def _folded(program: ExportedProgram) -> GraphModule:
    """The program's graph with each BatchNorm folded into a convolution if it is the convolution's only reader."""
    module = unguarded_module(program)
    count = 0
    for node in list(module.graph.nodes):
        if node.target is not torch.ops.aten.batch_norm.default or not isinstance(node.args[0], Node):
            continue
        convolution: Node = node.args[0]
        if convolution.target is torch.ops.aten.conv2d.default and len(convolution.users) == 1:
            _fold(module, convolution, node, f"folded_{count}")
            count += 1
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _fold(module: GraphModule, convolution: Node, norm: Node, name: str) -> None:
    def value(argument: Any) -> torch.Tensor:
        tensor: torch.Tensor = attrgetter(argument.target)(module)
        return tensor.double()  # so that the folded weights are rounded only once

    def optional(argument: Any) -> torch.Tensor | None:
        return None if argument is None else value(argument)

    weight, *bias = convolution.args[1:3]
    scale, shift, mean, variance = norm.args[1:5]
    epsilon: Any = norm.args[7]
    fused = fuse_conv_bn_weights(
        value(weight),
        optional(*bias or [None]),
        value(mean),
        value(variance),
        epsilon,
        optional(scale),
        optional(shift),
    )
    with module.graph.inserting_before(convolution):
        arguments = []
        for kind, tensor in zip(("weight", "bias"), fused, strict=True):
            parameter = nn.Parameter(tensor.float(), requires_grad=False)
            module.register_parameter(f"{name}_{kind}", parameter)
            arguments.append(module.graph.get_attr(f"{name}_{kind}"))
    convolution.args = (convolution.args[0], *arguments, *convolution.args[3:])
    norm.replace_all_uses_with(convolution)
    module.graph.erase_node(norm)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Suppress warnings of torch about its own code, and its log of errors, which are raised as well."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL if logger.name == "torch.export" else logging.ERROR)
    try:
        with warnings.catch_warnings():
            for package in ("torch", "onnxscript", "onnx_ir", "copyreg"):
                for category in (DeprecationWarning, FutureWarning, UserWarning):
                    warnings.filterwarnings("ignore", category=category, module=rf"{package}(\.|$)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
