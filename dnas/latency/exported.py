"""Backends that measure an export instead of the PyTorch module: ONNX Runtime, OpenVINO, TensorRT.

Each exports a module to ONNX for the shapes of its inputs (BatchNorms folded, as in a deployed network), loads it in
its runtime, and compares one run with the eager module before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dnas.device import device_name
from dnas.errors import UserError
from dnas.files import user_cache
from dnas.latency.setup import MeasurementSetup
from dnas.latency.statistics import DeviceRun, Run
from dnas.runtimes.int8_operator import Int8Operator, int8_operator
from dnas.runtimes.onnx_model import operator_onnx
from dnas.runtimes.onnx_runtime import OnnxModule, execution_provider, onnxruntime_version
from dnas.runtimes.opaque import BindableModule, BoundRun
from dnas.runtimes.openvino_runtime import OpenVinoModule, cpu_lacks, import_openvino
from dnas.runtimes.tensorrt_runtime import EngineCache, TensorRTModule, import_tensorrt

# Largest allowed difference from the eager module, relative to its largest output, or to 1 if that is larger.
# In lower precisions both round, in different places, so this only detects a runtime that computes something else.
TOLERANCES = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 5e-2, "bf16": 0.15, "int8": 0.3}


class OnnxRuntime:
    """ONNX Runtime with its CPU or CUDA execution provider."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """Half precision needs CUDA: on a CPU most operators would be cast to float32 and back."""
        known = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "tf32", "fp16")}.get(setup.device.type)
        if known is None:
            return "it is available on cpu and cuda"
        execution_provider(setup.device)
        return _refused(setup, known)

    def versions(self) -> dict[str, str]:
        """The version of ONNX Runtime."""
        return {"onnxruntime": onnxruntime_version()}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """A session whose inputs and outputs are bound to PyTorch's memory."""
        if setup.precision == "int8":
            return _prepare_int8(lambda model: OnnxModule(model, setup.device, setup.threads), module, inputs, setup)
        session = OnnxModule(_onnx(module, inputs, setup), setup.device, setup.threads, tf32=setup.precision == "tf32")
        return checked(session, module, inputs, setup)


class OpenVino:
    """OpenVINO on the CPU with a fixed precision."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """It needs a CPU, and a precision that OpenVINO reports for it."""
        openvino = import_openvino()
        if setup.device.type != "cpu":
            return "it is available on cpu"
        if cpu_lacks(openvino, setup.precision):
            return f"this CPU does not compute in {setup.precision}"
        return _refused(setup, ("fp32", "bf16", "int8"))

    def versions(self) -> dict[str, str]:
        """The version of OpenVINO."""
        return {"openvino": str(import_openvino().__version__)}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """A compiled model with one request, whose inputs and outputs are bound to PyTorch's memory."""
        if setup.precision == "int8":
            return _prepare_int8(lambda model: OpenVinoModule(model, "int8", setup.threads), module, inputs, setup)
        compiled = OpenVinoModule(_onnx(module, inputs, setup), setup.precision, setup.threads)
        return checked(compiled, module, inputs, setup)


