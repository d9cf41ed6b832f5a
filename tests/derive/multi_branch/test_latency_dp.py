"""The dynamic programme over all networks of a space against brute force over every network."""

import functools
import itertools
import zlib

import pytest
import torch

from derive.multi_branch.decode import Likelihoods, assemble
from derive.multi_branch.latency_dp import LatencyLikelihoodDP
from derive.multi_branch.prices import NetworkPrices
from dnas.networks.multi_branch import share_prefixes
from search_spaces.fasterseg import ArchitectureParameters, Grid, NetworkPlan
from search_spaces.fasterseg.selection import Selection, levels_of


@functools.cache
def hashed_price(spec):
    """A pseudo-random price for every signature, so that a wrong lookup changes the result."""
    return 0.5 + (zlib.crc32(spec.key.encode()) % 10_007) / 10_007


def likelihoods_of(plan, seed, end_ratio=2, noise=1.0):
    parameters = ArchitectureParameters(
        plan.grid,
        len(plan.operators),
        plan.ratios,
        end_ratio=end_ratio,
        generator=torch.Generator().manual_seed(seed),
        noise=noise,
    )
    return Likelihoods(parameters.named_logits(), plan)


def price(architecture, plan):
    return sum(map(hashed_price, architecture.signatures(plan.num_classes, plan.image_size)))


def decodable(entered):
    """Whether some beta decodes to these paths: see the docstring of ``latency_dp``."""
    if 16 in entered and 32 in entered:
        (at,), (first, second) = entered[16], entered[32]
        return first == at or (first < at and second <= at)
    return True


def merged_by_chance(architecture):
    """Whether the network merges cells of different layers, after a branching point, because they are identical."""
    layers = [[cell.layer for cell in branch.cells] for branch in architecture.branches]
    _, paths = share_prefixes(architecture.spec())
    places = {}
    for row, path in zip(layers, paths, strict=True):
        for layer, node in zip(row, path, strict=True):
            places.setdefault(node, set()).add(layer)
    return any(len(found) > 1 for found in places.values())


def every_network(plan, likelihoods, branches):
    """(selection, architecture) of every network with these branches, without paths through unsearched entries."""
    grid = plan.grid
    paths = [
        [layers for score, layers in likelihoods.paths[scale] if round(score / 1e6) == best]
        for scale in branches
        for best in [round(likelihoods.paths[scale][0][0] / 1e6)]
    ]
    for picked in itertools.product(*paths):
        entered = dict(zip(branches, picked, strict=True))
        if not decodable(entered):
            continue
        cells = sorted({(lv, layer) for e in picked for layer, lv in enumerate(levels_of(e, grid))})
        connections = [place for place in cells if place[1]]
        for names in itertools.product(plan.operators, repeat=len(cells)):
            for ratios in itertools.product(plan.ratios, repeat=len(connections)):
                selection = Selection(
                    entered,
                    dict(zip(cells, names, strict=True)),
                    dict(zip(connections, ratios, strict=True)),
                )
                architecture = assemble(likelihoods, selection)
                if not merged_by_chance(architecture):
                    yield selection, architecture


CASES = [
    (Grid(3, (8, 16)), ("skip", "conv"), (1, 2), 1),
    (Grid(3, (8, 16)), ("skip", "conv"), (1, 3), 2),
    (Grid(3), ("skip", "conv"), (1, 2), 2),
    (Grid(3), ("conv", "skip"), (2,), 3),
    (Grid(4), ("skip", "conv"), (1,), 2),
    (Grid(4), ("skip", "conv"), (1,), 3),
    (Grid(2, (8,)), ("conv", "zoomed_conv", "skip"), (1, 2, 3), 1),
    (Grid(5), ("conv",), (1,), 3),
]


@pytest.mark.parametrize(("grid", "operators", "ratios", "count"), CASES, ids=str)
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.0, -1.0), (1.0, 0.7), (1.0, -0.4), (1.0, 0.0)], ids=str)
def test_the_optimum_is_that_of_brute_force(grid, operators, ratios, count, weights):
    plan = NetworkPlan(grid, operators, ratios, count, 3, (64, 96), 2)
    loss_weight, latency_weight = weights
    likelihoods = likelihoods_of(plan, seed=len(operators) + grid.layers)
    optimum = LatencyLikelihoodDP(
        NetworkPrices(plan, hashed_price), likelihoods, loss_weight=loss_weight, latency_weight=latency_weight
    )
    for branches in plan.combinations():
        found = optimum.selection(branches)
        network = assemble(likelihoods, found)
        value = loss_weight * likelihoods.loss(found) + latency_weight * price(network, plan)
        best = min(
            loss_weight * likelihoods.loss(selection) + latency_weight * price(architecture, plan)
            for selection, architecture in every_network(plan, likelihoods, branches)
        )
        if merged_by_chance(network):
            assert latency_weight > 0
            assert value < best
        else:
            assert value == pytest.approx(best, abs=1e-9), branches
