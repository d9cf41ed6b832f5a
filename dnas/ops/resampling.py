"""Bilinear resampling.

In training on a CPU, small maps are multiplied by interpolation matrices: PyTorch's loops take up to four times as
long, and their backward pass, which scatters, up to nine times. On large maps the loops are faster.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONE_MATRIX_UP_TO = 32
"""Maps of up to this many pixels are resized by one matrix, larger ones by two, for rows and columns."""
TWO_MATRICES_UP_TO = 4096
"""Up to this many pixels two matrices are faster than PyTorch's loops."""


def resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear resampling of (N, C, h, w) to (N, C, *size), without aligned corners.

    Without gradients, and in exported or compiled code, this is ``F.interpolate``.
    """
    height, width = size
    if not _use_matrices(x) or x.shape[-2] * x.shape[-1] > TWO_MATRICES_UP_TO:
        return _interpolated(x, height, width)
    rows, columns = _matrix(x.shape[-2], height, x.dtype), _matrix(x.shape[-1], width, x.dtype)
    with torch.autocast("cpu", enabled=False):
        if x.shape[-2] * x.shape[-1] > ONE_MATRIX_UP_TO:
            return torch.matmul(rows.t(), torch.matmul(x, columns))
        whole = _product_matrix(x.shape[-2], x.shape[-1], height, width, x.dtype)
        return torch.matmul(x.flatten(2), whole).view(*x.shape[:2], height, width)


class ResizeTo(nn.Module):
    """Bilinear resampling of a map to the size of another, as a module, which a latency table can price."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, H, W), H and W being those of ``like``."""
        return resize(x, like.shape[-2:])


def halve(x: Tensor) -> Tensor:
    """Bilinear resampling of (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
    height, width = x.shape[-2:]
    return _interpolated(x, (height + 1) // 2, (width + 1) // 2)


def _interpolated(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def _use_matrices(x: Tensor) -> bool:
    """Whether matrices may replace ``F.interpolate``: not in bf16, in which the matrices would be rounded, too."""
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return False
    has_gradient = x.requires_grad and torch.is_grad_enabled()
    return has_gradient and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@functools.lru_cache(maxsize=256)
def _matrix(source: int, target: int, dtype: torch.dtype) -> Tensor:
    """(source, target): the interpolation of each unit vector."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(source, dtype=dtype)[:, None]
        return F.interpolate(unit, size=target, mode="linear", align_corners=False)[:, 0]


@functools.lru_cache(maxsize=256)
def _product_matrix(height: int, width: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(height * width, rows * columns): the matrix for both axes."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.kron(_matrix(height, rows, dtype), _matrix(width, columns, dtype))
