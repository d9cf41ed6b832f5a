"""Inventory, expected latency and integer programme of a small network, against running every network by itself."""

import hashlib
import itertools
import math
from contextlib import ExitStack

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from dnas.choices import (
    ChoiceConv2d,
    ChoiceConvNorm,
    ChoiceGroupConvNorm,
    ChoiceNetwork,
    InputChoice,
    Lazy,
    OperatorChoice,
    RateChoice,
    RepeatChoice,
    WidthChoice,
    plain_network,
)
from dnas.errors import UserError
from dnas.pricing import ExpectedLatency, LatencyProgramme, inventory_of, latency_terms

SIZE = (16, 24)


class Block(nn.Module):
    """Priced in parts: an operator to be chosen between two convolutions."""

    def __init__(self, width, hidden, upper):
        super().__init__()
        self.expand = ChoiceConvNorm(width, hidden)
        self.spatial = OperatorChoice(
            {"k3": ChoiceGroupConvNorm(hidden, 3, dilation=RateChoice(upper)), "k5": ChoiceGroupConvNorm(hidden, 5)}
        )
        self.project = ChoiceConvNorm(hidden, width, activation=None)

    def forward(self, x):
        return x + self.project(self.spatial(self.expand(x)))


class Paths(nn.Module):
    """Repeated blocks; a coarse map that two choices may read."""

    def __init__(self):
        super().__init__()
        width, hidden = WidthChoice((4, 8), name="width"), WidthChoice((4, 6), name="hidden")
        self.stem = ChoiceConvNorm(3, width, 3, 2)
        self.blocks = RepeatChoice([Block(width, hidden, 2.0), ChoiceConvNorm(width, width, 3)], 0, name="depth")
        self.down = ChoiceConvNorm(width, width, 3)
        self.fine, self.coarse = ChoiceConvNorm(width, 8), ChoiceConvNorm(width, 8, 3)
        self.first = InputChoice(("own", "down"), name="first")
        self.second = InputChoice(("own", "down"), name="second")
        self.head = nn.Sequential(ChoiceConv2d(16, 5, bias=True), nn.Upsample(scale_factor=2.0))

    def forward(self, images):
        x = self.blocks(self.stem(images))
        down = Lazy(lambda: self.down(x))
        one, other = self.first([x, down]), self.second([x, down])
        return self.head(torch.cat([self.fine(one), self.coarse(other)], 1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ChoiceNetwork(Paths()).eval()


@pytest.fixture(scope="module")
def inventory(network):
    return inventory_of(network, SIZE)


def price(spec):
    """A latency for every signature, without measuring."""
    return 0.1 + int(hashlib.sha256(spec.key.encode()).hexdigest()[:6], 16) / 2**24


@pytest.fixture(scope="module")
def terms(inventory):
    return latency_terms(inventory, price)


def every_network(inventory):
    for indices in itertools.product(*map(range, inventory.sizes.values())):
        yield dict(zip(inventory.sizes, indices, strict=True))


def run_by_hand(network, inventory, options):
    """Paths and shapes of the units that really run, by hooks in the supernet."""
    units = {unit.path for unit in inventory.units}
    seen = []
    with ExitStack() as hooks, torch.no_grad():
        for path, module in network.network.named_modules():
            if path in units:
                hook = lambda _, args, out, path=path: seen.append((path, tuple(args[0].shape[1:]), out.shape[1]))  # noqa: E731
                hooks.callback(module.register_forward_hook(hook).remove)
        network(torch.zeros(1, 3, *SIZE), network.one_hot(options))
    return sorted(seen)


def test_the_signatures_are_those_of_what_runs(network, inventory):
    found = list(every_network(inventory))
    for options in found[:: max(1, len(found) // 40)]:
        expected = run_by_hand(network, inventory, options)
        units = [unit for unit in inventory.units if unit.runs(options)]
        specs = [(unit.path, unit.spec(options).inputs[0], unit.spec(options).out_channels) for unit in units]
        assert sorted(specs) == expected


def test_every_signature_can_be_built_and_has_its_shapes(inventory):
    assert len({item.spec.key for item in inventory.items}) == len(inventory.items)
    for item in inventory.items:
        with torch.no_grad():
            out = item.build().eval()(*(torch.zeros(1, *shape) for shape in item.spec.inputs))
        assert out.shape[1] == item.spec.out_channels
        assert (
            out.shape[2] == math.ceil(item.spec.inputs[0][1] / item.spec.stride) or item.spec.operator == "sequential"
        )


def test_the_expected_latency_is_the_sum_over_all_networks(inventory, terms):
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.rand(s, generator=generator, dtype=torch.float64) for n, s in inventory.sizes.items()}
    probabilities = {name: w / w.sum() for name, w in weights.items()}
    expected = sum(
        math.prod(float(probabilities[name][index]) for name, index in options.items())
        * sum(map(price, inventory.signatures(options)))
        for options in every_network(inventory)
    )
    latency = ExpectedLatency(terms, inventory.sizes)
    assert float(latency(probabilities)) == pytest.approx(expected, rel=1e-12)
    assert all(
        latency.at(options) == pytest.approx(sum(map(price, inventory.signatures(options))))
        for options in itertools.islice(every_network(inventory), 0, None, 17)
    )


def test_weights_scale_the_gradient_and_not_the_value(inventory, terms):
    def gradients(latency):
        flat = {n: torch.full((s,), 1 / s, requires_grad=True) for n, s in inventory.sizes.items()}
        value = latency(flat)
        value.backward()
        return float(value.detach()), {name: one.grad for name, one in flat.items()}

    value, plain = gradients(ExpectedLatency(terms, inventory.sizes))
    same, scaled = gradients(ExpectedLatency(terms, inventory.sizes, {"width": 0.25}))
    assert value == same
    torch.testing.assert_close(scaled["width"], 0.25 * plain["width"])
    torch.testing.assert_close(scaled["depth"], plain["depth"])


def test_the_programme_finds_the_extremes_and_the_likeliest_at_a_latency(inventory, terms):
    latency = ExpectedLatency(terms, inventory.sizes)
    found = {tuple(options.values()): latency.at(options) for options in every_network(inventory)}
    programme = LatencyProgramme(terms, inventory.sizes)
    fastest, slowest = min(found.values()), max(found.values())
    assert latency.at(programme.fastest()) == pytest.approx(fastest)
    assert latency.at(programme.slowest()) == pytest.approx(slowest)
    generator = np.random.default_rng(0)
    scores = {name: np.log(generator.dirichlet(np.ones(size))) for name, size in inventory.sizes.items()}
    for share in (0.2, 0.5, 0.8):
        middle = fastest + share * (slowest - fastest)
        bounds = (middle - 0.1 * (slowest - fastest), middle + 0.1 * (slowest - fastest))
        best = max(
            sum(scores[n][i] for n, i in zip(inventory.sizes, key, strict=True))
            for key, ms in found.items()
            if bounds[0] <= ms <= bounds[1]
        )
        options = programme.likeliest(scores, bounds)
        assert bounds[0] - 1e-6 <= latency.at(options) <= bounds[1] + 1e-6
        assert sum(scores[name][index] for name, index in options.items()) == pytest.approx(best)
        assert latency.at(programme.at_least(middle)) >= middle - 1e-6
    assert programme.likeliest(scores, (slowest + 1, slowest + 2)) is None
    assert programme.at_least(slowest + 1) is None


def test_without_time_for_a_range_the_nearest_network_is_found(inventory, terms, monkeypatch):
    latency, programme = ExpectedLatency(terms, inventory.sizes), LatencyProgramme(terms, inventory.sizes)
    slowest = latency.at(programme.slowest())
    solve, calls = LatencyProgramme._solve, []

    def out_of_time_first(self, objective, rows, gap=0.0):
        calls.append(len(objective))
        return (None, True) if len(calls) == 1 else solve(self, objective, rows, gap)

    monkeypatch.setattr(LatencyProgramme, "_solve", out_of_time_first)
    scores = {name: [0.0] * size for name, size in inventory.sizes.items()}
    found = programme.likeliest(scores, (slowest + 1, slowest + 2))
    assert latency.at(found) == pytest.approx(slowest)
    assert len(calls) == 2


def test_what_the_time_limit_ends_is_not_proven(inventory, terms, monkeypatch):
    """The options that the solver had found by then are returned, and say so."""
    programme = LatencyProgramme(terms, inventory.sizes)
    proven = programme.fastest()
    assert proven.proven
    solve = scipy.optimize.milp

    def out_of_time(*arguments, **options):
        found = solve(*arguments, **options)
        found.status = 1
        return found

    monkeypatch.setattr(scipy.optimize, "milp", out_of_time)
    found = programme.fastest()
    assert found == proven
    assert not found.proven


def test_the_plain_network_has_only_the_layers_that_run(network):
    plain = plain_network(network.network, {"depth": 0, "first": 0, "second": 0}, torch.empty(1, 3, *SIZE))
    assert not [name for name, _ in plain.named_parameters() if name.startswith(("blocks", "down"))]


class Added(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return self.one(x) + self.other(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Added(ChoiceConvNorm(3, WidthChoice((4, 8), name="a")), ChoiceConvNorm(3, WidthChoice((6, 8), name="b"))),
            r"one\S* \(width a\) and other\S* \(width b\) meet",
        ),
        (
            Added(ChoiceConvNorm(3, WidthChoice((4, 8), name="a")), nn.Conv2d(3, 6, 1)),
            r"one\S* \(width a\) and other \(6\) meet",
        ),
        (
            nn.Sequential(ChoiceConvNorm(3, WidthChoice((4, 8), name="a")), nn.Conv2d(8, 4, 1)),
            r"1 \(Conv2d\) has a fixed width, but reads 0\S* \(width a\)",
        ),
        (
            OperatorChoice({"x": ChoiceConv2d(3, 4), "y": ChoiceConv2d(3, WidthChoice((2, 4), name="w"))}, name="o"),
            r"o: options.x \(4\) \(option x\) and options.y \(width w\) \(option y\)",
        ),
    ],
)
def test_widths_that_do_not_fit_name_both_ends(network, message):
    with pytest.raises(UserError, match=message):
        inventory_of(ChoiceNetwork(network), SIZE)
