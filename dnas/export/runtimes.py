"""Runtimes behind one face: a module of images (N, 3, H, W) that PyTorch code can call, compare and time."""

from __future__ import annotations

from typing import Any

import onnxruntime
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from typing_extensions import Self

from dnas.errors import UserError
from dnas.export.trace import unguarded_module


class OpaqueModule(nn.Module):
    """A module around something that PyTorch cannot copy, move or switch to eval mode."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class OnnxModule(OpaqueModule):
    """An ONNX Runtime session. On CUDA images and logits stay on the device."""

    def __init__(self, model: bytes | str, device: str | torch.device = "cpu", threads: int | None = None) -> None:
        """``model``: a file's path or content. ``threads``: CPU threads of one operator, None for one a core."""
        super().__init__(torch.device(device))
        onnxruntime.disable_telemetry_events()  # what is measured here is nobody else's business
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        self.session = onnxruntime.InferenceSession(model, options, providers=[_provider(self.device)])
        self.input = self.session.get_inputs()[0]
        self.output = self.session.get_outputs()[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W) on the device of the session."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.session.run(None, {self.input.name: images.contiguous().numpy()})[0])
        images = images.contiguous()
        binding = self.session.io_binding()
        place = (self.device.type, self.device.index or 0)
        binding.bind_input(self.input.name, *place, "float32", tuple(images.shape), images.data_ptr())
        binding.bind_output(self.output.name, *place)
        torch.cuda.current_stream(self.device).synchronize()
        self.session.run_with_iobinding(binding)
        logits: torch.Tensor = torch.utils.dlpack.from_dlpack(binding.get_outputs()[0]._ortvalue)
        return logits


def _provider(device: torch.device) -> str | tuple[str, dict[str, Any]]:
    if device.type == "cpu":
        return "CPUExecutionProvider"
    available = onnxruntime.get_available_providers()
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        return ("CUDAExecutionProvider", {"device_id": device.index or 0})
    raise UserError(
        f"ONNX Runtime here runs on {', '.join(available)} and not on {device}; use --device cpu or install "
        "onnxruntime-gpu in place of onnxruntime"
    )


class ProgramModule(OpaqueModule):
    """A ``torch.export`` program on ``device``, in the precision that it was exported in."""

    def __init__(self, program: ExportedProgram, device: str | torch.device = "cpu") -> None:
        super().__init__(torch.device(device))
        # In a tuple, where nn.Module does not see it: the graph refuses eval(), and its mixed types must not be cast.
        self._graph = (unguarded_module(move_to_device_pass(program, self.device)),)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W)."""
        logits: torch.Tensor = self._graph[0](images)
        return logits