class TensorRT:
    """A TensorRT engine, built for the GPU of this machine."""

    def refuses(self, setup: MeasurementSetup) -> str | None:
        """TensorRT needs an Nvidia GPU."""
        import_tensorrt()
        if setup.device.type != "cuda":
            return "it needs --device cuda"
        return _refused(setup, ("fp32", "tf32", "fp16", "bf16"))

    def versions(self) -> dict[str, str]:
        """The version of TensorRT."""
        return {"tensorrt": str(import_tensorrt().__version__)}

    def prepare(self, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
        """A strongly typed engine; one that was built before on this GPU is read from the user's cache folder."""
        model, tf32 = _onnx(module, inputs, setup), setup.precision == "tf32"
        trt = import_tensorrt()
        folder = user_cache() / "tensorrt" / f"{trt.__version__}-{device_name(setup.device)}".replace(" ", "_")
        return checked(
            TensorRTModule(EngineCache(folder).engine(trt, model, tf32=tf32), setup.device), module, inputs, setup
        )


class _AsFloats(BindableModule):
    """A runtime with an INT8 operator, with floats outside for a comparison."""

    def __init__(self, runtime: BindableModule, operator: Int8Operator) -> None:
        super().__init__(runtime.device)
        self._runtime, self._operator, self.stream = runtime, operator, runtime.stream

    def bind(self, inputs: Sequence[torch.Tensor]) -> BoundRun:
        """A function that runs the operator once on these numbers."""
        run = self._runtime.bind(self._operator.to_integers(inputs))
        return lambda: self._operator.to_floats(run())


def _prepare_int8(
    load: Callable[[bytes], BindableModule], module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup
) -> Run:
    """A quantised operator on int8 inputs and outputs; the weights keep the random values, which decide no latency."""
    operator = int8_operator(_onnx(module, inputs, setup), inputs)
    runtime = load(operator.model)
    checked(_AsFloats(runtime, operator), module, inputs, setup)
    return bound_run(runtime, operator.to_integers(inputs))


def bound_run(runtime: BindableModule, inputs: Sequence[torch.Tensor]) -> DeviceRun:
    """One run of a runtime on these inputs, to be timed on the runtime's own stream if it has one."""
    return DeviceRun(runtime.bind(inputs), stream=runtime.stream)


def checked(runtime: BindableModule, module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> Run:
    """A run of ``runtime``, after its outputs have been compared with those of the eager ``module``.

    Raises :class:`UserError` if they differ.
    """
    expected = module(*inputs)
    wanted = (expected,) if isinstance(expected, torch.Tensor) else _tensors(expected)
    bound = runtime.bind(inputs)
    if runtime.stream is not None:
        torch.cuda.synchronize(setup.device)  # the inputs have been written on another stream
    found = bound()
    if runtime.stream is not None:
        torch.cuda.synchronize(setup.device)
    if [tuple(tensor.shape) for tensor in found] != [tuple(tensor.shape) for tensor in wanted]:
        raise UserError(
            f"backend {setup.backend} returns shapes {[tuple(t.shape) for t in found]}, the PyTorch module "
            f"{[tuple(t.shape) for t in wanted]}; use another backend"
        )
    for mine, reference in zip(found, wanted, strict=True):
        difference, allowed = _difference(mine, reference, TOLERANCES[setup.precision])
        if not difference <= allowed:
            raise UserError(
                f"backend {setup.backend} does not compute what PyTorch computes: outputs differ by up to "
                f"{difference:.3g} in {setup.precision}, allowed is {allowed:.3g}; use another backend or precision"
            )
    return DeviceRun(bound, stream=runtime.stream)


def _difference(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> tuple[float, float]:
    """The largest difference where ``expected`` is finite (random weights can overflow), and the one allowed."""
    expected, found = expected.float(), found.float()
    finite = expected.isfinite()
    if not finite.any():
        return 0.0, tolerance
    reference = expected[finite]
    return (found[finite] - reference).abs().max().item(), tolerance * max(1.0, reference.abs().max().item())


def _tensors(outputs: Any) -> tuple[torch.Tensor, ...]:
    """The tensors in a dictionary or sequence that a module returns, in the order of its export."""
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return tuple(value for value in values if isinstance(value, torch.Tensor))


def _onnx(module: nn.Module, inputs: Sequence[torch.Tensor], setup: MeasurementSetup) -> bytes:
    return operator_onnx(module, [tuple(tensor.shape) for tensor in inputs], setup.dtype)


def _refused(setup: MeasurementSetup, precisions: Sequence[str]) -> str | None:
    if setup.precision not in precisions:
        return f"it computes in {', '.join(precisions)} there, given {setup.precision}"
    if setup.memory_format == "channels_last":
        return "the runtime chooses the memory format itself, leave --channels-last out"
    return None
