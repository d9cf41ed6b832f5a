"""OpenVINO as a module: an optional runtime for CPUs, with explicit precision."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dnas.errors import UserError
from dnas.runtimes.opaque import BindableModule, BoundRun

# OpenVINO's names of precisions: in the hint for a model, and in the list of a device's capabilities.
# A quantised model has float32 between its integer operators.
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
_CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "int8": "INT8"}


def import_openvino() -> Any:
    """The ``openvino`` package; :class:`UserError` naming the extra if it is not installed."""
    try:
        with without("openvino_telemetry"):
            openvino = importlib.import_module("openvino")
    except ImportError:
        raise UserError('OpenVINO is not installed; install it with: pip install "dnas[openvino]"') from None
    _core(openvino)
    return openvino


@functools.cache
def _core(openvino: Any) -> Any:
    """The only ``Core`` of this process, kept until it ends: without a ``Core``, OpenVINO unloads its libraries.

    Their fork handlers would stay registered and crash the process when it forks.
    """
    return openvino.Core()


@contextmanager
def without(package: str) -> Iterator[None]:
    """Hide ``package`` during an import: OpenVINO and NNCF would send telemetry from a background thread."""
    hidden = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if hidden is not None:
            sys.modules[package] = hidden


def cpu_lacks(openvino: Any, precision: str) -> bool:
    """Whether OpenVINO would emulate or refuse this precision on the CPU of this machine."""
    known = _core(openvino).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return _CAPABILITIES.get(precision) not in known


class OpenVinoModule(BindableModule):
    """A model compiled by OpenVINO for the CPU, for one request at a time."""

    def __init__(self, model: bytes, precision: str = "fp32", threads: int | None = None) -> None:
        """``model`` is the content of an ONNX file; with ``threads`` None OpenVINO chooses their number.

        ``precision`` is enforced: by default OpenVINO computes float32 models in bfloat16 if the CPU supports it.
        """
        super().__init__(torch.device("cpu"))
        self.stream = None
        self._openvino = import_openvino()
        core = _core(self._openvino)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self.compiled = core.compile_model(core.read_model(model), "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot load this model: {str(error).strip().splitlines()[-1][:300]}") from error
        self._request = self.compiled.create_infer_request()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The first output for float32 images (N, 3, H, W)."""
        return torch.from_numpy(self._request.infer([images.contiguous().numpy()], share_inputs=True)[0])

    def bind(self, inputs: Sequence[torch.Tensor]) -> BoundRun:
        """A function that runs the model once on these inputs, without copies between OpenVINO and PyTorch.

        The inputs have the model's types; all shapes in the model must be fixed.
        """
        held = [tensor.contiguous() for tensor in inputs]
        types = {getattr(self._openvino.Type, name): value for name, value in _TYPES.items()}
        outputs = tuple(
            torch.empty(tuple(port.get_shape()), dtype=types[port.get_element_type()]) for port in self.compiled.outputs
        )
        request = self.compiled.create_infer_request()
        for index, tensor in enumerate(held):
            request.set_input_tensor(index, self._shared(tensor))
        for index, tensor in enumerate(outputs):
            request.set_output_tensor(index, self._shared(tensor))

        def run(_held: object = held) -> tuple[torch.Tensor, ...]:
            request.infer(share_outputs=True)
            return outputs

        return run

    def _shared(self, tensor: torch.Tensor) -> Any:
        """OpenVINO's view of a tensor's memory; bfloat16, which NumPy does not have, is passed as int16."""
        if tensor.dtype == torch.bfloat16:
            shape = self._openvino.Shape(list(tensor.shape))
            return self._openvino.Tensor(tensor.view(torch.int16).numpy(), shape, self._openvino.Type.bf16)
        return self._openvino.Tensor(tensor.numpy(), shared_memory=True)


_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8, "u8": torch.uint8}
