"""ONNX Runtime as a module.

``onnxruntime`` is imported on use: a search imports this module for its latency table but does not need the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dnas.errors import UserError
from dnas.runtimes.opaque import BindableModule, BoundRun, own_stream

_NUMPY_TYPES = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.uint8: np.uint8,
    torch.int8: np.int8,
}
_TORCH_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
}


class OnnxModule(BindableModule):
    """An ONNX Runtime session. On CUDA, inputs and outputs stay on the device."""

    def __init__(
        self,
        model: bytes | str,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        *,
        tf32: bool = False,
    ) -> None:
        """``model``: path or content of a file. ``threads``: CPU threads of one operator, None for one per core.

        On CUDA, ``tf32`` allows TF32 in float32 convolutions. Raises :class:`UserError` if ONNX Runtime cannot use the
        device: it would silently run on the CPU.
        """
        onnxruntime = import_onnxruntime()
        super().__init__(torch.device(device))
        provider = execution_provider(self.device)
        self.stream = own_stream(self.device)
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; its log would show texts of the file as they are
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model, options, providers=[(provider, _provider_options(self.device, tf32, self.stream))]
        )
        if (used := self.session.get_providers()[0]) != provider:
            raise UserError(
                f"ONNX Runtime could not use {provider} and would run on {used}: its CUDA and cuDNN libraries do not "
                "fit or are missing; install onnxruntime-gpu for the CUDA version of this machine, or use --device cpu"
            )
        self.input = self.session.get_inputs()[0]
        self.output = self.session.get_outputs()[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The first output, logits (N, classes, H, W) or classes (N, H, W), on the device of the session."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.session.run(None, {self.input.name: images.contiguous().numpy()})[0])
        images = images.contiguous()
        binding = self.session.io_binding()
        place = (self.device.type, self.device.index or 0)
        binding.bind_input(self.input.name, *place, _NUMPY_TYPES[images.dtype], tuple(images.shape), images.data_ptr())
        binding.bind_output(self.output.name, *place)
        torch.cuda.current_stream(self.device).synchronize()
        self.session.run_with_iobinding(binding)
        logits: torch.Tensor = torch.utils.dlpack.from_dlpack(binding.get_outputs()[0]._ortvalue)
        return logits

    def bind(self, inputs: Sequence[torch.Tensor]) -> BoundRun:
        """A function that runs the session once on these inputs, without copies between ONNX Runtime and PyTorch.

        The inputs are on the device of the session; all shapes in the model must be fixed.
        """
        held = [tensor.contiguous() for tensor in inputs]
        outputs = tuple(
            torch.empty(tuple(output.shape), dtype=_TORCH_TYPES[output.type], device=self.device)
            for output in self.session.get_outputs()
        )
        binding = self.session.io_binding()
        names = [node.name for node in (*self.session.get_inputs(), *self.session.get_outputs())]
        calls = [binding.bind_input] * len(held) + [binding.bind_output] * len(outputs)
        for call, name, tensor in zip(calls, names, (*held, *outputs), strict=True):
            place = (self.device.type, self.device.index or 0, _NUMPY_TYPES[tensor.dtype])
            call(name, *place, tuple(tensor.shape), tensor.data_ptr())
        session, options = self.session, import_onnxruntime().RunOptions()
        if self.device.type == "cuda":
            # Calls must not synchronise host and device, as with other backends.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def run(_held: object = held) -> tuple[torch.Tensor, ...]:
            session.run_with_iobinding(binding, options)
            return outputs

        return run


def import_onnxruntime() -> Any:
    """The ``onnxruntime`` package; :class:`UserError` that says what to install if it is missing or broken."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(
            f"ONNX Runtime cannot be imported ({error}); install either onnxruntime or, for a GPU, onnxruntime-gpu"
        ) from None


def execution_provider(device: torch.device) -> str:
    """The name of the execution provider for ``device``; :class:`UserError` if it is not installed."""
    if device.type == "cpu":
        return "CPUExecutionProvider"
    available = import_onnxruntime().get_available_providers()
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        return "CUDAExecutionProvider"
    raise UserError(
        f"the installed ONNX Runtime runs on {', '.join(available)} and not on {device}; use --device cpu, or replace "
        "it (both packages install the same files): pip uninstall onnxruntime; pip install --force-reinstall "
        "onnxruntime-gpu"
    )


def _provider_options(device: torch.device, tf32: bool, stream: torch.cuda.Stream | None) -> dict[str, str]:
    if device.type == "cpu":
        return {}
    options = {"device_id": str(device.index or 0), "use_tf32": str(int(tf32))}
    return options if stream is None else {**options, "user_compute_stream": str(stream.cuda_stream)}


def onnxruntime_version() -> str:
    """The version of ONNX Runtime."""
    return str(import_onnxruntime().__version__)
