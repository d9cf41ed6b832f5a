"""Tensors on ``cuda`` without a GPU: shapes and devices are real, values are not.

PyTorch's ``FakeTensorMode`` makes them, and raises where devices are mixed. A few lines of C++, compiled here, answer
what PyTorch asks of the device, so that backward passes run, too. Values that the host reads are 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

ROOT = Path(__file__).resolve().parents[2]
# Operators that launch no kernel: views, and allocation of uninitialised memory.
VIEWS = {
    *("view", "_unsafe_view", "expand", "t", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze"),
    *("detach", "alias", "as_strided", "split", "split_with_sizes", "chunk", "unbind", "diagonal", "lift_fresh"),
    *("unfold", "is_same_size", "set_", "resize_"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}
GPU = torch.device("cuda", 0)
# What PyTorch refuses on CUDA where only deterministic algorithms are allowed, of what networks and losses may use.
NOT_DETERMINISTIC = {
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "grid_sampler_2d_backward"),
    *("nll_loss_forward", "nll_loss2d_forward", "histc", "kthvalue", "median", "put_", "reflection_pad2d_backward"),
}


class Device(TorchDispatchMode):
    """Counts the kernels that a GPU would be given (a multi-tensor operator is one), and what the host waits for."""

    def __init__(self):
        super().__init__()
        self.launches, self.waits = Counter(), Counter()

    def wait(self, what):
        frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(str(ROOT / "tests"))]
        own = [frame for frame in frames if frame.filename.startswith(str(ROOT))]
        place = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else "?"
        self.waits[f"{what} in {place}"] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function._schema.name.split("::")[1]
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None  # fake values need none, and it is one of the CPU
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == "_local_scalar_dense":
            if given[0].device.type == "cuda":
                self.wait("item")
            return given[0].dtype == torch.bool or (1.0 if given[0].dtype.is_floating_point else 1)
        if name == "equal":
            self.wait("equal")
            return True
        if name == "index" and args[1][0].dtype == torch.bool:  # the host has to know how many values are chosen
            self.wait("index")
            self.launches[name] += 1
            return args[0].flatten()  # all of them
        if name == "bincount":
            self.wait(name)
            self.launches[name] += 1
            return args[0].new_zeros(args[2])
        found = function(*args, **kwargs) if not name.startswith("_fused_") else None
        tensors = given + [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if "cuda" not in devices or name in VIEWS or function.namespace == "prim":
            return found
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            queued = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if not queued:
                self.wait("copy")
        self.launches[name] += 1
        return found


def fake_list(tensor):
    """The nested list of a fake tensor."""

    def filled(shape):
        if shape:
            return [filled(shape[1:]) for _ in range(shape[0])]
        return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1

    return filled(list(tensor.shape))


def copied(tensor, memo):
    """A copy of a fake tensor, a parameter if it is one."""
    found = tensor.detach().clone()
    return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


plain_to = nn.Module.to


def move(memo, module, *args, **kwargs):
    """``module.to``, which PyTorch refuses for fake parameters that are referred to from elsewhere.

    ``memo``: by their ids, the parameters that were moved, and what they became, as modules may share them.
    """
    if isinstance(module, Metric):  # it has no parameters, and its states are no buffers
        return plain_to(module, *args, **kwargs)
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)

    def placed(tensor):
        if id(tensor) not in memo:
            options = {} if layout is None or tensor.dim() != 4 else {"memory_format": layout}
            found = tensor.detach().to(device, dtype if tensor.is_floating_point() else None, **options)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = tensor, nn.Parameter(found, tensor.requires_grad) if is_parameter else found
        return memo[id(tensor)][1]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            held.update({name: placed(tensor) for name, tensor in held.items() if tensor is not None})
    return module


@pytest.fixture(scope="session")
def cuda_stub(tmp_path_factory):
    """The compiled ``cuda_stub.cpp``; skips where there is no compiler for it."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler for the stand-in of a CUDA device")
    package = Path(torch.__file__).parent
    library = tmp_path_factory.mktemp("cuda") / "cuda_stub.so"
    command = [compiler, "-O0", "-std=c++20", "-shared", "-fPIC", "-w", f"-I{package}/include"]
    command += [Path(__file__).with_name("cuda_stub.cpp"), "-o", library, f"-L{package}/lib", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the stand-in of a CUDA device does not compile: {done.stderr.splitlines()[0]}")
    return ctypes.CDLL(str(library))


@pytest.fixture
def fake_gpu(cuda_stub, monkeypatch):
    """A function that begins a context with fake tensors; it returns the :class:`Device` that counts."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    @contextlib.contextmanager
    def begin():
        device = Device()

        def tolist(tensor):
            if tensor.device.type == "cuda":
                device.wait("tolist")
            return fake_list(tensor)

        cuda_stub.install()
        monkeypatch.setattr(FakeTensor, "tolist", tolist)
        monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        memo = {}
        monkeypatch.setattr(nn.Module, "to", lambda module, *args, **kwargs: move(memo, module, *args, **kwargs))
        monkeypatch.setattr(FakeTensor, "__deepcopy__", copied)
        monkeypatch.setattr(nn.init, "kaiming_normal_", lambda tensor, **options: tensor)  # fake values need no time
        try:
            with (
                torch.autograd.set_multithreading_enabled(False),
                FakeTensorMode(allow_non_fake_inputs=True),
                device,
            ):
                yield device
        finally:
            cuda_stub.remove_stub()

    return begin
