import pytest
from torch import nn

from dnas.errors import UserError
from dnas.latency import agreement, measure_networks, noise_floor


def test_agreement_of_known_numbers():
    """Worked by hand: deviations (-1, 0, 1) and (-2, 1, 1) give r = 3 / sqrt(2 * 6); ranks 1 2 3 and 1 2.5 2.5."""
    found = agreement([1.0, 2.0, 3.0], [1.0, 4.0, 4.0])
    assert found.networks == 3
    assert found.pearson == pytest.approx(3 / 12**0.5)
    assert found.spearman == pytest.approx(1.5 / (2 * 1.5) ** 0.5)
    assert found.mape == pytest.approx(100 * (0 + 0.5 + 0.25) / 3)


def test_a_constant_factor_is_perfectly_correlated_and_still_wrong():
    found = agreement([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.to_mapping() == pytest.approx({"networks": 3, "pearson": 1, "spearman": 1, "mape": 100})


@pytest.mark.parametrize(
    ("predicted", "measured"),
    [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 2.0])],
)
def test_too_little_to_say_is_an_error(predicted, measured):
    with pytest.raises(UserError, match="latency check"):
        agreement(predicted, measured)


def test_networks_are_measured_by_name(target, quick):
    networks = {"small": lambda: nn.Conv2d(3, 2, 3), "large": lambda: nn.Conv2d(3, 64, 7)}
    found = measure_networks(networks, (32, 48), target, effort=quick)
    assert set(found) == {"small", "large"}
    assert noise_floor(found, found).mape == 0
