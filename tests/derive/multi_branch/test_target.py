"""Derivation for a latency target: bounds and changes against brute force over a tiny space."""

import itertools

import pytest
import torch

from derive.multi_branch import decode, latency_bounds
from derive.multi_branch.decode import Likelihoods, assemble
from derive.multi_branch.target import TOLERANCE, TargetedDecoder
from search_spaces.fasterseg import ArchitectureParameters, Grid, NetworkPlan
from search_spaces.fasterseg.selection import Selection, levels_of

OPERATORS, RATIOS, END_RATIO = ("skip", "conv", "zoomed_conv"), (1, 2), 2
COST = {"skip": 0.02, "conv": 1.0, "zoomed_conv": 0.4, "stem": 0.5, "head": 0.7, "fuse": 0.3}


def price(spec):
    """A price in ms that grows with the width, as on a device."""
    return COST[spec.operator] * (0.3 + sum(shape[0] for shape in spec.inputs) / 64 + spec.out_channels / 32)


def plan_of(grid, branches):
    return NetworkPlan(grid, OPERATORS, RATIOS, branches, 3, (64, 96), END_RATIO)


def logits_of(grid, seed, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    parameters = ArchitectureParameters(
        grid, len(OPERATORS), RATIOS, end_ratio=END_RATIO, generator=generator, noise=noise
    )
    return parameters.named_logits()


def latency_of(architecture, plan):
    return sum(map(price, architecture.signatures(plan.num_classes, plan.image_size)))


def every_network(plan, likelihoods, branches):
    """(lost log-probability, ms) of every network with one branch."""
    (scale,) = branches
    for _, entered in likelihoods.paths[scale]:
        cells = [(level, layer) for layer, level in enumerate(levels_of(entered, plan.grid))]
        for names in itertools.product(OPERATORS, repeat=len(cells)):
            for ratios in itertools.product(RATIOS, repeat=len(cells) - 1):
                selection = Selection(
                    {scale: entered},
                    dict(zip(cells, names, strict=True)),
                    dict(zip(cells[1:], ratios, strict=True)),
                )
                yield likelihoods.loss(selection), latency_of(assemble(likelihoods, selection), plan)


@pytest.fixture(scope="module")
def space():
    """A single-branch plan, one set of logits, and all networks with their losses."""
    plan = plan_of(Grid(4, (8, 16)), 1)
    logits = logits_of(plan.grid, 7)
    likelihoods = Likelihoods(logits, plan)
    return plan, logits, {branches: list(every_network(plan, likelihoods, branches)) for branches in [(8,), (16,)]}


def test_bounds_are_those_of_brute_force(space):
    plan, _, networks = space
    bounds = latency_bounds(plan, price)
    assert bounds.keys() == networks.keys()
    for branches, (fastest, slowest) in bounds.items():
        latencies = [ms for _, ms in networks[branches]]
        assert fastest.latency_ms == pytest.approx(min(latencies))
        assert slowest.latency_ms == pytest.approx(max(latencies))
        assert latency_of(fastest.architecture, plan) == fastest.latency_ms


@pytest.mark.parametrize("branches", [(8,), (16,)])
def test_every_target_that_a_network_meets_is_met_at_nearly_the_least_loss(space, branches):
    plan, logits, networks = space
    decoder = TargetedDecoder(logits, plan, price)
    latencies = [ms for _, ms in networks[branches]]
    low, high = min(latencies), max(latencies)
    excess = []
    for step in range(15):
        target = low + (high - low) * step / 14
        misses = {tolerance: [] for tolerance in (0.02, TOLERANCE)}
        for lost, ms in networks[branches]:
            for tolerance, near in misses.items():
                near += [lost] if abs(ms / target - 1) <= tolerance else []
        within = misses[0.02] or misses[TOLERANCE]
        found = decoder.decode(branches, target)
        assert latency_of(found.chosen.architecture, plan) == found.chosen.latency_ms
        assert found.likeliest.lost == pytest.approx(0.0)
        if within:
            assert found.reaches(target), target
            excess.append(found.chosen.lost - min(within))
    assert len(excess) > 10
    assert sum(excess) / len(excess) < 1.0  # in log-probability, compared with the best of all networks


def test_the_argmax_is_left_alone_where_it_is_near_enough(space):
    plan, logits, _ = space
    argmax = decode(logits, plan, (16,), {"a": 1})
    ms = latency_of(argmax, plan)
    decoder = TargetedDecoder(logits, plan, price)
    for target in (0.96 * ms, ms, 1.04 * ms):
        found = decoder.decode((16,), target, {"a": 1})
        assert found.chosen.architecture == argmax
        assert found.changes == ()
    other = decoder.decode((16,), 0.8 * ms)
    assert other.chosen.lost > 0
    assert len(other.changes) >= 1
    assert all(" -> " in change for change in other.changes)
    assert any(cell.margin < 0 for cell in other.chosen.architecture.branches[0].cells) or other.changes


def test_a_deep_grid_meets_any_target_between_its_bounds():
    grid = Grid(12)
    plan = plan_of(grid, 2)
    logits = logits_of(grid, 3)
    bounds = latency_bounds(plan, price)
    decoder = TargetedDecoder(logits, plan, price)
    for branches, (fastest, slowest) in bounds.items():
        for share in (0.02, 0.5, 0.98):
            target = fastest.latency_ms + share * (slowest.latency_ms - fastest.latency_ms)
            found = decoder.decode(branches, target)
            assert found.reaches(target)
            found.chosen.architecture.check()
