"""Published networks with scaled channels."""

import pytest
import torch

from dnas.errors import UserError
from dnas.networks import network_by_name
from dnas.profile import count_parameters

NAMES = ("regseg", "dwrseg_b", "dwrseg_l", "fasterseg_student")


@pytest.mark.parametrize("name", NAMES)
def test_width_scales_all_channels(name):
    full = network_by_name(name, 5)
    assert network_by_name(name, 5, {"width": 1.0}).state_dict().keys() == full.state_dict().keys()
    assert count_parameters(network_by_name(name, 5, {"width": 1.0})) == count_parameters(full)
    half = network_by_name(name, 5, {"width": 0.5}).eval()
    # Half the inputs and outputs of a convolution are a quarter of its weights; of a grouped one they are half.
    assert 0.24 < count_parameters(half) / count_parameters(full) < 0.32
    assert half(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64, 96)


@pytest.mark.parametrize("width", [0, -1, "wide", True, 100])
def test_a_width_is_a_positive_factor(width):
    with pytest.raises(UserError, match="expected a factor of the channels"):
        network_by_name("dwrseg_b", 5, {"width": width})
