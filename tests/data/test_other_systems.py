"""What dnas does on systems without POSIX modules and folders, as far as Linux can show it."""

from __future__ import annotations

import ast
import pickle
import sys
from pathlib import Path

import pytest
import torch

import dnas
from dnas import peak_memory
from dnas.data import DataConfig, batches, eval_transform, open_dataset, shared_memory
from dnas.data.transforms import AugmentationConfig

SETTINGS = {"batch_size": 2, "seed": 0, "epoch": 0, "shuffle": False, "drop_last": False}


POSIX_ALONE = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "syslog"}


def test_no_module_imports_what_windows_lacks():
    packages = [Path(dnas.__file__).parents[1] / name for name in ("dnas", "search_spaces", "derive", "latency_tables")]
    for path in (path for package in packages for path in package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX_ALONE & set(names), path
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "uname" not in used, path


def test_peak_memory_is_in_bytes_on_every_system(monkeypatch):
    psutil = pytest.importorskip("psutil")
    used = torch.ones(1 << 20).nbytes
    assert used < peak_memory.peak_resident_bytes() < 1 << 40
    monkeypatch.setitem(sys.modules, "resource", None)
    described = type("Described", (), {"memory_info": lambda self: type("Info", (), {"peak_wset": 5 << 20})})
    monkeypatch.setattr(psutil, "Process", described)
    assert peak_memory.peak_resident_bytes() == 5 << 20


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
