"""Modules as TFLite models, by LiteRT Torch."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.errors import UserError


def require_litert() -> Any:
    """The package ``litert_torch``; :class:`UserError` if it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import litert_torch
    except ImportError:
        raise UserError('LiteRT Torch is not installed; install it with: pip install "dnas[tflite]"') from None
    return litert_torch


def operator_tflite(module: nn.Module, shapes: Sequence[Sequence[int]]) -> bytes:
    """A module with inputs of ``shapes`` (N, C, H, W) as TFLite in float32, BatchNorms folded.

    Its inputs and its output are (N, H, W, C), which is TFLite's own layout, so that it holds no transpositions that
    the network around it would not have either.
    """
    litert = require_litert()
    logging.getLogger("litert_torch").setLevel(logging.ERROR)
    last = litert.to_channel_last_io(module.eval(), args=list(range(len(shapes))), outputs=[0])
    inputs = tuple(torch.zeros(n, h, w, c) for n, c, h, w in shapes)
    with torch.inference_mode(False), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operator.tflite"
        litert.convert(last, inputs).export(str(path))
        return path.read_bytes()
