"""A supernet whose parameters are one-hot computes the same function as the derived network that copies its weights."""

import random
import sys

import pytest
import torch

from derive import MultiBranchArchitecture
from derive.multi_branch import Branch, Cell, decode, inherit_weights
from dnas.networks.multi_branch import share_prefixes
from dnas.ops import OPERATORS
from search_spaces.fasterseg import ArchitectureParameters, Grid, MultiResolutionSupernet, NetworkPlan, Sample

RATIOS = (2, 3, 4)
END_RATIOS = (3, 4)


def plan_of(grid, end_ratio, operators=OPERATORS):
    return NetworkPlan(grid, tuple(operators), RATIOS, 2, 3, (64, 96), end_ratio)


def one_hot_sample(logits, grid, end_ratio):
    """The one-hot sample of the argmax of every choice."""

    def certain(kind):
        tables = []
        for scale in grid.scales:
            table = logits.get(f"{kind}_{scale}", torch.zeros(0, 2))
            hot = torch.zeros_like(table)
            if table.numel():
                hot[torch.arange(len(table)), table.argmax(1)] = 1.0
            tables.append(hot)
        return tuple(tables)

    gamma = certain("gamma")
    choice = tuple(tuple(table.argmax(1).tolist()) for table in gamma)
    return Sample(certain("alpha"), certain("beta"), gamma, choice, None, end_ratio)


def random_logits(grid, seed, operators=OPERATORS):
    """Nearly one-hot logits: one entry of every row is 9, the rest 0; beta enters each level at exactly one layer."""
    draw = random.Random(seed)
    logits = {}
    entered = sorted(draw.sample(range(1, grid.layers), len(grid.scales) - 1))
    entered = [max(layer, level + 2) for level, layer in enumerate(entered)]
    for level, scale in enumerate(grid.scales):
        logits[f"alpha_{scale}"] = 9.0 * torch.nn.functional.one_hot(
            torch.tensor([draw.randrange(len(operators)) for _ in range(grid.alpha_rows(level))]), len(operators)
        )
        logits[f"gamma_{scale}"] = 9.0 * torch.nn.functional.one_hot(
            torch.tensor([draw.randrange(len(RATIOS)) for _ in range(grid.gamma_rows(level))]), len(RATIOS)
        )
        if level:
            rows = range(grid.beta_rows(level))
            finer = [row + level + 1 == entered[level - 1] for row in rows]
            logits[f"beta_{scale}"] = torch.tensor([[9.0, 0.0] if yes else [0.0, 9.0] for yes in finer])
    return {name: table.float() for name, table in logits.items()}


def make_supernet(grid, branches, operators=OPERATORS):
    torch.manual_seed(0)
    supernet = MultiResolutionSupernet(grid, operators, RATIOS, END_RATIOS, branches, num_classes=5).double()
    for module in supernet.modules():  # running statistics that differ by channel and width, as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return supernet


def assert_equal_functions(supernet, logits, grid, end_ratio, size, operators=OPERATORS):
    sample = one_hot_sample(logits, grid, end_ratio).map_weights(torch.Tensor.double)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = supernet(images, sample)
        for combination in supernet.combinations:
            architecture = decode(logits, plan_of(grid, end_ratio, operators), combination)
            architecture.check()
            network = inherit_weights(supernet, architecture).double()
            torch.testing.assert_close(network(images), expected[combination], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(64, 96), (71, 97)])
def test_random_one_hot_supernet_equals_derived_network(seed, size):
    grid = Grid(7)
    supernet = make_supernet(grid, branches=2).eval()
    assert_equal_functions(supernet, random_logits(grid, seed), grid, END_RATIOS[seed % 2], size)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("training", [False, True])
def test_every_operator_everywhere(operator, training):
    """Also with batch statistics, as in training."""
    grid = Grid(5)
    supernet = make_supernet(grid, branches=3).train(training)
    logits = random_logits(grid, seed=3)
    for scale in grid.scales:
        logits[f"alpha_{scale}"] = torch.zeros_like(logits[f"alpha_{scale}"])
        logits[f"alpha_{scale}"][:, OPERATORS.index(operator)] = 9.0
    assert_equal_functions(supernet, logits, grid, 3, (65, 90))


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_every_scale_path(branches):
    """All pairs of downsampling layers that logits can select."""
    grid = Grid(6)
    supernet = make_supernet(grid, branches).eval()
    for first in range(2, grid.layers):
        for second in range(max(first + 1, 3), grid.layers):
            logits = random_logits(grid, seed=first * 10 + second)
            for scale, layer in ((16, first), (32, second)):
                level = grid.level_of(scale)
                logits[f"beta_{scale}"] = torch.tensor([0.0, 9.0]).repeat(grid.beta_rows(level), 1)
                logits[f"beta_{scale}"][grid.beta_row(level, layer)] = torch.tensor([9.0, 0.0])
            assert_equal_functions(supernet, logits, grid, 4, (64, 64))


def merged_across_layers(architecture):
    """Whether branches share a cell that comes from different layers of the supernet.

    Cells are shared if operator, scale and widths are equal (section 3.4), so after the removal of skips cells of
    different layers may be merged. Their weights in the supernet differ: the derived network then cannot compute the
    same function as the supernet.
    """
    origins = {}
    for branch, path in zip(architecture.branches, share_prefixes(architecture.spec())[1], strict=True):
        for cell, index in zip(branch.cells, path, strict=True):
            origins.setdefault(index, set()).add(cell.layer)
    return any(len(layers) > 1 for layers in origins.values())


