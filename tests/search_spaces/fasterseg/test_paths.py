"""Grid and path probabilities, compared with an enumeration of all walks."""

import itertools
import math

import pytest
import torch

from search_spaces.fasterseg import ArchitectureParameters, Grid, downsampling, finer_probabilities, meetings, visits
from search_spaces.fasterseg.paths import visits_together

GRIDS = [Grid(6), Grid(5), Grid(3), Grid(4, (8, 16)), Grid(3, (8,)), Grid(2, (8, 16))]


def random_beta(grid):
    parameters = ArchitectureParameters(
        grid, 2, (1,), end_ratio=1, generator=torch.Generator().manual_seed(3), noise=1.5
    ).double()
    return [table.detach().softmax(-1) for table in parameters.beta]


def predecessors(grid, level, layer):
    """(level, beta's column or None if there is no choice) of the possible predecessors of a cell."""
    found = [level - 1] if level else []
    found += [level] if layer > level else []
    return [(source, column if len(found) == 2 else None) for column, source in enumerate(found)]


def all_walks(grid, level):
    """All walks from the last cell of a level back to the stem, as the levels by layer."""
    walks = [(level,)]
    for layer in range(grid.last, 0, -1):
        walks = [(source, *walk) for walk in walks for source, _ in predecessors(grid, walk[0], layer)]
    return walks


def probability(grid, beta, walk):
    result = 1.0
    for layer in range(1, grid.layers):
        level = walk[layer]
        column = dict(predecessors(grid, level, layer))[walk[layer - 1]]
        if column is not None:
            result *= beta[level][grid.beta_row(level, layer), column].item()
    return result


def all_wirings(grid, beta):
    """(probability, predecessor level of every cell): all joint choices."""
    cells = [(level, layer) for level, layer in grid.cells() if layer]
    for picks in itertools.product(*(predecessors(grid, *cell) for cell in cells)):
        mass = math.prod(
            beta[level][grid.beta_row(level, layer), column].item()
            for (level, layer), (_, column) in zip(cells, picks, strict=True)
            if column is not None
        )
        yield mass, {cell: source for cell, (source, _) in zip(cells, picks, strict=True)}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_visits_and_downsamplings_equal_the_sum_over_walks(grid):
    beta = random_beta(grid)
    finer = finer_probabilities(beta, grid)
    for level in grid.levels:
        walks = {walk: probability(grid, beta, walk) for walk in all_walks(grid, level)}
        assert sum(walks.values()) == pytest.approx(1.0, abs=1e-12)
        visited = visits(finer, level, grid)
        for layer, other in itertools.product(range(grid.layers), grid.levels):
            expected = sum(mass for walk, mass in walks.items() if walk[layer] == other)
            assert float(visited[layer][other]) == pytest.approx(expected, abs=1e-12)
        for entered in range(1, level + 1):
            entering = downsampling(finer, visited, entered)
            assert len(entering) == grid.last
            assert float(sum(entering)) == pytest.approx(1.0, abs=1e-12)
            for layer in range(1, grid.layers):
                expected = sum(m for walk, m in walks.items() if walk[layer - 1 : layer + 1] == (entered - 1, entered))
                assert float(entering[layer - 1]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_visits_of_all_branches_together(grid):
    """A GPU gets these."""
    finer = finer_probabilities(random_beta(grid), grid)
    expected = torch.stack([torch.stack(visits(finer, level, grid)) for level in grid.levels], dim=1)
    torch.testing.assert_close(visits_together(finer), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if len(grid.scales) > 1], ids=str)
def test_meetings_equal_the_sum_over_wirings(grid):
    beta = random_beta(grid)
    finer = finer_probabilities(beta, grid)
    for fine, coarse in itertools.combinations(grid.levels, 2):
        expected = torch.zeros(grid.layers, len(grid.scales), dtype=torch.float64)
        for mass, source in all_wirings(grid, beta):
            here, there = fine, coarse
            for layer in range(grid.last, 0, -1):
                here, there = source[here, layer], source[there, layer]
                assert here <= there, "walks do not cross"
                if here == there:
                    expected[layer - 1, here] += mass
                    break
        found = torch.stack(meetings(finer, fine, coarse, grid))
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_path_probabilities_have_true_gradients():
    grid = Grid(5)
    tables = [table.clone().requires_grad_() for table in random_beta(grid)[1:]]

    def everything(*beta):
        finer = finer_probabilities([torch.zeros(0, 2), *beta], grid)
        visited = visits(finer, 2, grid)
        return (*visited, *downsampling(finer, visited, 1), *meetings(finer, 0, 2, grid))

    assert torch.autograd.gradcheck(everything, tables)


def test_the_paper_counts_1695_paths():
    """Section 4.2: L = 16, pairs of branches of 8, 16 and 32; there is a single path to 8."""
    grid = Grid(16)
    walks = [len(all_walks(grid, level)) for level in grid.levels]
    assert walks == [1, 15, 105]
    pairs = grid.branch_combinations(2)
    assert pairs == ((8, 16), (8, 32), (16, 32))
    assert sum(walks[grid.level_of(a)] * walks[grid.level_of(b)] for a, b in pairs) == 1695


def test_tables_of_the_paper_have_its_42_cells():
    """(15 + 14 + 13) cells with searched operators and widths after the first layers, section 4.2."""
    grid = Grid(16)
    assert [grid.gamma_rows(level) for level in grid.levels] == [15, 15, 14]
    assert [grid.beta_rows(level) for level in grid.levels] == [0, 14, 13]
    assert sum(grid.alpha_rows(level) for level in grid.levels) == len(list(grid.cells())) == 45


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_of_tables_and_cells_correspond(grid):
    cells = list(grid.cells())
    assert [layer for _, layer in cells] == sorted(layer for _, layer in cells)
    for level in grid.levels:
        layers = [layer for lv, layer in cells if lv == level]
        assert [grid.alpha_row(level, layer) for layer in layers] == list(range(grid.alpha_rows(level)))
        fed = [layer for layer in layers if layer]
        assert [grid.gamma_row(level, layer) for layer in fed] == list(range(grid.gamma_rows(level)))
        chosen = [layer for layer in fed if len(predecessors(grid, level, layer)) == 2]
        assert [grid.beta_row(level, layer) for layer in chosen] == list(range(grid.beta_rows(level)))


@pytest.mark.parametrize("scales", [(), (16,), (8, 32), (16, 8), (8, 8)])
def test_scales_that_are_not_8_and_its_doubles_are_refused(scales):
    with pytest.raises(ValueError, match="expected 8, each next one doubled"):
        Grid(6, scales)


def test_a_grid_needs_a_layer_for_every_scale():
    with pytest.raises(ValueError, match="2 layers cannot reach 3 scales"):
        Grid(2)
