from __future__ import annotations

import pytest
import torch

from dnas.device import device_name, resolve_device, resolve_devices
from dnas.errors import UserError

NAMES = r"expected auto, cpu, cuda or cuda:N$"


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_machine_without_gpus(no_gpu):
    for device in (None, "auto", "cpu", "cpu:0", torch.device("cpu")):
        assert resolve_device(device) == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"device '{name}': PyTorch finds 0 usable CUDA devices; use cpu"):
            resolve_device(name)
    with pytest.raises(UserError, match="PyTorch finds 0 usable CUDA devices"):
        resolve_devices("cuda:all")


def test_a_cuda_device_always_has_an_index(three_gpus):
    for device in (None, "auto", "cuda", torch.device("cuda")):
        assert resolve_device(device) == torch.device("cuda", 1)
    assert resolve_device("cuda:2") == torch.device("cuda", 2)
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device 'cuda:3': PyTorch finds 3 usable CUDA devices"):
        resolve_device("cuda:3")


@pytest.mark.parametrize("name", ["toaster", "meta", "", "cuda:", "cuda:x", "mps", "CPU"])
def test_an_unknown_name_is_told_the_known_ones(name):
    with pytest.raises(UserError, match=f"^device '{name}': {NAMES}"):
        resolve_device(name)


def test_mps_is_a_device_where_the_caller_supports_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps", mps=True) == torch.device("mps")
    assert device_name(torch.device("mps")) == f"Apple GPU of {device_name(torch.device('cpu'))}"
    with pytest.raises(UserError, match=r"expected auto, cpu, cuda, cuda:N or mps$"):
        resolve_device("abacus", mps=True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="no usable Apple GPU"):
        resolve_device("mps", mps=True)


def test_several_gpus_by_name(three_gpus):
    assert [str(device) for device in resolve_devices("cuda:0,2")] == ["cuda:0", "cuda:2"]
    assert [str(device) for device in resolve_devices("cuda:all")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(device) for device in resolve_devices("cuda:1")] == ["cuda:1"]
    assert [str(device) for device in resolve_devices("cpu")] == ["cpu"]
    for text, message in (("cuda:0,0", "twice"), ("cuda:,", "twice"), ("cuda:0,7", "3 usable"), ("cuda:0,x", NAMES)):
        with pytest.raises(UserError, match=message):
            resolve_devices(text)
