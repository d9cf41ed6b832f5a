"""``--deterministic``: the switches are set while a run trains, and only then; the folder keeps the choice."""

import os

import pytest
import torch
from torch.nn import functional as F

from dnas.data import DataConfig
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.training import (
    RetrainConfig,
    RetrainResult,
    SegmentationMetrics,
    deterministic_algorithms,
    fix_workspace,
    tuned_convolutions,
)
from dnas.training.determinism import WORKSPACE, WORKSPACES
from dnas.workflows import retraining


@pytest.fixture(autouse=True)
def workspace(monkeypatch):
    """The environment without the variable, as it is restored afterwards."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)


def switches():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_switches_are_set_within_and_restored_afterwards():
    before = switches()
    with deterministic_algorithms(True):
        assert os.environ[WORKSPACE] in WORKSPACES
        with tuned_convolutions(torch.device("cuda", 0)):
            assert switches() == (True, True, False)
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert switches() == before
    with pytest.raises(ValueError, match="anything"), deterministic_algorithms(True):
        raise ValueError("anything")
    assert switches() == before
    with deterministic_algorithms(False):
        assert switches() == before
        with tuned_convolutions(torch.device("cuda", 0)):
            assert torch.backends.cudnn.benchmark
    assert switches() == before


def test_a_workspace_that_is_not_deterministic_is_refused(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(UserError, match=f"{WORKSPACE} is :0:0, expected :4096:8 or :16:8"):
        fix_workspace(True)
    fix_workspace(False)
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="CUDA is in use already"):
        fix_workspace(True)


def test_an_operator_without_a_deterministic_form_is_named_in_one_line():
    text = "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set 'torch...'\n more"
    named = pytest.raises(UserError, match=r"^grid_sampler_2d_backward_cuda has no deterministic form")
    with named, deterministic_algorithms(True):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="out of memory"), deterministic_algorithms(True):
        raise RuntimeError("out of memory")


def test_pixels_are_counted_without_the_matrix_of_pixels_by_classes(monkeypatch):
    metrics = SegmentationMetrics(("sky", "road"))
    seen, count = [], torch.bincount

    def counted(*args, **kwargs):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return count(*args, **kwargs)

    monkeypatch.setattr(torch, "bincount", counted)
    with deterministic_algorithms(True):
        metrics.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))
        assert switches() == (True, True, False)
    assert seen == [False]
    assert metrics.result().miou == 1.0


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


def test_the_deterministic_loss_of_a_pixel_is_that_of_pytorch(monkeypatch):
    from dnas.training.losses import _losses_of_truth

    generator = torch.Generator().manual_seed(0)
    found = torch.randn(2, 5, 7, 3, generator=generator).log_softmax(1)
    labels = torch.randint(6, (2, 7, 3), generator=generator)
    labels[labels == 5] = 255
    expected = F.nll_loss(found, labels, ignore_index=255, reduction="none")
    monkeypatch.setattr(F, "nll_loss", None)  # which PyTorch refuses on CUDA
    with deterministic_algorithms(True):
        assert torch.equal(_losses_of_truth(found.as_subclass(OnGpu), labels, 255).as_subclass(torch.Tensor), expected)


def test_a_run_keeps_the_choice(tmp_path, monkeypatch):
    seen = []

    def trained(*args, **kwargs):
        seen.append(switches()[0])
        return RetrainResult(1, 0, 0.5)

    monkeypatch.setattr(retraining, "retrain", trained)
    data = DataConfig(dataset="rectangles", size=(64, 64), images={"train": 2, "val": 1})
    config, out = RetrainConfig(batch_size=2), tmp_path / "run"

    def run(**options):
        retraining.run_retraining({"name": "regseg"}, data, out, config, source="regseg", device="cpu", **options)

    run(deterministic=True)
    assert read_yaml(out / "configuration.yaml", "configuration")["deterministic"] is True
    with pytest.raises(UserError, match="deterministic"):
        run(resume=True)
    run(resume=True, deterministic=True)
    assert seen == [True, True]
