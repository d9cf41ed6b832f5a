"""A ``torch.export`` program as a module."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from dnas.runtimes.opaque import OpaqueModule
from dnas.runtimes.trace import unguarded_module


class ProgramModule(OpaqueModule):
    """A ``torch.export`` program on ``device``, in the precision of its export."""

    def __init__(self, program: ExportedProgram, device: str | torch.device = "cpu") -> None:
        super().__init__(torch.device(device))
        # The tuple hides it from nn.Module: the graph does not support eval(), and its mixed types must not be cast.
        self._graph = (unguarded_module(move_to_device_pass(program, self.device)),)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W)."""
        logits: torch.Tensor = self._graph[0](images)
        return logits
