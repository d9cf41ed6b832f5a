"""The moving average of weights, against its definition."""

import pytest
import torch
from torch import nn

from dnas.training.averaging import moving_average


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_it_is_the_recursion_written_out(decay):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    average = moving_average(network, decay)
    expected = [tensor.clone() for tensor in network.state_dict().values()]
    for n in range(30):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 1)
        average.update_parameters(network)
        if n == 0:  # the first update is a copy
            expected = [tensor.clone() for tensor in network.state_dict().values()]
            continue
        kept = min(decay, (1 + n) / (10 + n))
        pairs = zip(expected, network.state_dict().values(), strict=True)
        expected = [kept * a + (1 - kept) * b if b.is_floating_point() else b.clone() for a, b in pairs]
        for found, wanted in zip(average.module.state_dict().values(), expected, strict=True):
            torch.testing.assert_close(found, wanted)
