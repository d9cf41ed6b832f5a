import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dnas.errors import UserError
from dnas.latency import agreement, fit_correction, measure_networks, noise_floor
from dnas.latency.check import spread_evenly


def test_agreement_of_known_numbers():
    """Computed by hand: deviations (-1, 0, 1) and (-2, 1, 1) give r = 3 / sqrt(2 * 6); ranks 1 2 3 and 1 2.5 2.5."""
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


def test_networks_are_measured_by_name(setup, quick):
    networks = {"small": lambda: nn.Conv2d(3, 2, 3), "large": lambda: nn.Conv2d(3, 64, 7)}
    found = measure_networks(networks, (32, 48), setup, effort=quick)
    assert set(found) == {"small", "large"}
    assert noise_floor(found, found).mape == 0


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=60), st.integers(2, 20))
def test_what_is_spread_evenly_is_distinct_sorted_and_reaches_both_ends(values, count):
    chosen = spread_evenly(values, count)
    assert len(set(chosen)) == len(chosen) == min(count, len(values))
    picked = [values[index] for index in chosen]
    assert picked == sorted(picked)
    assert (picked[0], picked[-1]) == (min(values), max(values))


def test_a_crowd_in_the_middle_does_not_crowd_the_choice():
    values = [1.0, 2.0, *(5 + 0.001 * n for n in range(200)), 8.0, 9.0]
    assert [values[index] for index in spread_evenly(values, 5)] == pytest.approx([1, 2, 5, 8, 9], abs=0.2)


def test_a_correction_finds_factor_and_offset():
    predicted = [1.0, 4.0, 7.0, 11.0]
    found = fit_correction(predicted, [1.1 * value + 0.5 for value in predicted])
    assert found.to_mapping() == pytest.approx({"factor": 1.1, "offset_ms": 0.5, "networks": 4})
    assert found.apply([2.0]) == pytest.approx([2.7])


def test_a_correction_counts_relative_errors():
    """Brute force: no factor and offset nearby have a smaller sum of squared relative errors."""
    predicted, measured = [1.0, 2.0, 50.0, 60.0], [1.3, 2.1, 57.0, 63.0]

    def error(factor, offset):
        return sum(((factor * p + offset - m) / m) ** 2 for p, m in zip(predicted, measured, strict=True))

    found = fit_correction(predicted, measured)
    best = error(found.factor, found.offset_ms)
    assert best < error(1.0, 0.0)
    for step in (-0.01, 0.01):
        assert best < error(found.factor + step, found.offset_ms)
        assert best < error(found.factor, found.offset_ms + step)