@pytest.mark.parametrize("end_ratio", END_RATIOS)
@pytest.mark.parametrize("skips", [0.4, 0.8])
def test_skips_that_narrow_shared_prefixes(end_ratio, skips):
    """Many skips between different widths: shared cells must have the largest width that any branch reads."""
    grid = Grid(7)
    supernet = make_supernet(grid, branches=3).eval()
    images = torch.randn(1, 3, 64, 90, dtype=torch.float64)
    compared = shared = 0
    for seed in range(12):
        logits = random_logits(grid, seed)
        draw = random.Random(seed)
        for scale in grid.scales:
            for row in logits[f"alpha_{scale}"]:
                if draw.random() < skips:
                    row.zero_()
                    row[0] = 9.0
        sample = one_hot_sample(logits, grid, end_ratio).map_weights(torch.Tensor.double)
        architecture = decode(logits, plan_of(grid, end_ratio), grid.scales)
        architecture.check()
        network = inherit_weights(supernet, architecture)
        shared += len(network.nodes) < sum(len(branch.cells) for branch in architecture.branches)
        if merged_across_layers(architecture):
            continue
        compared += 1
        with torch.no_grad():
            expected = supernet(images, sample)[grid.scales]
            torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-10)
    assert compared >= 6
    assert shared >= 3


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("end_ratio", END_RATIOS)
def test_every_path_of_the_grid(branches, end_ratio, monkeypatch):
    """Including those that enter a level at its first cell, which decoding selects only if no other is left.

    A one-hot beta that never selects the finer predecessor leads back to that first cell, which has no other.
    """
    grid = Grid(5)
    supernet = make_supernet(grid, branches).eval()
    for first in range(1, grid.layers):
        for second in range(first + 1, grid.layers):
            logits = random_logits(grid, seed=first * 10 + second)
            for scale, layer in ((16, first), (32, second)):
                level = grid.level_of(scale)
                logits[f"beta_{scale}"] = torch.tensor([0.0, 9.0]).repeat(grid.beta_rows(level), 1)
                if layer > level:
                    logits[f"beta_{scale}"][grid.beta_row(level, layer)] = torch.tensor([9.0, 0.0])
            walk = (first, second)
            monkeypatch.setattr(
                sys.modules["derive.multi_branch.decode"],
                "scored_paths",
                lambda _, __, level, walk=walk: [(0.0, walk[:level])],
            )
            assert_equal_functions(supernet, logits, grid, end_ratio, (64, 64))


@pytest.mark.parametrize("grid", [Grid(4, (8, 16)), Grid(3, (8,)), Grid(3)], ids=str)
@pytest.mark.parametrize("operators", [OPERATORS, ("conv",), ("skip", "zoomed_conv_x2")])
def test_other_grids_and_operators(grid, operators):
    for branches in range(1, len(grid.scales) + 1):
        supernet = make_supernet(grid, branches, operators).eval()
        for seed in range(2):
            logits = random_logits(grid, seed, operators)
            assert_equal_functions(supernet, logits, grid, END_RATIOS[seed % 2], (71, 97), operators)


def test_what_is_inherited_has_the_shapes_of_what_is_built():
    """Except double convolutions narrowed by skips: their inner convolution keeps the width of the supernet."""
    grid = Grid(6)
    supernet = make_supernet(grid, branches=2).eval()
    for seed in range(6):
        architecture = decode(random_logits(grid, seed), plan_of(grid, 3), (16, 32))
        inherited, built = inherit_weights(supernet, architecture), architecture.build(5)
        assert inherited.state_dict().keys() == built.state_dict().keys()
        narrowed = {
            index
            for branch, path in zip(architecture.branches, built.paths, strict=True)
            for cell, index in zip(branch.cells, path, strict=True)
            if cell.operator.endswith("_x2") and cell.channels < cell.width
        }
        for name, value in built.state_dict().items():
            if not any(name.startswith(f"cells.{index}.") for index in narrowed):
                assert inherited.state_dict()[name].shape == value.shape, name


def test_inheriting_shares_no_memory_with_the_supernet():
    grid = Grid(5)
    supernet = make_supernet(grid, branches=2).eval()
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    network = inherit_weights(supernet, decode(random_logits(grid, 1), plan_of(grid, 3), (8, 32)))
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items())


def test_an_architecture_that_does_not_say_where_it_came_from_cannot_inherit():
    grid = Grid(5)
    supernet = make_supernet(grid, branches=1)
    cells = (Cell(operator="conv", scale=8, in_channels=24, channels=24),)
    architecture = MultiBranchArchitecture(end_ratio=3, branches=(Branch(scale=8, channels=24, cells=cells),))
    with pytest.raises(ValueError, match="has no layer or width in the supernet"):
        inherit_weights(supernet, architecture)


def test_teacher_takes_the_widest_everywhere():
    grid = Grid(5)
    teacher = ArchitectureParameters(grid, len(OPERATORS), RATIOS, end_ratio=4, search_ratios=False)
    architecture = decode(teacher.named_logits(), plan_of(grid, 4), (8, 32))
    cells = [cell for branch in architecture.branches for cell in branch.cells]
    assert cells
    assert all(cell.channels == 4 * cell.out_scale for cell in cells)
