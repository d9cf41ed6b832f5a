"""Backends that run a module to be measured: PyTorch in three modes, or another runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from dnas.errors import UserError
from dnas.latency.exported import OnnxRuntime, OpenVino, TensorRT, bound_run
from dnas.latency.setup import CudaStopwatch, MeasurementSetup
from dnas.latency.statistics import DeviceRun, Run, warm_up
from dnas.runtimes import BindableModule

GRAPH_S = 3e-3
"""Seconds that the calls in one CUDA graph take together: its launch, some microseconds, does not matter."""
MOST_CALLS = 1000


class Backend(Protocol):
    """Runs modules. A new backend is one class and one line in :data:`BACKENDS`."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Why this backend cannot run ``setup``, None if it can; a missing package raises :class:`UserError`."""

    def versions(self) -> dict[str, str]:
        """Versions by name of the software that runs the modules, PyTorch excepted."""

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """A function without arguments that runs ``module`` once; module and inputs are on the device already."""


_FLOATS_ONLY = "PyTorch computes in floating point there; use --backend onnxruntime or openvino"


class Eager:
    """PyTorch, operator by operator."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Eager mode runs on every device, but not in INT8."""
        return _FLOATS_ONLY if setup.precision == "int8" else None

    def versions(self) -> dict[str, str]:
        """Nothing but PyTorch."""
        return {}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """The module itself, or the bound run of a module around another runtime, as in that runtime's backend."""
        arguments = tuple(inputs)
        if isinstance(module, BindableModule):
            return bound_run(module, arguments)
        return lambda: module(*arguments)


class Compiled:
    """``torch.compile`` with Inductor, for the static shapes of the inputs."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Inductor has code generators for CPUs and Nvidia GPUs."""
        if setup.precision == "int8":
            return _FLOATS_ONLY
        return "it is available on cpu and cuda" if setup.device.type == "mps" else None

    def versions(self) -> dict[str, str]:
        """Nothing but PyTorch."""
        return {}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """Export, then compile the exported graph.

        Modules of one class share the code object of their ``forward``. Compiled directly, hundreds of them would share
        one chain of guards and, beyond torch's recompilation limit, silently run in eager mode. An exported graph has
        its own code.
        """
        arguments = tuple(inputs)
        with torch.inference_mode(False), torch.no_grad():
            graph = torch.export.export(module, arguments, strict=False).module()
        compiled = torch.compile(graph, fullgraph=True, dynamic=False)
        return lambda: compiled(*arguments)


class CudaGraph:
    """Many calls of the eager module in one CUDA graph: what the device needs, not what launching its kernels takes.

    A graph of one call would still take the host as long to replay as a small operator takes to run.
    """

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """CUDA graphs need a CUDA device."""
        if setup.precision == "int8":
            return _FLOATS_ONLY
        return None if setup.device.type == "cuda" else "it needs --device cuda"

    def versions(self) -> dict[str, str]:
        """Nothing but PyTorch."""
        return {}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """Capture one call to see how long it takes, then as many as take some milliseconds.

        With cold caches a graph holds one call, as the caches are emptied before each. The function keeps the tensors
        alive. Raises :class:`UserError` for a module that cannot be captured because it synchronises with the host.
        """
        arguments = tuple(inputs)
        new_stream: Any = torch.cuda.Stream
        side = new_stream(setup.device)
        graph = capture(module, arguments, 1, side)
        calls = 1
        if setup.cache == "warm":
            calls = calls_per_graph(warm_up(CudaStopwatch(setup.device), graph.replay, 1e-3))
            graph = capture(module, arguments, calls, side)

        def replay(_held: object = (module, arguments)) -> None:
            graph.replay()

        return DeviceRun(replay, calls)


def capture(module: nn.Module, arguments: Sequence[torch.Tensor], calls: int, side: Any) -> Any:
    """A CUDA graph of ``calls`` calls, captured on the stream ``side`` after warming up there, as capturing requires.

    Raises :class:`UserError` for a module that cannot be captured.
    """
    current = torch.cuda.current_stream(side.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(3):
            module(*arguments)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side):
            for _ in range(calls):
                module(*arguments)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f"{type(module).__name__} cannot be captured into a CUDA graph ({str(error).splitlines()[0]}); "
            "use --backend eager"
        ) from error
    return graph


def calls_per_graph(seconds: float) -> int:
    """The number of calls of ``seconds`` each that one graph holds: some milliseconds, at most 1000 calls."""
    return max(1, min(MOST_CALLS, round(GRAPH_S / seconds)))


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
    """The backend of ``setup``; one that is unknown or cannot run this setup raises :class:`UserError`."""
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
    """A copy of ``module`` in eval mode and its inputs, in the device, type and memory format of ``setup``."""
    moved = copy.deepcopy(module).eval().requires_grad_(False)
    return place_owned(moved, setup), [_place_tensor(tensor, setup) for tensor in inputs]


def place_owned(module: nn.Module, setup: MeasurementSetup) -> nn.Module:
    """As :func:`place`, but without a copy: ``module`` itself is moved."""
    module = module.eval().requires_grad_(False).to(setup.device, setup.dtype)
    return module.to(memory_format=setup.layout)


def random_inputs(shapes: Sequence[tuple[int, int, int]], setup: MeasurementSetup) -> list[torch.Tensor]:
    """Normally distributed inputs (batch, C, H, W), the same in every call."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn((setup.batch, *shape), generator=generator) for shape in shapes]
    return [_place_tensor(tensor, setup) for tensor in tensors]


def _place_tensor(tensor: torch.Tensor, setup: MeasurementSetup) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.to(setup.device)
    layout = setup.layout if tensor.dim() == 4 else torch.contiguous_format
    return tensor.to(setup.device, setup.dtype).contiguous(memory_format=layout)
