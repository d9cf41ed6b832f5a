"""The spaces that are networks with choices, small: what they price, derive and build."""

import hashlib
import random

import pytest
import torch
from torch import nn

from derive import deriver_of
from dnas.choices import RateChoice, plain_network
from dnas.errors import UserError
from dnas.pricing import ExpectedLatency, LatencyProgramme, latency_terms
from search_spaces import load_space, preset_names, space_from

TASK = {"input_size": [64, 96], "num_classes": 5}
SPACES = {
    "dwrseg": {"network": {"modules": [1, 2, 1], "rates": [1, 3, 5], "width": 0.25}},
    "dwrseg_modules": {
        "network": {
            "stem": 4,
            "widths": [[4, 6], [6, 8], [8, 12]],
            "modules": [2, 2, 1],
            "expansions": [1, 2],
            "rates": [[1, 3], [1, 3, 5]],
            "decoder": 8,
        }
    },
    "eseg": {
        "network": {
            "stem": 4,
            "widths": [[4], [4, 8], [8], [8, 12]],
            "depths": [1, 2, 1, 1],
            "expansions": [1, 2],
            "coarsest": [5, 7],
            "repeats": 2,
            "pyramid_widths": [4, 8],
        }
    },
    "fasterseg_dilated": {
        "network": {
            "layers": 3,
            "ratios": [1, 2],
            "end_ratio": 1,
            "operators": ["skip", "zoomed_conv", "d_block"],
            "upper": 2.5,
            "group_width": 2,
        }
    },
}


def price(spec):
    """A latency for every signature, without measuring."""
    return 0.1 + int(hashlib.sha256(spec.key.encode()).hexdigest()[:6], 16) / 2**24


@pytest.fixture(scope="module", params=list(SPACES))
def space(request):
    return space_from({"space": request.param, "task": TASK, **SPACES[request.param]}, request.param)


def chosen(space, count):
    generator = random.Random(0)
    return [{n: generator.randrange(s) for n, s in space.priced.sizes.items()} for _ in range(count)]


def settled(network):
    """Running statistics as after training."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def test_the_derived_network_computes_what_the_supernet_does(space):
    network = settled(space.supernet()).double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for options in chosen(space, 3):
        plain = plain_network(network.network, options, space.example())
        with torch.no_grad():
            out = plain(images)
            torch.testing.assert_close(out, network(images, network.one_hot(options)), rtol=0, atol=1e-9)
        assert out.shape == (2, 5, 64, 96)
    architecture = deriver_of(space).draw(1, 0)[0]
    assert architecture.build(5).eval()(images.float()).shape == (2, 5, 64, 96)


def test_its_latency_is_the_sum_of_its_signatures(space):
    known = {item.spec for item in space.inventory()}
    latency = ExpectedLatency(latency_terms(space.priced, price), space.priced.sizes)
    for options in chosen(space, 10):
        signatures = space.priced.signatures(options)
        assert set(signatures) <= known
        assert latency.at(options) == pytest.approx(sum(map(price, signatures)))


def test_the_programme_s_bounds_hold_for_all_drawn_networks(space):
    terms = latency_terms(space.priced, price)
    latency, programme = ExpectedLatency(terms, space.priced.sizes), LatencyProgramme(terms, space.priced.sizes)
    fastest, slowest = latency.at(programme.fastest()), latency.at(programme.slowest())
    drawn = [latency.at(options) for options in chosen(space, 200)]
    assert fastest - 1e-6 <= min(drawn) < max(drawn) <= slowest + 1e-6


def test_every_signature_can_be_built(space):
    for item in space.inventory():
        with torch.no_grad():
            out = item.build().eval()(*(torch.zeros(1, *shape) for shape in item.spec.inputs))
        assert out.shape[1] == item.spec.out_channels


def test_an_architecture_names_only_the_choices_that_it_uses(space):
    fewest = deriver_of(space).draw(1, 3)[0]
    signatures = space.priced.signatures(fewest.indices(space))
    assert set(fewest.options) <= set(space.choices)
    for name in set(space.choices) - set(fewest.options):
        for index in range(len(space.choices[name].labels)):
            assert space.priced.signatures({**fewest.indices(space), name: index}) == signatures


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith(tuple(SPACES))])
def test_the_presets_are_valid(name):
    space = load_space(name)
    if space.settings.space in SPACES:
        kinds = {choice.kind for choice in space.choices.values()}
        assert set(space.kinds) <= kinds


def test_rates_of_a_block_are_rounded_by_regseg_s_rule():
    space = space_from({"space": "fasterseg_dilated", "task": TASK, **SPACES["fasterseg_dilated"]}, "joint")
    rates = [name for name, choice in space.choices.items() if isinstance(choice, RateChoice)]
    one, other = rates[:2]
    rounded = space.rounded(dict.fromkeys(rates, 1.0) | {one: 1.6, other: 1.4})
    assert (rounded[one], rounded[other]) == (2, 1)


def test_an_error_names_the_preset_once():
    space = space_from({"space": "dwrseg", "task": TASK, "network": {"rates": [1, 1]}}, "mine.yaml")
    for make in (space.made, space.supernet, lambda: space.priced, lambda: space.shadow):
        with pytest.raises(UserError, match=r"^mine.yaml: network.rates: given \[1, 1\], expected distinct rates$"):
            make()


def test_settings_that_do_not_fit_are_errors():
    with pytest.raises(UserError, match="expected distinct rates"):
        space_from({"space": "dwrseg", "task": TASK, "network": {"rates": [1, 1]}}, "x").network()
    with pytest.raises(UserError, match=r"network.rates: given \[\[1, 3\], \[1, 3\]\], expected distinct ones"):
        space_from({"space": "dwrseg_modules", "task": TASK, "network": {"rates": [[1, 3], [1, 3]]}}, "x").network()
    with pytest.raises(UserError, match="distinct ascending levels"):
        space_from({"space": "eseg", "task": TASK, "network": {"coarsest": [7, 5]}}, "x").network()
    with pytest.raises(UserError, match="cannot be divided into two branches"):
        space_from({"space": "fasterseg_dilated", "task": TASK, "network": {"group_width": 12}}, "x").network()
