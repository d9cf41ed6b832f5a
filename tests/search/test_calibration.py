"""Recalibrated BatchNorm statistics are the mean over the batches, and training is not affected."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from dnas.search.calibration import freeze_bn_stats, recalibrate_bn


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    network[1].momentum = 0.3
    network(torch.randn(2, 3, 9, 9, dtype=torch.float64))  # other running statistics
    return network


def make_batches():
    return [torch.randn(4, 3, 9, 9, dtype=torch.float64) for _ in range(3)]


def test_statistics_are_the_mean_over_the_batches(network):
    batches = make_batches()
    reference = copy.deepcopy(network)
    recalibrate_bn(network, network, batches)
    with torch.no_grad():
        maps = [network[0](batch) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in maps]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in maps]).mean(0)
    torch.testing.assert_close(network[1].running_mean, mean)
    torch.testing.assert_close(network[1].running_var, variance)
    assert network[1].momentum == 0.3
    assert not network.training
    update_bn(batches, reference)
    assert all(torch.equal(own, other) for own, other in zip(network.buffers(), reference.buffers(), strict=True))


def test_momentum_comes_back_after_an_error():
    network = nn.BatchNorm2d(2)

    def fail(batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        recalibrate_bn(network, fail, [torch.zeros(2, 2, 4, 4)])
    assert network.momentum == 0.1
    assert not network.training


def test_frozen_statistics_stay_and_outputs_are_those_of_training(network):
    batch = make_batches()[0]
    before = copy.deepcopy(network.state_dict())
    fixed = nn.BatchNorm2d(4, track_running_stats=False)
    network.append(fixed)
    with freeze_bn_stats(network):
        frozen = network[:2](batch)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert (network[1].track_running_stats, fixed.track_running_stats) == (True, False)
    assert torch.equal(frozen, network[:2](batch))
    assert not torch.equal(network[1].running_mean, before["1.running_mean"])
