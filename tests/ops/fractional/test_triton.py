"""The CUDA kernels. Without a GPU: in Triton's interpreter, which must be selected before Triton is imported."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from dnas.ops import fractional_conv2d

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

AGREEMENT = """
import torch
from dnas.ops.fractional.separable import separable_conv2d, separable_gradients
from dnas.ops.fractional.triton_launch import triton_conv2d, triton_gradients

torch.manual_seed(0)
CASES = [  # channels, out, groups, kernel, stride, height, width, rate, half
    (6, 4, 1, 3, 1, 9, 13, 1.3, False),
    (6, 4, 2, 3, 2, 9, 13, 2.7, False),
    (3, 3, 3, 3, 1, 7, 19, 3.0, False),
    (3, 6, 3, 5, 2, 6, 9, 1.6, False),
    (20, 18, 1, 3, 1, 5, 6, 25.2, False),
    (40, 36, 1, 3, 1, 4, 5, 1.4, False),
    (8, 8, 2, 3, 1, 8, 8, 1.5, True),
]
for channels, out, groups, kernel, stride, height, width, rate, half in CASES:
    dtype = torch.float16 if half else torch.float32
    x = torch.randn(2, channels, height, width).to(dtype)
    if stride == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(out, channels // groups, kernel, kernel).to(dtype), torch.randn(out).to(dtype)
    expected = separable_conv2d(x, weight, bias, rate, stride, groups)
    grad_output = torch.randn_like(expected)
    scalar = torch.tensor(rate)
    found = triton_conv2d(x, weight, bias, scalar, stride, groups)
    assert found.is_contiguous(memory_format=torch.channels_last) or stride == 1
    others = separable_gradients(grad_output, x, weight, rate, stride, groups)
    gradients = triton_gradients(grad_output, x, weight, scalar, stride, groups)
    for one, other in zip((found, *gradients), (expected, *others), strict=True):
        error = (one.float() - other.float()).abs().max() / (other.float().abs().max() + 1e-6)
        assert error < (1e-2 if half else 1e-5), (channels, groups, stride, rate, error)
for bad in (0.5, float("nan"), float("inf")):
    assert triton_conv2d(x, weight, None, torch.tensor(bad), 1, groups).isnan().all()
print("agreed")
"""


def test_kernels_agree_with_the_separable_form():  # over 10 s: the interpreter runs every program in Python
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AGREEMENT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip().endswith("agreed"), done.stderr[-2000:]


SHARED_MEMORY = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from dnas.ops.fractional import triton_kernels, triton_launch

FLOATS = ("source", "weight", "result", "grad_output", "partial_grad_weight", "partial_grad_rate", "rate_pointer")
SIZES = {"KERNEL_SIZE": 3, "BLOCK_POSITIONS": 128, "BLOCK_IN": 64, "BLOCK_OUT": 64, "PRECISION": "ieee"}
OPTIONS = {"num_warps": triton_launch._NUM_WARPS, "num_stages": triton_launch._NUM_STAGES}
for kernel, constants in (
    (triton_kernels.convolution_kernel, {**SIZES, "TRANSPOSED": False}),
    (triton_kernels.weight_gradient_kernel, {**SIZES, "NEEDS_RATE": True}),
):
    types = {name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}
    types.update((name, "*fp32") for name in FLOATS if name in types)
    print(compile(ASTSource(kernel, types, constants), GPUTarget("cuda", 90, 32), OPTIONS).metadata.shared)
"""


def test_largest_blocks_fit_the_shared_memory_of_an_h100(tmp_path):
    # Compiling for a GPU does not need one. 227 KB is the limit per thread block of compute capability 9.0.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHARED_MEMORY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    used = [int(line) for line in done.stdout.split()]
    assert len(used) == 2
    assert max(used) <= 227 * 1024


def test_triton_is_not_imported_for_tensors_on_the_cpu():
    program = (
        "import sys, torch, dnas.ops as o; "
        "o.fractional_conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), torch.tensor(1.5)); "
        "print('dnas.ops.fractional.triton_kernels' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_device(groups, dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 16, 21, 17), torch.randn(16, 16 // groups, 3, 3), torch.tensor(2.4)]
    results = []
    for device, own_dtype in (("cpu", torch.float32), ("cuda", dtype)):
        x, weight, rate = (t.to(device, own_dtype if t.dim() else torch.float32).requires_grad_() for t in tensors)
        output = fractional_conv2d(x, weight, rate, groups=groups)
        output.float().square().sum().backward()
        results.append([output.detach(), x.grad, weight.grad, rate.grad])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda.cpu().float(), cpu, rtol=5e-2, atol=5e-2 * cpu.abs().max().item())
