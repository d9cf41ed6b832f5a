"""Statistics measured before validation are the mean of the batches' own, and training is not touched."""

import pytest
import torch
from torch import nn

from dnas.search.calibration import calibrate_norms


def test_statistics_are_the_mean_over_the_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    network[1].momentum = 0.3
    network(torch.randn(2, 3, 9, 9, dtype=torch.float64))  # statistics of something else
    batches = [torch.randn(4, 3, 9, 9, dtype=torch.float64) for _ in range(3)]
    calibrate_norms(network, network, batches)
    with torch.no_grad():
        maps = [network[0](batch) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in maps]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in maps]).mean(0)
    torch.testing.assert_close(network[1].running_mean, mean)
    torch.testing.assert_close(network[1].running_var, variance)
    assert network[1].momentum == 0.3
    assert not network.training


def test_momentum_comes_back_after_an_error():
    network = nn.BatchNorm2d(2)

    def fail(batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        calibrate_norms(network, fail, [torch.zeros(2, 2, 4, 4)])
    assert network.momentum == 0.1
    assert not network.training
