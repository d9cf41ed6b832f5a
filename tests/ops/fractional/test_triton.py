"""The CUDA kernels. Without a GPU: in Triton's interpreter, which must be selected before Triton is imported."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnas.ops import fractional_conv2d
from dnas.ops.fractional import custom_op, triton_launch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from triton.runtime.errors import OutOfResources

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"

AGREEMENT = """
import torch
from dnas.ops.fractional.separable import separable_conv2d, separable_gradients
from dnas.ops.fractional.triton_launch import triton_conv2d, triton_gradients

torch.manual_seed(0)
CASES = [  # channels, out, groups, kernel, stride, height, width, rate, half
    (6, 4, 1, 3, 1, 9, 13, 1.3, False),
    (6, 4, 2, 3, 2, 9, 13, 2.7, False),
    (2, 2, 2, 3, 1, 5, 9, 3.0, False),
    (2, 4, 2, 5, 2, 3, 5, 1.6, False),
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


# Every kernel, dtype, layout, block and compute capability occurs, and the largest blocks in every dtype.
# ``python scripts/compile_kernels.py`` compiles all combinations.
COMPILED = [
    "convolution_kernel:fp32:tf32:nchw:64:80",
    "convolution_kernel:bf16:tf32:nhwc:16:89",
    "convolution_kernel:fp16:tf32:nchw:64:90",
    "weight_gradient_kernel:fp32:tf32:nhwc:64:89",
    "weight_gradient_kernel:bf16:tf32:nchw:64:90",
    "weight_gradient_kernel:fp16:tf32:nhwc:32:80",
    "weight_gradient_kernel:fp32:ieee:nhwc:32:90",
]


def test_kernels_fit_the_devices(tmp_path):  # over 10 s: each kernel takes 2 s to compile, which needs no GPU
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPTS / "compile_kernels.py", *COMPILED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [json.loads(line)["kernel"] for line in done.stdout.splitlines()] == COMPILED


class _KernelTooLarge:
    def __getitem__(self, grid):
        def launch(*args, **constants):
            raise OutOfResources(300_000, 232_448, "shared memory")

        return launch


@pytest.mark.parametrize("dilation", [2.0, 1.6])
def test_a_kernel_that_does_not_fit_is_replaced_by_the_separable_form(dilation, monkeypatch, caplog):
    def run():
        torch.manual_seed(0)
        x, weight = torch.randn(1, 4, 9, 8, requires_grad=True), torch.randn(2, 4, 3, 3, requires_grad=True)
        rate = torch.tensor(dilation, requires_grad=True)
        out = fractional_conv2d(x, weight, rate)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (x, weight, rate))]

    def too_large(x, *args, **kwargs):
        triton_launch._launch(_KernelTooLarge(), (1,), x)

    expected = run()
    monkeypatch.setattr(custom_op, "is_triton_supported", lambda x: True)
    monkeypatch.setattr(custom_op, "triton_conv2d", too_large)
    monkeypatch.setattr(custom_op, "triton_gradients", too_large)
    with caplog.at_level("DEBUG", logger=custom_op.__name__):
        found = run()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert len(caplog.messages) == 2
    assert "300000" in caplog.messages[0]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


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
