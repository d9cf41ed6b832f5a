"""Discrete networks run with a supernet's weights, and random ones drawn fairly."""

import itertools
from collections import Counter

import pytest
import torch

from derive.multi_branch import inherit_weights
from derive.multi_branch.decode import Likelihoods, assemble
from search_spaces.fasterseg import ArchitectureParameters, Grid, MultiResolutionSupernet, NetworkPlan
from search_spaces.fasterseg.cell_reference import run_cell_reference
from search_spaces.fasterseg.selection import FairSampler, joint_paths, levels_of

OPERATORS = ("skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2")
RATIOS = (1, 2)


def plan_of(grid, branches=2):
    return NetworkPlan(grid, OPERATORS, RATIOS, branches, 5, (64, 96), 2)


def supernet_of(plan):
    torch.manual_seed(0)
    return MultiResolutionSupernet(plan.grid, OPERATORS, RATIOS, [2], plan.branches, plan.num_classes).double()


def assembled(plan, selection):
    parameters = ArchitectureParameters(plan.grid, len(OPERATORS), RATIOS, end_ratio=2, noise=0.0)
    return assemble(Likelihoods(parameters.named_logits(), plan), selection)


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_selection_runs_as_the_network_that_inherits_its_weights(branches, training):
    plan = plan_of(Grid(6), branches)
    supernet = supernet_of(plan).train(training)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for selection in FairSampler(plan).draw(12, torch.Generator().manual_seed(branches)):
        network = inherit_weights(supernet, assembled(plan, selection)).double().train(training)
        found = supernet.forward_selection(images, selection, 2)
        torch.testing.assert_close(found, network(images), rtol=1e-9, atol=1e-9)
        plain = supernet.forward_selection(images, selection, 2, run_cell_reference, full_size=False)
        assert plain.shape[-2:] == (8, 12)


def test_only_cells_of_the_branches_get_gradients():
    plan = plan_of(Grid(4))
    supernet = supernet_of(plan)
    (selection,) = FairSampler(plan).draw(1, torch.Generator().manual_seed(3))
    supernet.forward_selection(torch.randn(2, 3, 64, 96, dtype=torch.float64), selection, 2).sum().backward()
    reached = {name.split(".")[1] for name, p in supernet.named_parameters() if p.grad is not None and "_" in name}
    cells = {f"{level}_{layer}" for level, layer in selection.places(plan.grid)}
    assert {name for name in reached if name[0].isdigit() and "_" in name} <= cells


def test_choices_are_drawn_equally_often():
    plan = plan_of(Grid(5))
    drawn = FairSampler(plan).draw(10, torch.Generator().manual_seed(0))
    for place in plan.grid.cells():
        assert Counter(selection.operators[place] for selection in drawn) == dict.fromkeys(OPERATORS, 2)
        if place[1]:
            assert Counter(selection.ratios[place] for selection in drawn) == dict.fromkeys(RATIOS, 5)
    assert min(Counter(selection.branches for selection in drawn).values()) >= 3
    again = FairSampler(plan).draw(10, torch.Generator().manual_seed(0))
    assert again == drawn


def test_joint_paths_give_every_cell_one_predecessor():
    grid = Grid(6)
    for branches in [(8, 16), (8, 32), (16, 32), (8, 16, 32)]:
        every = list(
            itertools.product(*(itertools.combinations(range(1, 6), grid.level_of(scale)) for scale in branches))
        )
        found = joint_paths(grid, branches)
        assert len(found) < len(every) or 16 not in branches or 32 not in branches
        for entered in found:
            sources = {}
            for path in (levels_of(layers, grid) for layers in entered.values()):
                for layer, (before, at) in enumerate(itertools.pairwise(path), start=1):
                    assert sources.setdefault((at, layer), before) == before
    # The branch to 1/16 enters at a, that to 1/32 at b and c: with b or only after the other has left, c.
    triples = {(e[16][0], *e[32]) for e in joint_paths(grid, (16, 32))}
    expected = {
        (a, b, c) for a in range(1, 6) for b, c in itertools.combinations(range(1, 6), 2) if a in (b,) or a >= c
    }
    assert triples == expected
