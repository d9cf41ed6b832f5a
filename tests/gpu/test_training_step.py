"""Steps of retraining and evaluation on a GPU that this machine lacks: no mixed devices, no needless waiting."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dnas.data import AugmentationConfig, DataConfig, open_dataset, train_transform
from dnas.data.on_device import pack_numbers
from dnas.ops import fractional_conv2d
from dnas.progress import NoProgress
from dnas.runs import Interrupt, Interrupted
from dnas.training import RetrainConfig, SegmentationMetrics, deterministic_algorithms
from dnas.training.retrain import _Retraining
from tests.gpu.conftest import NOT_DETERMINISTIC

GPU = torch.device("cuda", 0)
CLASSES = 6


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=8, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)
    )


@pytest.mark.parametrize(("precision", "deterministic"), [("fp32", True), ("bf16", False)])
def test_a_retraining_step_with_distillation_waits_once(fake_gpu, monkeypatch, precision, deterministic):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    accelerator = SimpleNamespace(
        device=GPU, process_index=0, num_processes=1, free_memory=lambda: None, reduce=lambda values, how: values
    )
    monkeypatch.setattr(sys.modules["dnas.training.retrain"], "make_accelerator", lambda device: accelerator)
    data = DataConfig(dataset="rectangles", size=(64, 64), images={"train": 4, "val": 1})
    splits = open_dataset(data, "train"), open_dataset(data, "val")
    config = RetrainConfig(batch_size=2, precision=precision, gradient_clipping=1.0)
    records = []
    run = SimpleNamespace(seed=0, path="run", log=records.append)
    images, labels = torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    with fake_gpu() as device, deterministic_algorithms(deterministic):
        network, teacher = (small_network() for _ in range(2))
        job = _Retraining(network, splits, run, config, teacher, GPU, NoProgress())
        job.trained = job.network.train()
        device.waits.clear()
        with pytest.raises(Interrupted):  # every value that the host reads is 1, whether to stop, too
            job._step(0, 0, images, labels, Interrupt())
        assert all(parameter.grad is not None for parameter in job.network.parameters())
        assert job.network.training
        assert not teacher.training
        assert device.waits.total() <= 1, device.waits
        assert bool(NOT_DETERMINISTIC & set(device.launches)) is not deterministic
        job.release()
    assert {tensor.device for tensor in job.network.state_dict().values()} == {GPU}
    layouts = {p.is_contiguous(memory_format=torch.channels_last) for p in job.network.parameters() if p.dim() == 4}
    assert layouts == {True}
    assert records[0]["loss"] == 1.0


def test_images_are_finished_without_waiting(fake_gpu):
    jitter = {
        "brightness_factor": 1.2,
        "contrast_factor": 0.8,
        "saturation_factor": 1.1,
        "hue_factor": None,
        "fn_idx": torch.arange(4),
    }
    numbers = torch.stack([pack_numbers(flip, jitter) for flip in (False, True)])
    images, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.uint8)
    with fake_gpu() as device:
        finish = train_transform(AugmentationConfig()).finish(GPU)
        device.waits.clear()
        found = finish(images, masks, numbers)
        assert device.waits.total() == 0, device.waits
        assert device.launches.total() < 60, device.launches
    assert [(part.device, part.dtype) for part in found] == [(GPU, torch.float32), (GPU, torch.int64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_confusion_matrix_stays_on_the_device(fake_gpu, dtype):
    with fake_gpu() as device:
        metrics = SegmentationMetrics([f"class {number}" for number in range(CLASSES)], GPU, boundary=0.1)
        device.waits.clear()
        for _ in range(2):
            logits = torch.zeros(2, CLASSES, 8, 8, dtype=dtype, device=GPU)
            metrics.update(logits, torch.zeros(2, 64, 64, dtype=torch.int64, device=GPU))
        copied = [text for text in device.waits if text.startswith(("copy", "tolist"))]
        assert not copied
        assert metrics._matrix.confmat.device == GPU
        assert metrics.result().images == 1  # every value that the host reads is 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fractional_convolution_has_gradients_and_reads_no_rate(fake_gpu, dtype):
    with fake_gpu() as device:
        x = torch.zeros(1, 8, 9, 7, device=GPU, dtype=dtype, requires_grad=True)
        weight = nn.Parameter(torch.zeros(4, 4, 3, 3, device=GPU, dtype=dtype))
        rate = nn.Parameter(torch.ones((), device=GPU))
        fractional_conv2d(x, weight, rate, groups=2).sum().backward()
        assert device.waits.total() == 0, device.waits
        for tensor in (x, weight, rate):
            assert (tensor.grad.device, tensor.grad.dtype, tensor.grad.shape) == (GPU, tensor.dtype, tensor.shape)
