"""The search problem of dilation rates: bounds, initial rates, outputs and latency."""

import math

import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.networks import network_by_name
from dnas.ops import fractional_layers, make_fractional
from dnas.search import JointProblem
from search_spaces.regseg import RateSearch

FIRST, SECOND, THIRD = (f"backbone.blocks.{block}.dilated.branches.0" for block in range(3))
OPTIONS = {"rates": [[1, 1], [1, 1], [1, 1]], "width": 32, "split_equal": True}


def fractional(layers="backbone.blocks.*.branches.*", rate=None):
    network = make_fractional(network_by_name("regseg_small", 4, OPTIONS), layers, upper=math.inf)
    with torch.no_grad():
        for layer in fractional_layers(network).values():
            layer.dilation.fill_(1.0 if rate is None else rate)
    return network


def test_it_is_a_joint_problem_over_the_networks_own_parameters():
    problem = RateSearch(fractional())
    assert isinstance(problem, JointProblem)
    ours = {id(p) for p in problem.architecture.parameters()}
    assert ours == {id(layer.dilation) for layer in problem.layers.values()}
    assert len(ours) == 6


def test_bounds_are_k_over_s_and_follow_the_rates_before():
    problem = RateSearch(fractional())
    bounds = [problem.layers[name].upper for name in (FIRST, SECOND, THIRD)]
    assert bounds == [15 / 8, 31 / 8, 47 / 8]
    problem.settle({name: 1.5 if name == FIRST else 1.0 for name in problem.layers})
    # A rate of 1.5 samples as far as ceil(1.5) = 2: 16 more pixels.
    assert problem.layers[SECOND].upper == 47 / 8
    assert problem.monitor()["field_of_view"] == 15 + 16 * (2 + 1 + 1)


def test_a_rate_that_falls_takes_those_behind_it_along():
    problem = RateSearch(fractional())
    problem.settle(dict.fromkeys(problem.layers, 1e6))
    high = problem.monitor()["rates"]
    assert [high[name] for name in (FIRST, SECOND, THIRD)] == [15 / 8, 47 / 8, 47 / 8 + 2 * 6]
    settled = problem.settle({**high, **{n: 1.0 for n in problem.layers if "blocks.0" in n}})
    assert [settled[name] for name in (FIRST, SECOND, THIRD)] == [1.0, 31 / 8, 31 / 8 + 2 * 4]
    assert problem.settle(settled) == settled


def test_upper_and_gaps():
    problem = RateSearch(fractional(), upper=3.0)
    assert [problem.layers[name].upper for name in (FIRST, SECOND)] == [15 / 8, 3.0]
    problem = RateSearch(fractional(rate=9.0), allow_gaps=True)
    assert all(math.isinf(layer.upper) for layer in problem.layers.values())
    assert problem.monitor()["upper"] == {}
    assert problem.settle(dict.fromkeys(problem.layers, 100.0))[FIRST] == 100.0


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        (3.0, {"upper": 4.0}, r"backbone.blocks.0.*rate 3, expected 1 to 1.875, k / s"),
        (3.0, {"upper": 2.0, "allow_gaps": True}, r"rate 3, expected 1 to 2, rates.upper"),
        (0.5, {}, r"rate 0.5, expected 1 to"),
        (math.nan, {"allow_gaps": True}, r"rate nan, expected 1 to"),
        (math.inf, {"upper": 3.0}, r"rate inf, expected 1 to"),
    ],
)
def test_a_bound_that_excludes_the_initial_rate_is_an_error(rate, options, message):
    with pytest.raises(UserError, match=message):
        RateSearch(fractional(rate=rate), **options)


def test_a_network_without_fractional_layers_is_an_error():
    with pytest.raises(UserError, match="no fractional convolution"):
        RateSearch(nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_it_computes_what_the_network_computes():
    network = fractional().eval()
    problem = RateSearch(network)
    images = torch.randn(1, 3, 64, 64)
    (forward,) = problem.weight_passes("search", torch.Generator())
    with torch.no_grad():
        assert torch.equal(problem.outputs(images, forward)["logits"], network(images))
    assert problem.validation_passes() == {"network": forward}
    assert problem.latency(forward) is None


@pytest.mark.parametrize("name", ["torchvision:lraspp_mobilenet_v3_large", "dwrseg_b"])
def test_any_network_with_dilated_convolutions(name):
    problem = RateSearch(make_fractional(network_by_name(name, 3), upper=math.inf))
    rates = problem.monitor()["rates"]
    assert min(rates.values()) > 1
    loss = problem.outputs(torch.randn(2, 3, 64, 64), problem.validation_passes()["network"])["logits"].square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite() for p in problem.architecture.parameters())
