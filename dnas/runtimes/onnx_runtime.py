"""ONNX Runtime as a module.

``onnxruntime`` is imported on use: a search imports this module for its latency table but does not need the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dnas.errors import UserError
from dnas.runtimes.opaque import BoundRun, OpaqueModule, beside_current_stream

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


class OnnxModule(OpaqueModule):
    """An ONNX Runtime session. On CUDA, inputs and outputs stay on the device."""

    def __init__(
        self,
        model: bytes | str,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        *,
        tf32: bool = False,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """``model``: path or content of a file. ``threads``: CPU threads of one operator, None for one per core.

        On CUDA, ``tf32`` allows TF32 in float32 convolutions, and ``stream`` is the stream of the session; with None
        the session creates one.
        """
        import onnxruntime

        super().__init__(torch.device(device))
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        self.stream = stream
        self.session = onnxruntime.InferenceSession(
            model, options, providers=[execution_provider(self.device, tf32=tf32, stream=stream)]
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
        import onnxruntime

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
        session, options = self.session, onnxruntime.RunOptions()
        if self.device.type == "cpu":

            def run(_held: object = held) -> tuple[torch.Tensor, ...]:
                session.run_with_iobinding(binding, options)
                return outputs

            return run
        side = self.stream
        if side is None:
            raise ValueError("bind: a session on CUDA needs a PyTorch stream")
        # Calls must not synchronise host and device, as with other backends.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def queue(_held: object = held) -> tuple[torch.Tensor, ...]:
            beside_current_stream(lambda: session.run_with_iobinding(binding, options), side)
            return outputs

        return queue


def execution_provider(
    device: torch.device, *, tf32: bool = False, stream: torch.cuda.Stream | None = None
) -> str | tuple[str, dict[str, Any]]:
    """The execution provider for ``device`` with its options; :class:`UserError` if it is not installed."""
    if device.type == "cpu":
        return "CPUExecutionProvider"
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        options = {"device_id": str(device.index or 0), "use_tf32": str(int(tf32))}
        if stream is not None:
            options["user_compute_stream"] = str(stream.cuda_stream)
        return ("CUDAExecutionProvider", options)
    raise UserError(
        f"the installed ONNX Runtime runs on {', '.join(available)} and not on {device}; use --device cpu or install "
        "onnxruntime-gpu in place of onnxruntime"
    )


def onnxruntime_version() -> str:
    """The version of ONNX Runtime."""
    import onnxruntime

    return str(onnxruntime.__version__)
