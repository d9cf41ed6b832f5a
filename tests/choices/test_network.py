"""Running networks with choices: samples, gradients, the plain network of one option each."""

import itertools
import random

import pytest
import torch
from torch import nn

from dnas.choices import (
    Choice,
    ChoiceConvNorm,
    ChoiceNetwork,
    Decision,
    Kind,
    RateChoice,
    Sample,
    WidthChoice,
    named_choices,
    plain_network,
)
from dnas.errors import UserError

KINDS = {"operator": Kind(), "input": Kind(sampler="single_path"), "width": Kind(sampler="gumbel")}


def all_options(network):
    names = network.choices
    for indices in itertools.product(*(range(len(choice.labels)) for choice in names.values())):
        yield dict(zip(names, indices, strict=True))


def images(dtype=torch.float64):
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_choices_are_named_by_their_name_or_path(network):
    assert [name.removeprefix("blocks.blocks.") for name in network.choices] == [
        "width", "depth", "hidden", "0.spatial", "0.spatial.options.k3.0.rate", "1.spatial", "path",
    ]  # fmt: skip


def test_the_plain_network_computes_what_the_sample_does_and_has_no_choice_left(network):
    generator = random.Random(0)
    for options in generator.sample(list(all_options(network)), 12):
        plain = plain_network(network.network, options, images())
        with torch.no_grad():
            torch.testing.assert_close(plain(images()), network(images(), network.one_hot(options)), rtol=0, atol=1e-9)
        kinds = {type(module).__module__ for module in plain.modules()}
        assert not [module for module in plain.modules() if isinstance(module, Choice)]
        assert not any("layers" in kind for kind in kinds)
        assert all(parameter.requires_grad for parameter in plain.parameters())


def test_every_parameter_of_the_plain_network_is_used(network):
    plain = plain_network(network.network, {"depth": 1, "path": 1}, images()).train()
    plain(images()).sum().backward()
    assert not [name for name, parameter in plain.named_parameters() if parameter.grad is None]


def test_weights_that_are_one_hot_give_the_network_of_the_option(network):
    options = {"width": 1, "depth": 2, "path": 1, "blocks.blocks.0.spatial": 1}
    hard = network.one_hot(options)
    mixed = Sample(
        {
            name: Decision(one.probabilities) if network.choices[name].kind in ("operator", "input", "repeat") else one
            for name, one in hard.decisions.items()
        }
    )
    with torch.no_grad():
        torch.testing.assert_close(network(images(), mixed), network(images(), hard), rtol=0, atol=1e-9)


def test_without_a_sample_the_likeliest_options_run(network):
    with torch.no_grad():
        network.choices["path"].logits.copy_(torch.tensor([0.0, 3.0]))
        network.choices["depth"].logits.copy_(torch.tensor([0.0, 0.0, 2.0]))
        expected = network(images(), network.likeliest())
        torch.testing.assert_close(network(images()), expected)
        torch.testing.assert_close(network.network(images()), expected)


def test_a_sample_has_a_gradient_to_every_logit_that_it_depends_on(network):
    network.train()
    sample = network.sample(torch.Generator().manual_seed(3), KINDS)
    with torch.no_grad():
        deepest = network.at_end(sample, last=True).decisions["depth"]
    network(images(), sample.replaced({"depth": deepest})).square().sum().backward()
    found = {name for name, choice in network.choices.items() if choice.logits.grad is not None}
    assert found == set(network.choices) - {"depth"}
    assert all(network.choices[name].logits.grad.abs().sum() > 0 for name in found)


def test_the_same_seed_draws_the_same_sample(network):
    one, other = (network.sample(torch.Generator().manual_seed(5), KINDS) for _ in range(2))
    assert [d.index for d in one.decisions.values()] == [d.index for d in other.decisions.values()]


def test_a_sample_is_immutable(network):
    sample = network.likeliest()
    with pytest.raises(TypeError):
        sample.decisions["width"] = None
    with pytest.raises(AttributeError):
        sample.decisions = {}


def test_a_rate_is_a_real_number_and_stays_within_its_bounds():
    rate = RateChoice(3.5, 2.25)
    torch.testing.assert_close(rate.probabilities(), torch.tensor([0.0, 0.75, 0.25, 0.0]))
    with torch.no_grad():
        rate.logits.fill_(7.0)
    assert float(rate.rate().detach()) == 3.5
    rate.project()
    assert float(rate.logits.detach()) == 3.5
    inner = RateChoice(3.5, 2.25)
    (inner.probabilities() * torch.tensor([1.0, 4.0, 9.0, 16.0])).sum().backward()
    assert float(inner.logits.grad) == 5.0  # from 4 to 9


def test_choices_of_the_same_name_and_unsorted_widths_are_errors():
    with pytest.raises(UserError, match="two choices are named a"):
        named_choices(nn.ModuleList([WidthChoice((1, 2), name="a"), WidthChoice((1, 2), name="a")]))
    with pytest.raises(UserError, match="ascending"):
        WidthChoice((8, 4))


def test_a_map_of_a_width_that_a_norm_does_not_know_is_an_error():
    network = ChoiceNetwork(nn.Sequential(ChoiceConvNorm(3, WidthChoice((4, 6))), ChoiceConvNorm(4, 4)))
    with pytest.raises(UserError, match=r"4, 4.*given a map of 6 channels"):
        network(torch.zeros(1, 3, 8, 8), network.one_hot({"0.0.width": 1}))
