"""What dnas does on systems without POSIX modules and folders, as far as Linux can show it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch

from dnas import peak_memory
from dnas.data import DataConfig, batches, eval_transform, open_dataset, shared_memory
from dnas.data.transforms import AugmentationConfig

SETTINGS = {"batch_size": 2, "seed": 0, "epoch": 0, "shuffle": False, "drop_last": False}


def test_commands_import_without_what_windows_lacks():
    code = """
import os, sys
import psutil, torch  # which need these on Linux
sys.modules["resource"] = None
del os.uname
import dnas.cli.main, dnas.export.memory, dnas.latency.build, dnas.training.device
from dnas.peak_memory import peak_resident_bytes
assert peak_resident_bytes() >= 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_peak_memory_is_in_bytes():
    used = torch.ones(1 << 20).nbytes
    assert used < peak_memory.peak_resident_bytes() < 1 << 40


def test_samples_can_be_sent_to_spawned_workers(make_folder):
    data = open_dataset(DataConfig(dataset="folder", root=str(make_folder())), "train")
    loaded = batches(data, eval_transform(AugmentationConfig()), **SETTINGS)
    again = pickle.loads(pickle.dumps(loaded._samples))
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(again.__getitems__([(0, 1)]), loaded._samples.__getitems__([(0, 1)]), strict=True)
    )


@pytest.mark.parametrize("free", [0, None])
def test_batches_are_the_same_whether_shared_memory_has_room(make_folder, monkeypatch, free):
    monkeypatch.setattr(shared_memory, "_FOLDER", "/none" if free is None else "/dev/shm")
    if free == 0:
        monkeypatch.setattr(shared_memory, "_WAITING", 1 << 60)  # more than there is
    data = open_dataset(DataConfig(dataset="folder", root=str(make_folder())), "train")
    transform = eval_transform(AugmentationConfig())
    alone, loaded = (batches(data, transform, workers=workers, **SETTINGS) for workers in (0, 1))
    for ours, theirs in zip(alone, loaded, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    items = list(loaded._loader)
    assert isinstance(items[0][0], torch.Tensor) == (free is None)
    loaded.close()
