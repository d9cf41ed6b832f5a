"""The expected latency compared with brute force, its decoupled gradients, and FasterSeg's Table 2."""

import dataclasses
import functools
import itertools
import math
import zlib

import pytest
import torch

from derive.multi_branch import decode
from search_spaces.fasterseg import ArchitectureParameters, Grid
from search_spaces.fasterseg.expected_latency import (
    DecoupledWeights,
    ExpectedLatency,
    NetworkPlan,
    Sensitivities,
    uniform_sample,
)

OPERATORS = ("skip", "conv")
RATIOS = (1, 2)


@functools.cache
def hashed_price(spec):
    """A pseudo-random price for every signature, so that a wrong lookup changes the result."""
    return 0.5 + (zlib.crc32(spec.key.encode()) % 10_007) / 10_007


def plan_of(layers, branches, scales=(8, 16)):
    return NetworkPlan(Grid(layers, scales), OPERATORS, RATIOS, branches, 3, (64, 96), 2)


def all_networks(sample, plan):
    """(probability, operators, predecessors, widths) of every discrete network that a sample describes."""
    grid = plan.grid
    axes = [
        *(("alpha", lv, r) for lv in grid.levels for r in range(grid.alpha_rows(lv))),
        *(("beta", lv, r) for lv in grid.levels for r in range(grid.beta_rows(lv))),
        *(("gamma", lv, r) for lv in grid.levels for r in range(grid.gamma_rows(lv))),
    ]
    tables = [getattr(sample, kind)[level][row].tolist() for kind, level, row in axes]
    for picks in itertools.product(*(range(len(table)) for table in tables)):
        probability = math.prod(table[pick] for table, pick in zip(tables, picks, strict=True))
        yield probability, dict(zip(axes, picks, strict=True))


def price_by_hand(picks, plan, combination, end_ratio, price):
    """Follow every branch back to the stem, collect the distinct operators, and add up their prices."""
    from search_spaces.fasterseg.signatures import cell_signature, fuse_signature, head_signature, stem_signature

    grid, size = plan.grid, plan.image_size

    def width(level, layer):
        ratio = end_ratio if layer in (0, grid.layers) else RATIOS[picks["gamma", level, grid.gamma_row(level, layer)]]
        return ratio * grid.scales[level]

    runs = set()
    total = price(stem_signature(end_ratio, size)) + price(
        head_signature(end_ratio, len(combination), plan.num_classes, size)
    )
    for scale in combination:
        level, target = grid.level_of(scale), grid.level_of(scale)
        for layer in range(grid.last, -1, -1):
            operator = OPERATORS[picks["alpha", level, grid.alpha_row(level, layer)]]
            runs.add((level, layer, target, operator))
            if layer == 0:
                break
            target = level
            if level and (layer == level or picks["beta", level, grid.beta_row(level, layer)] == 0):
                level -= 1
                total += price(fuse_signature(width(level, layer - 1), grid.scales[level], end_ratio, size))
    for level, layer, target, operator in runs:
        if operator == "skip" and level == target:
            continue
        total += price(
            cell_signature(
                operator, width(level, layer), width(target, layer + 1), grid.scales[level], 1 + target - level, size
            )
        )
    return total


@pytest.mark.parametrize(
    ("layers", "scales", "branches", "ratios"),
    [
        (3, (8, 16), 1, RATIOS),
        (3, (8, 16), 2, RATIOS),
        (3, (8, 16, 32), 3, RATIOS),
        (2, (8,), 1, RATIOS),
        (4, (8, 16, 32), 2, (1,)),  # deep enough for shared prefixes and different branching points
        (4, (8, 16, 32), 3, (1,)),
    ],
)
def test_expectation_equals_brute_force(layers, scales, branches, ratios):
    plan = dataclasses.replace(plan_of(layers, branches, scales), ratios=ratios)
    generator = torch.Generator().manual_seed(0)
    parameters = ArchitectureParameters(plan.grid, 2, ratios, end_ratio=2, generator=generator, noise=1.0).double()
    sample = parameters.sample(generator)
    expected = ExpectedLatency(plan, hashed_price)(sample)
    sums = dict.fromkeys(plan.combinations(), 0.0)
    mass = 0.0
    for probability, picks in all_networks(sample, plan):
        mass += probability
        for combination in sums:
            sums[combination] += probability * price_by_hand(picks, plan, combination, 2, hashed_price)
    assert mass == pytest.approx(1.0, abs=1e-9)
    for combination, value in sums.items():
        assert expected[combination].item() == pytest.approx(value, rel=1e-7)


