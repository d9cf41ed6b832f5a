"""A supernet whose parameters are one-hot computes the same function as the derived network that copies its weights."""

import random

import pytest
import torch

from derive import Choices, decode, inherit_weights
from dnas.ops import OPERATORS
from dnas.supernet import ArchitectureParameters, Grid, MultiResolutionSupernet, Sample

RATIOS = (2, 3, 4)
END_RATIOS = (3, 4)


def one_hot_sample(logits, grid, end_ratio):
    """The sample in which every choice is certain, and the widths are those choices."""

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
    """Decided logits: one entry of every row is 9, the rest 0; beta goes coarser at exactly one layer a level."""
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
    for module in supernet.modules():  # statistics that differ by channel and width, as after training
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
            architecture = decode(logits, Choices(grid, tuple(operators), RATIOS, end_ratio), combination)
            architecture.check()
            network = inherit_weights(supernet, architecture).double()
            torch.testing.assert_close(network(images), expected[combination], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [(64, 96), (71, 97)])
def test_random_one_hot_supernet_equals_derived_network(seed, size):
    grid = Grid(7)
    supernet = make_supernet(grid, branches=2).eval()
    assert_equal_functions(supernet, random_logits(grid, seed), grid, END_RATIOS[seed % 2], size)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("training", [False, True])
def test_every_operator_everywhere(operator, training):
    """Also with the batch's own statistics, as while training."""
    grid = Grid(5)
    supernet = make_supernet(grid, branches=3).train(training)
    logits = random_logits(grid, seed=3)
    for scale in grid.scales:
        logits[f"alpha_{scale}"] = torch.zeros_like(logits[f"alpha_{scale}"])
        logits[f"alpha_{scale}"][:, OPERATORS.index(operator)] = 9.0
    assert_equal_functions(supernet, logits, grid, 3, (65, 90))


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_every_scale_path(branches):
    """All pairs of layers at which a path can be decided to go coarser."""
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


def test_teacher_takes_the_widest_everywhere():
    grid = Grid(5)
    teacher = ArchitectureParameters(grid, len(OPERATORS), RATIOS, end_ratio=4, search_ratios=False)
    architecture = decode(teacher.named_logits(), Choices(grid, OPERATORS, RATIOS, 4), (8, 32))
    cells = [cell for branch in architecture.branches for cell in branch.cells]
    assert cells
    assert all(cell.channels == 4 * cell.scale for cell in cells)
