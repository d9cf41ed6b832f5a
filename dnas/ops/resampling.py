"""Bilinear resampling of small maps while training on a CPU, as products with the interpolation's matrices.

The library's loops take up to four times as long there, and its backward pass, which scatters, up to nine times
(`scripts/bench_search_step.py` has the step that they are part of). On large maps the loops win.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from dnas.ops.convolution import resize

WHOLE_UP_TO = 32
"""Pixels of a map up to which one matrix takes all of it; above, rows and columns have one each."""
ROWS_AND_COLUMNS_UP_TO = 4096
"""Pixels up to which two matrices are faster than the library's loops."""


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """:func:`~dnas.ops.convolution.resize` of (N, C, h, w) to ``size``, equal up to rounding."""
    height, width = x.shape[-2:]
    exact = x.dtype in (torch.float32, torch.float64)  # in bf16 the matrices would be rounded as well
    learning = x.requires_grad and torch.is_grad_enabled()
    if x.device.type != "cpu" or not exact or not learning or height * width > ROWS_AND_COLUMNS_UP_TO:
        return resize(x, size)
    rows, columns = _matrix(height, size[0], x.dtype), _matrix(width, size[1], x.dtype)
    with torch.autocast("cpu", enabled=False):
        if height * width > WHOLE_UP_TO:
            return torch.matmul(rows.t(), torch.matmul(x, columns))
        whole = _product_matrix(height, width, size, x.dtype)
        return torch.matmul(x.flatten(2), whole).view(*x.shape[:2], *size)


@functools.lru_cache(maxsize=256)
def _matrix(source: int, target: int, dtype: torch.dtype) -> Tensor:
    """(source, target): what the library makes of each unit vector."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(source, dtype=dtype)[:, None]
        return F.interpolate(unit, size=target, mode="linear", align_corners=False)[:, 0]


@functools.lru_cache(maxsize=256)
def _product_matrix(height: int, width: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(height * width, size[0] * size[1]): both directions at once."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.kron(_matrix(height, size[0], dtype), _matrix(width, size[1], dtype))
