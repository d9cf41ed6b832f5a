import os
from types import SimpleNamespace

import pytest
import torch

from dnas.data.worker_count import available_cores, worker_count

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def images(size=(512, 1024), kept_in=None):
    return SimpleNamespace(image_size=size, kept_in=kept_in)


@pytest.mark.parametrize(
    ("device", "cores", "streams", "expected"),
    [
        *[(GPU, 1, 1, 0), (GPU, 2, 1, 1), (GPU, 2, 2, 1), (GPU, 16, 1, 15), (GPU, 16, 2, 7), (GPU, 96, 1, 16)],
        *[(CPU, 2, 1, 0), (CPU, 8, 1, 1), (CPU, 64, 1, 2), (CPU, 64, 2, 1)],
    ],
)
def test_the_number_follows_cores_and_device(device, cores: int, streams: int, expected: int):
    assert worker_count(None, images(), device, streams=streams, cores=cores) == expected
    assert worker_count(3, images(), device, streams=streams, cores=cores) == 3
    assert worker_count(0, images(), device, streams=streams, cores=cores) == 0
    assert worker_count(None, images(size=(96, 128)), device, cores=cores) == 0


def test_a_gpu_is_faster_than_the_reading_of_small_images():
    assert worker_count(None, images(size=(240, 320)), GPU, cores=8) == 7
    assert worker_count(None, images(size=(240, 320)), CPU, cores=8) == 0


@pytest.mark.parametrize(("method", "expected"), [("fork", 7), ("spawn", 0)])
def test_a_cache_in_memory_is_shared_by_forked_workers_alone(monkeypatch, method: str, expected: int):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: method)
    assert worker_count(None, images(kept_in="memory"), GPU, cores=8) == expected


def test_processes_share_the_cores_of_a_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("dnas.data.worker_count.available_cores", lambda: 32)
    assert worker_count(None, images(), GPU) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(None, images(), GPU) == 7


@pytest.mark.parametrize(("quota", "most"), [("150000 100000", 1), ("max 100000", None), ("", None), ("8 0", None)])
def test_a_containers_quota_limits_the_cores(tmp_path, quota: str, most):
    limit = tmp_path / "cpu.max"
    limit.write_text(quota)
    own = available_cores(tmp_path / "missing")
    assert 1 <= own <= (os.cpu_count() or 1)
    assert available_cores(limit) == (own if most is None else most)
