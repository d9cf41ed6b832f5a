"""Latency as a function of dilation rates."""

import pytest
import torch

from dnas.errors import UserError
from search_spaces.regseg.latency import DilationLatency, interpolated


@pytest.mark.parametrize(
    ("rate", "price", "slope"), [(1.0, 2.0, 1.0), (1.25, 2.25, 1.0), (2.0, 3.0, 4.0), (2.5, 5.0, 4.0), (3.0, 7.0, 4.0)]
)
def test_between_whole_rates_it_is_linear(rate, price, slope):
    value = torch.tensor(rate, requires_grad=True)
    found = interpolated(torch.tensor([2.0, 3.0, 7.0]), value)
    found.backward()
    assert found.item() == pytest.approx(price)
    assert value.grad.item() == pytest.approx(slope)


def test_one_measured_rate_is_a_constant():
    value = torch.tensor(1.0, requires_grad=True)
    found = interpolated(torch.tensor([2.0]), value)
    found.backward()
    assert found.item() == 2.0
    assert value.grad.item() == 0.0


def test_the_network_costs_what_was_measured_and_what_its_rates_change():
    latency = DilationLatency({"a": [1.0, 3.0], "b": [5.0, 4.0, 6.0]}, 50.0, {"a": 1.0, "b": 2.0})
    rates = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    assert float(latency(rates)) == pytest.approx(50.0)
    rates = {"a": torch.tensor(1.5), "b": torch.tensor(3.0)}
    assert float(latency(rates)) == pytest.approx(50.0 + 1.0 + 2.0)


def test_a_layer_without_prices_is_an_error():
    with pytest.raises(UserError, match="no latency for any rate of a"):
        DilationLatency({"a": []}, 1.0, {"a": 1.0})
