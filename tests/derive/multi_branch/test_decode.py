"""Decoding against a slow reference implementation, written from the paper's text."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from derive.multi_branch import decode, downsampling_layers
from dnas.ops import OPERATORS
from search_spaces.fasterseg import ArchitectureParameters, Grid, NetworkPlan
from search_spaces.fasterseg.paths import finer_probabilities
from search_spaces.fasterseg.selection import branch_paths, levels_of

RATIOS = (1, 2, 3, 5)


def random_logits(grid, seed, skips=0.0, operators=OPERATORS, ratios=RATIOS, search_ratios=True):
    generator = torch.Generator().manual_seed(seed)
    parameters = ArchitectureParameters(
        grid, len(operators), ratios, end_ratio=2, search_ratios=search_ratios, generator=generator, noise=1.0
    )
    logits = parameters.named_logits()
    for scale in grid.scales:
        if "skip" in operators:
            logits[f"alpha_{scale}"][:, operators.index("skip")] += skips
    return logits


def reference_path(logits, grid, level):
    """The level at every layer of the path with the largest product of beta_0 (footnote 2)."""
    best, best_walk = -1.0, None
    for steps in itertools.product((0, 1), repeat=grid.layers - 1):
        walk = [0, *itertools.accumulate(steps)]
        if walk[-1] != level or any(at > layer for layer, at in enumerate(walk)):
            continue
        product = 1.0
        for layer in range(1, grid.layers):
            if walk[layer] > walk[layer - 1]:
                rows = logits.get(f"beta_{grid.scales[walk[layer]]}", torch.zeros(0, 2)).double().softmax(-1)
                # Into the first cell of a level, which has no beta, where none of the others reads the finer level.
                first = layer == walk[layer]
                product *= rows[:, 1].prod().item() if first else rows[layer - walk[layer] - 1, 0].item()
        if product > best:
            best, best_walk = product, walk
    return best_walk


def reference_branch(logits, grid, operators, ratios, end_ratio, scale):
    """Remaining cells as [operator, input scale, stride, width, input channels, channels read by the next cell]."""
    level = grid.scales.index(scale)
    walk = reference_path(logits, grid, level)
    kept = []
    flow = [8 * end_ratio]  # the widths along the skips since the last operator
    for layer, at in enumerate(walk):
        last = layer == grid.last
        target = at if last else walk[layer + 1]
        alpha = logits[f"alpha_{grid.scales[at]}"][layer - at].tolist()
        operator = operators[alpha.index(max(alpha))]
        if last:
            ratio = end_ratio
        elif "gamma_8" in logits:
            row = logits[f"gamma_{grid.scales[target]}"][layer + 1 - max(1, target)].tolist()
            ratio = ratios[row.index(max(row))]
        else:
            ratio = max(ratios)
        width = ratio * grid.scales[target]
        if operator == "skip" and target == at:
            flow.append(width)
            continue
        if kept:
            kept[-1].append(min(flow))
        kept.append([operator, grid.scales[at], 1 + target - at, width, min(flow)])
        flow = [width]
    if kept:
        kept[-1].append(min(flow))
    return kept, min(flow)


def reference_decode(logits, grid, operators, ratios, end_ratio, branches):
    """Per branch, its cells as (operator, scale, stride, in_channels, channels), and the channels read at its end."""
    found = [reference_branch(logits, grid, operators, ratios, end_ratio, scale) for scale in branches]
    result = []
    for kept, end in found:
        cells = []
        for index, (operator, scale, stride, width, read, wanted) in enumerate(kept):
            made = wanted
            for others, _ in found:
                alike = len(others) > index and all(a[:5] == b[:5] for a, b in zip(kept, others[: index + 1]))  # noqa: B905
                made = max(made, others[index][5]) if alike else made
            cells.append((operator, scale, stride, read, width if operator == "skip" else made))
        result.append((cells, end))
    return result


CASES = [Grid(3), Grid(4), Grid(6), Grid(7), Grid(5, (8, 16)), Grid(4, (8,))]


@pytest.mark.parametrize("grid", CASES, ids=str)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), skips=st.floats(-1, 3), end_ratio=st.sampled_from((1, 2, 4, 7)))
def test_decoding_equals_the_reference(grid, seed, skips, end_ratio):
    logits = random_logits(grid, seed, skips)
    for count in range(1, len(grid.scales) + 1):
        for branches in grid.branch_combinations(count):
            architecture = decode(logits, NetworkPlan(grid, OPERATORS, RATIOS, 2, 3, (64, 96), end_ratio), branches)
            architecture.check()
            expected = reference_decode(logits, grid, OPERATORS, RATIOS, end_ratio, branches)
            assert [branch.scale for branch in architecture.branches] == list(branches)
            for branch, (cells, end) in zip(architecture.branches, expected, strict=True):
                assert [(c.operator, c.scale, c.stride, c.in_channels, c.channels) for c in branch.cells] == cells
                assert branch.channels == end


@pytest.mark.parametrize("operators", [("conv",), ("skip",), ("conv", "skip"), ("zoomed_conv_x2", "conv_x2")])
@pytest.mark.parametrize("ratios", [(3,), (1, 4)])
@pytest.mark.parametrize("search_ratios", [True, False])
def test_few_choices(operators, ratios, search_ratios):
    grid = Grid(5)
    logits = random_logits(grid, 1, operators=operators, ratios=ratios, search_ratios=search_ratios)
    architecture = decode(logits, NetworkPlan(grid, operators, ratios, 2, 3, (64, 96), 2), (16, 32))
    expected = reference_decode(logits, grid, operators, ratios, 2, (16, 32))
    for branch, (cells, _) in zip(architecture.branches, expected, strict=True):
        assert [(c.operator, c.scale, c.stride, c.in_channels, c.channels) for c in branch.cells] == cells
        assert all(0 <= cell.margin <= 1 for cell in branch.cells)
        if len(operators) == 1:
            assert all(cell.margin == pytest.approx(1.0) for cell in branch.cells)


def test_decoding_is_pure():
    grid = Grid(6)
    logits = random_logits(grid, 5)
    before = {name: table.clone() for name, table in logits.items()}
    choices = NetworkPlan(grid, OPERATORS, RATIOS, 2, 3, (64, 96), 2)
    first = decode(logits, choices, (8, 32), {"run": "here", "epoch": 3})
    assert decode(logits, choices, (8, 32), {"run": "here", "epoch": 3}) == first
    assert first.provenance == {"run": "here", "epoch": "3"}
    assert all(torch.equal(logits[name], table) for name, table in before.items())


def test_adding_a_constant_to_a_row_changes_nothing_but_rounding():
    """Decoding takes logits, not probabilities: it applies the softmax once to each row."""
    grid = Grid(6)
    logits = random_logits(grid, 5)
    moved = {name: table + torch.linspace(-3, 3, len(table))[:, None] for name, table in logits.items()}
    choices = NetworkPlan(grid, OPERATORS, RATIOS, 2, 3, (64, 96), 2)
    first, second = (decode(tables, choices, (16, 32)) for tables in (logits, moved))
    for a, b in zip(first.branches, second.branches, strict=True):
        assert [(c.operator, c.layer, c.channels) for c in a.cells] == [
            (c.operator, c.layer, c.channels) for c in b.cells
        ]
        assert a.path_margin == pytest.approx(b.path_margin, abs=1e-5)


def beta_of(grid, **rows):
    """Tables of beta with the given downsampling probabilities by layer, as ``at_16={3: 0.9}``; 0.5 elsewhere."""
    logits = {}
    for level, scale in enumerate(grid.scales):
        if level:
            table = torch.zeros(grid.beta_rows(level), 2)
            for layer, p in rows.get(f"at_{scale}", {}).items():
                table[grid.beta_row(level, layer), 0] = math.log(p / (1 - p))
            logits[f"beta_{scale}"] = table
    return logits


def test_ties_go_to_the_earliest_layers():
    grid = Grid(6)
    logits = beta_of(grid)
    assert downsampling_layers(logits, grid, 0) == ((), 0.0)
    assert downsampling_layers(logits, grid, 1) == ((2,), 1.0)
    assert downsampling_layers(logits, grid, 2) == ((2, 3), 1.0)


def test_the_joint_argmax_is_not_the_argmax_of_each():
    """beta_0 is largest at layer 4 for 16 and at 3 for 32, which is no valid path; jointly (2, 3) beats (4, 5)."""
    grid = Grid(6)
    logits = beta_of(grid, at_16={2: 0.7, 3: 0.1, 4: 0.8, 5: 0.1}, at_32={3: 0.9, 4: 0.1, 5: 0.6})
    layers, margin = downsampling_layers(logits, grid, 2)
    assert layers == (2, 3)
    assert margin == pytest.approx(0.8 * 0.6 / (0.7 * 0.9), rel=1e-5)
    assert downsampling_layers(logits, grid, 1)[0] == (4,)


def test_the_first_cell_of_a_level_is_entered_where_no_other_reads_the_finer_level():
    assert downsampling_layers(beta_of(Grid(3)), Grid(3), 2)[0] == (1, 2)
    assert downsampling_layers(beta_of(Grid(2, (8, 16))), Grid(2, (8, 16)), 1)[0] == (1,)
    for seed in range(20):
        layers, margin = downsampling_layers(random_logits(Grid(9), seed), Grid(9), 1)
        assert layers[0] > 1  # undecided logits
        assert 0 <= margin <= 1
    assert downsampling_layers({"beta_16": torch.tensor([[0.0, 5.0]] * 7)}, Grid(9, (8, 16)), 1)[0] == (1,)


@pytest.mark.parametrize("grid", [Grid(5), Grid(16), Grid(4, (8, 16))], ids=str)
def test_decoding_can_select_every_path_that_the_latency_model_prices(grid):
    """Of 16 layers, 15 paths to 1/16 and 105 to 1/32; with uniform betas all have a positive probability."""
    uniform = [torch.full((grid.beta_rows(level), 2), 0.5, dtype=torch.float64) for level in grid.levels]
    finer = finer_probabilities(uniform, grid)
    for level in grid.levels[1:]:
        paths = branch_paths(grid, level)
        assert len(paths) == math.comb(grid.layers - 1, level)
        probability = 0.0
        for path in paths:
            chances = [
                finer[layer][at] if at > before else 1 - finer[layer][at]
                for layer, (before, at) in enumerate(itertools.pairwise(levels_of(path, grid)), start=1)
            ]
            assert math.prod(chances) > 0
            probability += math.prod(chances)
            logits = {f"beta_{grid.scales[at]}": torch.zeros(grid.beta_rows(at), 2) for at in grid.levels if at}
            for at, layer in enumerate(path, start=1):
                rows = logits[f"beta_{grid.scales[at]}"]
                rows[:, 1] = 9.0
                if layer > at:
                    rows[grid.beta_row(at, layer)] = torch.tensor([9.0, 0.0])
            assert downsampling_layers(logits, grid, level)[0] == path
        assert probability == pytest.approx(1.0)


def test_the_paper_s_grid_is_decoded_whole():
    """L = 16: 14 searched positions to 16, and 13 * 14 / 2 pairs to 32, exactly one of which is the best."""
    grid = Grid(16)
    for first, second in itertools.combinations(range(2, 16), 2):
        logits = beta_of(grid, at_16={first: 0.9}, at_32={second: 0.9})
        assert downsampling_layers(logits, grid, 2)[0] == (first, second)
