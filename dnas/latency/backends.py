"""How a module is made to run before it is measured: by PyTorch in three ways, or by another runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from dnas.errors import UserError
from dnas.latency.exported import OnnxRuntime, OpenVino, TensorRT
from dnas.latency.setup import MeasurementSetup
from dnas.latency.statistics import Run


class Backend(Protocol):
    """What runs modules. A new backend is one class and one line in :data:`BACKENDS`."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Why this backend cannot run on ``setup``, or None when it can; what is not installed is raised."""

    def versions(self) -> dict[str, str]:
        """Versions by name of what runs the modules besides PyTorch."""

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """A call without arguments that runs ``module`` once; module and inputs lie on the device already."""


class Eager:
    """PyTorch, operator by operator."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Eager runs everywhere."""
        return None

    def versions(self) -> dict[str, str]:
        """Nothing but PyTorch."""
        return {}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """The module itself."""
        arguments = tuple(inputs)
        return lambda: module(*arguments)


class Compiled:
    """``torch.compile`` with Inductor, for the static shapes of the inputs."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Inductor has code generators for CPUs and Nvidia GPUs."""
        return "it is offered on cpu and cuda" if setup.device.type == "mps" else None

    def versions(self) -> dict[str, str]:
        """Nothing but PyTorch."""
        return {}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """Export, then compile the exported graph.

        Modules of one class share the code object of their ``forward``; compiled directly, hundreds of them would pile
        up behind one chain of guards and, past torch's recompilation limit, silently run eagerly. An exported graph
        has code of its own.
        """
        arguments = tuple(inputs)
        with torch.inference_mode(False), torch.no_grad():
            graph = torch.export.export(module, arguments, strict=False).module()
        compiled = torch.compile(graph, fullgraph=True, dynamic=False)
        return lambda: compiled(*arguments)


class CudaGraph:
    """The eager module captured once into a CUDA graph and replayed: no launch cost of the host."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Graphs are a feature of CUDA."""
        return None if setup.device.type == "cuda" else "it needs --device cuda"

    def versions(self) -> dict[str, str]:
        """Nothing but PyTorch."""
        return {}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """Warm up on a side stream, as capture demands, then capture; the graph keeps its tensors alive."""
        arguments = tuple(inputs)
        stream: Any = torch.cuda.Stream
        side = stream(setup.device)
        side.wait_stream(torch.cuda.current_stream(setup.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                module(*arguments)
        torch.cuda.current_stream(setup.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = module(*arguments)
        held = (module, arguments, outputs)

        def replay(_held: object = held) -> None:
            graph.replay()

        return replay


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "eager": Eager(),
        "compiled": Compiled(),
        "cudagraph": CudaGraph(),
        "onnxruntime": OnnxRuntime(),
        "openvino": OpenVino(),
        "tensorrt": TensorRT(),
    }
)


def find_backend(setup: MeasurementSetup) -> Backend:
    """The backend that ``setup`` names; an unknown one, or one that cannot run there, raises :class:`UserError`."""
    backend = BACKENDS.get(setup.backend)
    if backend is None:
        raise UserError(f"backend {setup.backend!r} is unknown, known: {', '.join(BACKENDS)}")
    reason = backend.refuses(setup)
    if reason is not None:
        raise UserError(f"backend {setup.backend} cannot run {setup.precision} on {setup.device}: {reason}")
    return backend


def place(
    module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup
) -> tuple[nn.Module, list[torch.Tensor]]:
    """A copy of ``module`` in eval mode, and its inputs, on the setup's device in its type and memory format."""
    moved = copy.deepcopy(module).eval().requires_grad_(False)
    return place_owned(moved, setup), [_place_tensor(tensor, setup) for tensor in inputs]


def place_owned(module: nn.Module, setup: MeasurementSetup) -> nn.Module:
    """As :func:`place`, for a module that nobody else holds: moved instead of copied."""
    module = module.eval().requires_grad_(False).to(setup.device, setup.dtype)
    return module.to(memory_format=setup.layout)


def random_inputs(shapes: Sequence[tuple[int, int, int]], setup: MeasurementSetup) -> list[torch.Tensor]:
    """Normally distributed inputs of shape (batch, C, H, W), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn((setup.batch, *shape), generator=generator) for shape in shapes]
    return [_place_tensor(tensor, setup) for tensor in tensors]


def _place_tensor(tensor: torch.Tensor, setup: MeasurementSetup) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.to(setup.device)
    layout = setup.layout if tensor.dim() == 4 else torch.contiguous_format
    return tensor.to(setup.device, setup.dtype).contiguous(memory_format=layout)