def test_decided_sample_costs_what_the_derived_network_costs():
    """Without skips, which narrow their neighbours, a one-hot sample costs as much as the derived network."""
    plan = NetworkPlan(Grid(6), ("conv", "conv_x2", "zoomed_conv"), RATIOS, 2, 3, (64, 96), 2)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        parameters = ArchitectureParameters(plan.grid, 3, RATIOS, end_ratio=2, generator=generator).double()
        for table in (*parameters.alpha, *parameters.gamma):
            table.data = 1e9 * table.data
        for level, layer in ((1, 2 + seed % 2), (2, 4 + seed % 2)):
            table = parameters.beta[level]
            table.data = torch.tensor([[-1e4, 1e4]], dtype=torch.float64).repeat(len(table), 1)
            table.data[plan.grid.beta_row(level, layer)] = torch.tensor([1e4, -1e4])
        latency = ExpectedLatency(plan, hashed_price)(parameters.sample(generator))
        for combination, expected in latency.items():
            architecture = decode(parameters.named_logits(), plan, combination)
            price = sum(map(hashed_price, architecture.signatures(3, plan.image_size)))
            assert expected.item() == pytest.approx(price, rel=1e-6)


def test_decoupled_weights_scale_each_gradient_and_leave_the_value():
    plan = plan_of(5, 2, (8, 16, 32))
    generator = torch.Generator().manual_seed(1)
    parameters = ArchitectureParameters(plan.grid, 2, RATIOS, end_ratio=2, generator=generator, noise=0.5).double()
    latency = ExpectedLatency(plan, hashed_price)

    def gradients(weights):
        parameters.zero_grad()
        total = torch.stack(list(latency(parameters.at_width("likeliest"), weights).values())).sum()
        total.backward()
        grads = {
            kind: torch.cat([p.grad.flatten() for p in getattr(parameters, kind) if p.grad is not None])
            for kind in ("alpha", "beta", "gamma")
        }
        return total.item(), grads

    plain_value, plain = gradients(None)
    value, scaled = gradients(DecoupledWeights(alpha=0.001, beta=0.997, gamma=0.002))
    assert value == plain_value
    for kind, factor in (("alpha", 0.001), ("beta", 0.997), ("gamma", 0.002)):
        assert plain[kind].abs().max() > 0
        torch.testing.assert_close(scaled[kind], factor * plain[kind])


def test_weights_of_the_paper_follow_from_its_table_2():
    """FasterSeg Table 2 gives (10.42, 0.01, 5.54) ms, section 3.2 the weights (0.001, 0.997, 0.002)."""
    weights = Sensitivities(operator=10.42, scale=0.01, ratio=5.54).balanced()
    assert (round(weights.alpha, 3), round(weights.beta, 3), round(weights.gamma, 3)) == (0.001, 0.997, 0.002)
    assert weights.alpha + weights.beta + weights.gamma == pytest.approx(1)


def test_layers_of_unit_cost_add_up_to_their_number():
    """Six layers of unit cost along one branch cost 6, not 23.5 as in the published code, which mixes layers."""
    plan = NetworkPlan(Grid(6), ("conv",), (1,), 1, 2, (64, 64), 1)

    def unit(spec):
        return float(spec.operator == "conv")

    for value in ExpectedLatency(plan, unit)(uniform_sample(plan)).values():
        assert value.item() == pytest.approx(6.0)


def test_sensitivities_of_a_table_that_only_one_granularity_moves():
    plan = NetworkPlan(Grid(4, (8, 16)), ("conv", "conv_x2"), (1, 2), 1, 2, (64, 64), 1)
    latency = ExpectedLatency(plan, lambda spec: 2.0 if spec.operator == "conv_x2" else 1.0)
    found = latency.sensitivities()
    assert found.operator == pytest.approx(4.0)
    assert found.ratio == pytest.approx(0.0)
