"""The optimiser of a supernet's weights equals SGD, for any precision and place of gradient accumulation."""

import pytest
import torch
from torch import nn

from dnas.ops import SuperConvBlock
from dnas.search.optim import SupernetSGD, supernet_sgd

STEPS = 4


class Network(nn.Module):
    """Two operators with superkernels and a plain convolution; the second operator is not used in some passes."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.first = SuperConvBlock(4, (2, 6), depth=2)
        self.second = SuperConvBlock(4, (2, 6), depth=1)
        self.to(dtype)

    def forward(self, x, width, both):
        x = self.stem(x)
        return self.first(x, width).square().mean() + (self.second(x, width).square().mean() if both else 0.0)


def make(network, **options):
    return SupernetSGD(network, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **options})


def passes(step, dtype):
    """The second operator gets its first gradient in the second step, and none in the last."""
    generator = torch.Generator().manual_seed(step)
    for width in (2, 6):
        yield torch.randn(2, 3, 9, 9, generator=generator, dtype=torch.float64).to(dtype), width, step in (1, 2)


def train(network, optimizer, steps=STEPS):
    for step in range(steps):
        optimizer.zero_grad()
        for x, width, both in passes(step, network.stem.weight.dtype):
            network(x, width, both).backward()
        optimizer.step()


def train_by_torch(network, clipping, momentum=0.9):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=momentum, weight_decay=0.01)
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for x, width, both in passes(step, network.stem.weight.dtype):
            network(x, width, both).backward()
        if clipping is not None:
            norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), clipping)))
        optimizer.step()
    return norms


@pytest.mark.parametrize("chunk", [7, 1 << 19])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("clipping", [None, 0.1, 1e9])
@pytest.mark.parametrize("keep_gradients", [True, False])
def test_it_is_sgd(monkeypatch, chunk, momentum, clipping, keep_gradients):
    monkeypatch.setattr(supernet_sgd, "CHUNK", chunk)
    mine, plain = Network(torch.float64), Network(torch.float64)
    train(mine, make(mine, max_norm=clipping, momentum=momentum, keep_gradients=keep_gradients))
    norms = train_by_torch(plain, clipping, momentum)
    if clipping == 0.1:
        assert min(norms) > clipping  # clipping is active
    for (name, found), wanted in zip(mine.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9, msg=name)  # 1e-6 is torch's, in the clipping


def test_a_step_that_was_given_up_leaves_no_gradient():
    mine, plain = Network(torch.float64), Network(torch.float64)
    optimizer = make(mine, max_norm=0.1)
    optimizer.zero_grad()
    for x, width, both in passes(1, torch.float64):
        mine(x, width, both).backward()
    for network, one in ((mine, optimizer), (plain, make(plain, max_norm=0.1))):
        train(network, one)
    for found, wanted in zip(mine.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("chunk", [7, 1 << 19])
@pytest.mark.parametrize("clipping", [None, 0.1])
def test_momenta_of_lower_precision_are_rounded(monkeypatch, chunk, clipping):
    monkeypatch.setattr(supernet_sgd, "CHUNK", chunk)
    rough, fine, before = Network(torch.float32), Network(torch.float32), Network(torch.float32)
    optimizer = make(rough, max_norm=clipping, momentum_dtype=torch.bfloat16)
    train(rough, optimizer)
    assert {momentum.dtype for momentum in optimizer.momenta} == {torch.bfloat16}
    assert {weight.dtype for weight in rough.parameters()} == {torch.float32}
    train(fine, make(fine, max_norm=clipping))
    same = 0
    for found, wanted, start in zip(rough.parameters(), fine.parameters(), before.parameters(), strict=True):
        assert (found - wanted).norm() <= 0.01 * (wanted - start).norm() + 1e-7
        same += torch.equal(found, wanted)
    assert same < len(optimizer.sliced)  # the precision makes a difference


@pytest.mark.parametrize("chunk", [7, 1 << 19])
@pytest.mark.parametrize("clipping", [None, 0.1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_split_weights_descend_as_whole_ones_that_are_rounded_anew(monkeypatch, chunk, clipping, precision):
    monkeypatch.setattr(supernet_sgd, "CHUNK", chunk)
    split, plain = Network(torch.float32), Network(torch.float32)
    optimizer = make(split, max_norm=clipping, momentum_dtype=precision, split_bf16=True)
    assert all(weight.dtype == torch.bfloat16 for weight in optimizer.sliced)
    for one, other in ((split, optimizer), (plain, make(plain, max_norm=clipping, momentum_dtype=precision))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            train(one, other)
    optimizer.close()
    for found, wanted in zip(split.parameters(), plain.parameters(), strict=True):
        assert found.dtype == torch.float32
        # Equal except for ties, where split weights are rounded away from zero instead of to even.
        assert (found - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.parametrize("compute", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clipping", [None, 0.1])
def test_it_goes_on_from_its_state(tmp_path, compute, precision, clipping):
    straight, stopped, resumed = (Network(torch.float32) for _ in range(3))
    options = {"max_norm": clipping, "momentum_dtype": precision, "split_bf16": compute}
    train(straight, make(straight, **options))
    train(straight, make(straight, **options))
    first = make(stopped, **options)
    train(stopped, first, steps=2)
    torch.save([stopped.state_dict(), first.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = make(resumed, **options)
    resumed.load_state_dict(weights)
    second.load_state_dict(state)
    train(stopped, first), train(resumed, second)
    first.close(), second.close()
    for found, wanted, other in zip(resumed.parameters(), stopped.parameters(), straight.parameters(), strict=True):
        assert torch.equal(found, wanted)
        assert not torch.equal(found, other)


def test_the_state_of_another_precision_is_refused():
    network = Network(torch.float32)
    state = make(network, max_norm=None).state_dict()
    with pytest.raises(ValueError, match="precision"):
        make(network, max_norm=None, momentum_dtype=torch.bfloat16).load_state_dict(state)


def test_the_state_of_whole_weights_is_refused_by_split_ones():
    network = Network(torch.float32)
    state = make(network, max_norm=None).state_dict()
    with pytest.raises(ValueError, match="precision"):
        make(network, max_norm=None, split_bf16=True).load_state_dict(state)


def test_closed_it_leaves_plain_weights_behind():
    network = Network(torch.float32)
    optimizer = make(network, max_norm=None, split_bf16=True)
    train(network, optimizer)
    optimizer.close()
    (x, width, _), *_ = passes(0, torch.float32)
    network(x, width, True).backward()
    assert all(weight.grad is not None for weight in optimizer.sliced)
    assert all(weight.dtype == torch.float32 for weight in network.parameters())
