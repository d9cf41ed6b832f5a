"""RegSeg's space: presets, supported networks, search problem, latencies, and invalid settings."""

import math

import pytest
import torch

from dnas.errors import UserError
from dnas.networks import create_network, field_of_view
from dnas.ops import round_dilations
from dnas.search import JointProblem
from search_spaces import load_space, preset_names, space_from
from search_spaces.regseg import RegSegSpace

SMALL = {"name": "regseg_small", "options": {"rates": [[1, 1], [1, 1]], "width": 32, "split_equal": True}}
BLOCKS = "backbone.blocks.*.dilated.branches.*"


def space_of(network=SMALL, classes=4, size=(64, 64), **rates):
    values = {
        "space": "regseg",
        "task": {"input_size": list(size), "num_classes": classes},
        "network": network,
        "rates": rates,
    }
    return space_from(values, "mine")


class Counting:
    """Latencies: the whole network 100 ms; a convolution 1 ms plus 0.5 ms per unit of its rate."""

    def __init__(self):
        self.asked = []

    def lookup(self, spec):
        self.asked.append(spec)
        extras = dict(spec.extras)
        return 100.0 if "dilation" not in extras else 1.0 + 0.5 * extras["dilation"]


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("regseg")])
def test_presets_are_complete_configurations(name):
    space = load_space(name)
    assert isinstance(space, RegSegSpace)
    assert not space.requires_table
    again = space_from(space.configuration(), name)
    assert again.settings == space.settings
    problem = space.problem(None, seed=0)
    assert isinstance(problem, JointProblem)
    monitored = problem.monitor()
    assert monitored["latency_ms"] == {}
    initial = space.settings.rates.initial
    assert set(monitored["rates"].values()) == {initial}
    assert all(initial <= bound <= space.settings.rates.upper for bound in monitored["upper"].values())


def test_the_papers_preset_searches_the_last_13_blocks():
    """RegSeg v3, section 3.3: "We tune the dilation rates for the last 13 stride 1 blocks"."""
    problem = load_space("regseg", ["rates.initial=1.0"]).problem(None, 0)
    assert list(problem.layers) == [
        f"backbone.stage16.{block}.dilated.branches.{branch}" for block in range(1, 14) for branch in (0, 1)
    ]
    whole = round_dilations(problem.weights)
    reference = create_network("regseg", 19, rates=[[1, 1]] * 13)
    count = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in whole.parameters()) == count
    assert field_of_view(whole) == field_of_view(reference) == problem.monitor()["field_of_view"]


def test_the_problem_is_the_same_for_the_same_seed():
    space = space_of(layers=BLOCKS)
    first, again, other = (space.problem(None, seed).weights.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("torchvision:lraspp_mobilenet_v3_large", None),
        ("torchvision:deeplabv3_resnet50", "classifier.0.convs.[123].0"),
        ("torchvision:fcn_resnet50", ["backbone.layer4.*.conv2", "backbone.layer3.5.conv2"]),
        ("dwrseg_b", None),
    ],
)
def test_any_network_by_name(name, layers):
    problem = space_of({"name": name}, layers=layers).problem(None, 0)
    rates = problem.monitor()["rates"]
    assert len(rates) == {"torchvision:deeplabv3_resnet50": 3, "torchvision:fcn_resnet50": 4}.get(name, len(rates))
    (forward,) = problem.validation_passes().values()
    problem.weights.eval()
    with torch.no_grad():
        logits = problem.outputs(torch.zeros(1, 3, 64, 96), forward)["logits"]
    assert logits.shape == (1, 4, 64, 96)


def test_prices_follow_the_rates():
    space = space_of(layers=BLOCKS, upper=4, initial=1.5, size=(96, 128))
    table = Counting()
    problem = space.problem(table, 0)
    named = {item.spec for item in space.inventory()}
    assert set(table.asked) == named
    assert {spec.inputs[0] for spec in named} == {(3, 96, 128), (16, 12, 16)}
    assert len(named) == 1 + 4  # all four layers are equal
    # The network was measured at rates 1: four layers are half a unit above, at 0.5 ms per unit.
    assert problem.monitor()["latency_ms"] == {"network": pytest.approx(101.0)}
    (forward,) = problem.weight_passes("search", torch.Generator())
    problem.latency(forward).backward()
    assert all(p.grad.item() == pytest.approx(0.5) for p in problem.architecture.parameters())
    for item in space.inventory():
        out = item.build().eval()(torch.zeros(1, *item.spec.inputs[0]))
        assert out.shape[1:] == (item.spec.out_channels, *((96, 128) if out.shape[1] == 4 else (12, 16)))


def test_prices_need_a_largest_rate():
    with pytest.raises(UserError, match=r"mine: rates.upper: given null, expected a number"):
        space_of(layers=BLOCKS).inventory()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": {"initial": 0.5}}, r"rates.initial: given 0.5"),
        ({"rates": {"upper": 0}}, r"rates.upper: given 0"),
        ({"rates": {"initial": 3, "upper": 2}}, r"rates: given .*upper bound 2 excludes the initial rate 3"),
        ({"rates": {"range": [1, 2]}}, r"rates.range: unknown key, known keys: layers, initial, upper"),
        ({"search": {"search_epochs": 1}}, r"search.search_epochs: unknown key"),
        ({"task": {"num_classes": 3}}, r"task.input_size: missing"),
        ({"network": {"options": {}, "kind": 3}}, r"network.kind: unknown key"),
    ],
)
def test_mistakes_name_their_path(change, message):
    values = {"space": "regseg", "task": {"input_size": [64, 64], "num_classes": 3}, **change}
    with pytest.raises(UserError, match=message) as caught:
        space_from(values, "mine")
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "rates", "message"),
    [
        (SMALL, {"layers": "blocks.*"}, r"mine: rates.layers: the pattern 'blocks.\*' matches no convolution"),
        (SMALL, {}, r"mine: rates.layers: no convolution with a dilation above 1"),
        (SMALL, {"layers": BLOCKS, "initial": 2.5}, r"mine: layer backbone.blocks.0.*2.5, expected 1 to 1.875"),
        (
            {"name": "dwrseg_b"},
            {"upper": 2},
            r"mine: layer .*initial dilation rate 3, expected 1 to 2, rates.upper",
        ),
        ({"name": "regnet"}, {}, r"mine: unknown network 'regnet'; known networks: .*regseg_small, torchvision:deep"),
        (
            {"name": "torchvision:resnet50"},
            {},
            r"mine: torchvision has no segmentation network 'resnet50'; known: deep",
        ),
        ({"name": "regseg_small", "options": {"depth": 3}}, {}, r"mine: network regseg_small: options .*depth"),
        ({"name": "regseg_small", "options": {"width": 40}}, {}, r"mine: .*width 40: expected"),
        ({"name": "regseg_small", "options": {"rates": [[0, 1]]}}, {}, r"mine: .*block 1: given \[0, 1\]"),
        ({"name": "regseg", "options": {"rates": [[1, 2]]}}, {}, r"mine: dilation rates: given 1 blocks"),
    ],
)
def test_mistakes_about_the_network(network, rates, message):
    with pytest.raises(UserError, match=message) as caught:
        space_of(network, **rates).problem(None, 0)
    assert "\n" not in str(caught.value)


def test_gaps_are_allowed_on_request():
    problem = space_of(layers=BLOCKS, initial=9, allow_gaps=True).problem(None, 0)
    assert all(math.isinf(layer.upper) for layer in problem.layers.values())
