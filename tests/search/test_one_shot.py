"""The one-shot search: the weights of a supernet, trained by sampled networks."""

import copy

import pytest
import torch
from torch import nn

from dnas.config import parse_config, to_mapping
from dnas.data import IGNORE_LABEL, split_parts
from dnas.errors import UserError
from dnas.ops import sliced_parameters
from dnas.runs import Interrupted, RunFolder
from dnas.search import OneShotConfig
from dnas.search.one_shot import OneShotSearch
from dnas.training.losses import distillation_loss


def test_a_step_is_sgd_on_the_mean_loss_of_its_networks(one_shot, tmp_path, monkeypatch):
    steps = []

    def watched(session, batch, generator):
        copied = copy.deepcopy(session.problem)
        drawn = torch.Generator().set_state(generator.get_state())
        loss = taken(session, batch, generator)
        steps.append((copied, batch, drawn, loss, session.problem))
        return loss

    taken = OneShotSearch._step
    monkeypatch.setattr(OneShotSearch, "_step", watched)
    config = one_shot.config(
        epochs=1, warm_up_steps=0, weight_decay=0.0, gradient_clipping=None, ohem_threshold=None, validate_every=9
    )
    one_shot.run(tmp_path / "run", config, data=one_shot.data(train=3))
    ((reference, (images, labels), generator, loss, trained),) = steps
    passes = reference.weight_passes("search", generator)
    assert len({forward.sample.operators[0, 0] for forward in passes}) == len(passes) == 3  # every operator once
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORE_LABEL)
    losses = [criterion(resized(*reference.outputs(images, one).values(), labels), labels) for one in passes]
    mean = torch.stack(losses).mean()
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    mean.backward()
    for one in sliced_parameters(reference.weights):
        buffer = one.module.gradient_buffers.get(one.name)
        if buffer is not None and buffer.filled:
            one.parameter.grad = buffer.tensor
    moved = dict(trained.weights.named_parameters())
    for name, weight in reference.weights.named_parameters():
        step = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert torch.allclose(moved[name], weight - 0.05 * step, atol=1e-6), name


def resized(logits, labels):
    return nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)


def test_held_out_images_score_and_are_never_trained_on(one_shot, recorded, tmp_path):
    train, val = one_shot.data(train=9)
    train, val = recorded(train), recorded(val)
    one_shot.run(tmp_path / "run", one_shot.config(epochs=2, held_out=0.3), data=(train, val), seed=4)
    kept, held = split_parts(9, 4, 0.3)
    assert len(held) == 3
    assert sorted((*kept, *held)) == list(range(9))
    assert val.read == []
    # Six images in three steps; then all networks are recalibrated on the six of the first part and scored.
    epoch = [*[kept] * 6, *[kept] * 6, *[held] * 3]
    assert len(train.read) == 2 * len(epoch)
    for image, part in zip(train.read, epoch * 2, strict=True):
        assert image in part


@pytest.mark.parametrize("clipping", [5.0, None])
def test_ctrl_c_loses_no_epoch(one_shot, presses_ctrl_c, tmp_path, clipping):
    config = one_shot.config(gradient_clipping=clipping)
    one_shot.run(tmp_path / "whole", config)
    whole = RunFolder.open(tmp_path / "whole").load_state()["weights"]
    for step in (2, 5):
        path = tmp_path / f"stopped{step}"
        with pytest.raises(Interrupted, match="continue with --resume"):
            one_shot.run(path, config, progress=presses_ctrl_c(step))
        one_shot.run(path, config, resume=True)
        assert one_shot.lasting(path) == one_shot.lasting(tmp_path / "whole")
        weights = RunFolder.open(path).load_state()["weights"]
        assert all(torch.equal(weights[name], value) for name, value in whole.items())


def test_the_largest_network_teaches_the_others(one_shot, tmp_path, monkeypatch):
    taught = []

    def watched(logits, guide, labels, direction):
        assert (logits.requires_grad, guide.requires_grad) == (True, False)
        taught.append((logits.detach().clone(), guide.clone()))
        return distillation_loss(logits, guide, labels, direction)

    monkeypatch.setattr("dnas.search.one_shot.distillation_loss", watched)
    problem = one_shot.problem(largest_first=True)
    config = one_shot.config(epochs=1, distillation_weight=1.0)
    one_shot.run(tmp_path / "run", config, problem=problem, data=one_shot.data(train=3))
    assert len(taught) == 2  # one step of three networks
    assert torch.equal(taught[0][1], taught[1][1])
    assert not torch.equal(*taught[0])
    first, *_ = problem.weight_passes("search", torch.Generator().manual_seed(0))
    assert (set(first.sample.operators.values()), set(first.sample.ratios.values())) == ({"conv"}, {2})


def test_the_loss_falls(one_shot, tmp_path):
    one_shot.run(tmp_path / "run", one_shot.config(epochs=8, batch_size=3, validate_every=8))
    losses = [record["loss_weights"] for record in RunFolder.open(tmp_path / "run").records("epoch")]
    assert losses[-1] < 0.8 * losses[0]


def test_the_log_and_the_files(one_shot, tmp_path):
    result = one_shot.run(tmp_path / "run")
    run = RunFolder.open(tmp_path / "run", kind="search")
    steps, epochs = run.records("step"), run.records("epoch")
    assert [record["epoch"] for record in steps] == [0, 0, 0, 1, 1, 1]
    assert [record["learning_rate"] for record in steps][:2] == [pytest.approx(0.05 * f, rel=0.2) for f in (0.1, 0.55)]
    assert set(epochs[-1]["miou"]) == set(result.miou) == {"network 1", "network 2", "network 3"}
    assert run.load_weights("architecture") == {}


def test_mistakes(one_shot, tmp_path):
    with pytest.raises(UserError, match="given 1 images, expected at least 2 to hold some of them out"):
        one_shot.run(tmp_path / "few", data=one_shot.data(train=1))
    with pytest.raises(UserError, match=r"the loss of the weights is (nan|inf)"):
        one_shot.run(tmp_path / "nan", one_shot.config(learning_rate=1e30, warm_up_steps=0))
    assert RunFolder.open(tmp_path / "nan").load_state() is None
    assert parse_config(OneShotConfig, to_mapping(one_shot.config()), "x") == one_shot.config()
    with pytest.raises(UserError, match="held_out"):
        parse_config(OneShotConfig, {"held_out": 1.0}, "x")
