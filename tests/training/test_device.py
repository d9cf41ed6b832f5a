from __future__ import annotations

import pytest
import torch

from dnas.errors import UserError
from dnas.training import autocast, make_scaler, peak_memory_mb, resolve_precision

CPU = torch.device("cpu")


def test_precisions_on_the_cpu():
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        resolve_precision("fp16", CPU)
    left, right = torch.randn(4, 4), torch.randn(4, 4)
    with autocast(CPU, "bf16"):
        assert (left @ right).dtype == torch.bfloat16
    with autocast(CPU, "auto"):
        assert (left @ right).dtype == torch.float32
    assert not make_scaler(CPU, "auto").is_enabled()


def test_peak_memory_is_that_of_this_process():
    before = peak_memory_mb(CPU)
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert before > 50
    assert peak_memory_mb(CPU) >= max(before, block.numel() / 2**20)
