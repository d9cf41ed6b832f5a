"""Architecture parameters and their samples."""

import dataclasses
import math

import pytest
import scipy.stats
import torch

from dnas.choices import mean_entropy
from dnas.errors import UserError
from search_spaces.fasterseg import ArchitectureParameters, Grid

RATIOS = (2, 4, 6, 8)


def parameters(grid=Grid(6), *, seed=0, noise=1.0, **options):  # noqa: B008 - a Grid is immutable
    generator = torch.Generator().manual_seed(seed)
    return ArchitectureParameters(grid, 5, RATIOS, end_ratio=4, generator=generator, noise=noise, **options)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_a_sample_is_torchs_hard_gumbel_softmax(temperature):
    """The same choices from the same noise, and the straight-through gradient of the sampled softmax entry."""
    mine = parameters()
    sample = mine.sample(generator(7), temperature)
    torch.manual_seed(7)
    for level, table in enumerate(mine.gamma):
        reference = table.detach().clone().requires_grad_()
        hard = torch.nn.functional.gumbel_softmax(reference, temperature, hard=True)
        assert sample.choice[level] == tuple(hard.argmax(1).tolist())
        assert torch.equal(sample.gate[level], torch.ones(len(table)))
        upstream = torch.linspace(-1, 2, len(table))
        (hard.max(1).values * upstream).sum().backward()
        (gradient,) = torch.autograd.grad((sample.gate[level] * upstream).sum(), table)
        torch.testing.assert_close(gradient, reference.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_choices_are_drawn_with_the_probabilities_of_gamma(temperature):
    """Chi-square on every connection, whatever the temperature; fixed seed, so no flakiness."""
    mine = parameters(Grid(4, (8, 16)))
    source = generator(1)
    draws = 1500
    counts = [torch.zeros(table.shape) for table in mine.gamma]
    with torch.no_grad():
        for _ in range(draws):
            for count, choice in zip(counts, mine.sample(source, temperature).choice, strict=True):
                count[torch.arange(len(choice)), list(choice)] += 1
        for count, table in zip(counts, mine.gamma, strict=True):
            expected = draws * table.double().softmax(1)
            expected *= count.double().sum(1, keepdim=True) / expected.sum(1, keepdim=True)
            for observed, wanted in zip(count.double(), expected, strict=True):
                assert scipy.stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3


def test_temperature_moves_the_gradient_not_the_choice():
    mine = parameters()
    cold, hot = (mine.sample(generator(3), temperature) for temperature in (0.5, 50.0))
    assert cold.choice == hot.choice
    gradients = [torch.autograd.grad(sample.gate[0].sum(), mine.gamma[0])[0].abs().max() for sample in (cold, hot)]
    assert gradients[1] < 0.05 * gradients[0]


def test_the_generator_alone_decides_the_sample():
    mine = parameters(noise=0.0)
    before = torch.get_rng_state()
    first = mine.sample(generator(5))
    torch.rand(3)
    again, other = mine.sample(generator(5)), mine.sample(generator(6))
    assert first.choice == again.choice != other.choice
    torch.set_rng_state(before)
    mine.sample(generator(5))
    mine.at_width("random", generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert mine.at_width("random", generator(5)).choice == mine.at_width("random", generator(5)).choice


def test_alpha_and_beta_are_softmaxed_once():
    mine = parameters()
    sample = mine.sample(generator(0))
    for table, weights in [*zip(mine.alpha, sample.alpha, strict=True), *zip(mine.beta, sample.beta, strict=True)]:
        torch.testing.assert_close(weights, table.exp() / table.exp().sum(1, keepdim=True))
    for table, weights in zip(mine.gamma, sample.gamma, strict=True):
        torch.testing.assert_close(weights, table.softmax(1))


def test_the_teacher_always_takes_the_widest():
    teacher = parameters(search_ratios=False)
    assert not any(table.numel() for table in teacher.gamma)
    assert not any(name.startswith("gamma") for name in teacher.named_logits())
    samples = [teacher.sample(generator(seed)) for seed in range(3)] + [teacher.at_width("likeliest")]
    for sample in samples:
        assert sample.gate is None
        assert {index for level in sample.choice for index in level} == {len(RATIOS) - 1}
        for level, table in enumerate(sample.gamma):
            assert table.shape == (teacher.grid.gamma_rows(level), len(RATIOS))
            assert torch.equal(table, torch.tensor([0.0, 0.0, 0.0, 1.0]).expand_as(table))


def test_fixed_widths():
    mine = parameters()
    for width, index in (("smallest", 0), ("largest", 3)):
        assert {i for level in mine.at_width(width).choice for i in level} == {index}
    likeliest = mine.at_width("likeliest").choice
    assert likeliest == tuple(tuple(table.argmax(1).tolist()) for table in mine.gamma)
    drawn = [i for seed in range(100) for level in mine.at_width("random", generator(seed)).choice for i in level]
    assert scipy.stats.chisquare([drawn.count(i) for i in range(4)]).pvalue > 1e-3
    with pytest.raises(ValueError, match="width 'wide': expected smallest, largest"):
        mine.at_width("wide")


def test_samples_are_immutable():
    sample = parameters().sample(generator(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.end_ratio = 2
    halved = sample.map_weights(lambda table: table / 2)
    assert halved.choice is sample.choice
    assert torch.equal(halved.alpha[1], sample.alpha[1] / 2)


def test_logits_start_undecided_and_reproducible():
    fresh = parameters(noise=1e-3)
    assert max(table.abs().max() for table in fresh.named_logits().values()) < 1e-2
    for name, table in parameters(noise=1e-3).named_logits().items():
        assert torch.equal(table, fresh.named_logits()[name])
    assert mean_entropy(list(fresh.alpha)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("grid", [Grid(6), Grid(3), Grid(3, (8,)), Grid(2, (8, 16))], ids=str)
def test_logits_load_back(grid):
    mine, other = parameters(grid), parameters(grid, seed=9)
    other.load_logits(mine.named_logits())
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))


def test_logits_that_do_not_fit_are_named():
    mine = parameters()
    logits = mine.named_logits()
    with pytest.raises(UserError, match="logits beta_16: given nothing, expected shape"):
        mine.load_logits({name: table for name, table in logits.items() if name != "beta_16"})
    with pytest.raises(UserError, match=r"logits alpha_8: given shape \(6, 4\), expected shape \(6, 5\)"):
        mine.load_logits({**logits, "alpha_8": torch.zeros(6, 4)})


def test_mean_entropy():
    assert mean_entropy([torch.zeros(3, 4), torch.zeros(2, 4)]) == pytest.approx(1.0)
    assert mean_entropy([torch.tensor([[1e4, 0.0], [0.0, 1e4]])]) == 0.0
    p = 0.25
    logits = torch.tensor([[math.log(p), math.log(1 - p)]])
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    assert mean_entropy([logits, torch.zeros(0, 2), torch.zeros(4, 1)]) == pytest.approx(expected)
    assert mean_entropy([]) == mean_entropy([torch.zeros(3, 1)]) == 0.0
