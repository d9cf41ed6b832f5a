"""The published decoder: each of its differences from the paper's rule, on synthetic logits."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from derive.multi_branch import decode, decode_as_published, priced_as_published
from derive.multi_branch.published_rule import published_path
from dnas.errors import UserError
from dnas.latency.spec import OperatorSpec
from dnas.ops import OPERATORS
from search_spaces.fasterseg import ArchitectureParameters, Grid, NetworkPlan

NAMES = tuple(OPERATORS)
SKIP, CONV, OTHER = (NAMES.index(name) for name in ("skip", "conv", "zoomed_conv"))
RATIOS = (1, 2, 3)
GRID = Grid(9)
CHOICES = NetworkPlan(GRID, NAMES, RATIOS, 2, 3, (64, 96), 2)


def flat_logits(grid=GRID, best=CONV):
    """Every cell prefers operator ``best``, then zoomed conv; ratios are 1; beta_0 decreases from layer to layer."""
    logits = {}
    for level, scale in enumerate(grid.scales):
        logits[f"alpha_{scale}"] = torch.zeros(grid.alpha_rows(level), len(NAMES))
        logits[f"alpha_{scale}"][:, best] = 2.0
        logits[f"alpha_{scale}"][:, OTHER] += 1.0
        logits[f"gamma_{scale}"] = torch.zeros(grid.gamma_rows(level), len(RATIOS))
        logits[f"gamma_{scale}"][:, 0] = 1.0
        if level:
            logits[f"beta_{scale}"] = torch.zeros(grid.beta_rows(level), 2)
            logits[f"beta_{scale}"][:, 0] = -torch.linspace(1, 2, grid.beta_rows(level))
    return logits


def random_logits(grid, seed, skips, search_ratios=True):
    generator = torch.Generator().manual_seed(seed)
    parameters = ArchitectureParameters(
        grid, len(NAMES), RATIOS, end_ratio=2, search_ratios=search_ratios, generator=generator, noise=1.0
    )
    logits = parameters.named_logits()
    for scale in grid.scales:
        logits[f"alpha_{scale}"][:, SKIP] += skips
    return logits


def cells(architecture):
    return [[(cell.operator, cell.scale, cell.stride, cell.layer) for cell in b.cells] for b in architecture.branches]


@pytest.mark.parametrize("row", range(1, GRID.beta_rows(1) - 1))
def test_scale_16_is_entered_one_layer_early(row):
    logits = flat_logits()
    logits["beta_16"][row, 0] = 3.0
    path, _ = published_path(logits, GRID, 1)
    paper = decode(logits, CHOICES, [16]).branches[0]
    entered_by_paper = next(cell.layer + 1 for cell in paper.cells if cell.stride == 2)
    assert path.index(1) == row + 1 == entered_by_paper - 1


@pytest.mark.parametrize("row", [0, GRID.beta_rows(1) - 1])
def test_the_first_and_last_row_of_scale_16_do_not_count(row):
    logits = flat_logits()
    logits["beta_16"][row, 0] = 9.0
    logits["beta_16"][3, 0] = 3.0
    assert published_path(logits, GRID, 1)[0].index(1) == 4


def test_scale_32_is_entered_where_the_paper_does():
    logits = flat_logits()
    logits["beta_16"][1, 0] = 3.0
    logits["beta_32"][4, 0] = 3.0
    path, _ = published_path(logits, GRID, 2)
    paper = decode(logits, CHOICES, [32]).branches[0]
    assert [path.index(1), path.index(2)] == [cell.layer + 1 for cell in paper.cells if cell.stride == 2] == [3, 7]


def test_between_scales_16_and_32_lie_three_layers():
    logits = flat_logits()
    logits["beta_16"][3, 0] = 9.0
    logits["beta_32"][3, 0] = 8.0  # consecutive layers: the paper's choice
    logits["beta_16"][1, 0] = 3.0
    paper = decode(logits, CHOICES, [32]).branches[0]
    assert [cell.layer + 1 for cell in paper.cells if cell.stride == 2] == [5, 6]
    path, _ = published_path(logits, GRID, 2)
    assert path.index(2) - path.index(1) >= 3


def test_a_skip_of_stride_2_becomes_the_runner_up():
    logits = flat_logits()
    logits["beta_16"][3, 0] = 3.0
    logits["alpha_8"][3, SKIP] = 9.0  # the downsampling cell
    assert decode_as_published(logits, CHOICES, [16]).branches[0].cells[3].operator == "conv"


def test_a_branch_keeps_a_third_of_the_layers_and_two_cells_more_for_every_scale():
    logits = flat_logits(best=SKIP)
    for scale, least in ((8, 3), (16, 5), (32, 7)):
        assert len(decode_as_published(logits, CHOICES, [scale]).branches[0].cells) >= least
    assert len(decode_as_published(logits, CHOICES, [8]).branches[0].cells) == 3


def test_the_surest_skips_are_shrunk_and_the_others_become_their_runners_up():
    logits = flat_logits(best=SKIP)
    logits["alpha_8"][:, SKIP] += torch.tensor([0.1, 0.9, 0.2, 0.8, 0.7, 0.3, 0.6, 0.5, 0.4])
    (branch,) = cells(decode_as_published(logits, CHOICES, [8]))
    assert branch == [("zoomed_conv", 8, 1, layer) for layer in (0, 2, 5)]


def test_alpha_is_edited_in_place_between_branches():
    """The branch of scale 8 replaces three skips by zoomed convs; they stay replaced in the branch of scale 16."""
    logits = flat_logits()
    logits["alpha_8"][:5, SKIP] = 9.0
    logits["alpha_8"][5:, SKIP] = 20.0  # most likely: six may be removed, these four and two of the others
    logits["beta_16"][4, 0] = 5.0
    (fine,) = cells(decode_as_published(logits, CHOICES, [8]))
    assert [layer for *_, layer in fine] == [2, 3, 4]
    kept = [layer for operator, *_, layer in cells(decode_as_published(logits, CHOICES, [16]))[0] if layer < 5]
    assert kept == [2, 3, 4]


def test_a_section_keeps_one_cell():
    """If all cells between a downsampling cell and the end are skips, the least likely one is replaced."""
    logits = flat_logits()
    logits["beta_16"][3, 0] = 3.0  # scale 16 from layer 4 on
    logits["alpha_16"][3:, SKIP] = 9.0
    logits["alpha_16"][6 - 1, SKIP] = 8.0
    (branch,) = cells(decode_as_published(logits, CHOICES, [16]))
    assert branch[-1] == ("conv", 16, 1, 6)
    assert [layer for *_, layer in branch] == [0, 1, 2, 3, 6]


def test_a_shrunk_cell_takes_its_width_with_it():
    logits = flat_logits()
    logits["alpha_8"][2, SKIP] = 9.0
    for layer, ratio in ((1, 3), (2, 1), (3, 2)):  # connections into layers 2, 3 and 4
        logits["gamma_8"][layer, ratio - 1] = 5.0
    made = decode_as_published(logits, CHOICES, [8]).branches[0].cells
    assert [(cell.layer, cell.channels) for cell in made[:3]] == [(0, 8), (1, 24), (3, 16)]
    assert made[2].in_channels == 24
    assert made[-1].channels == 8 * CHOICES.end_ratio


def test_a_shrunk_last_cell_leaves_the_heads_width_to_the_one_before():
    logits = flat_logits()
    logits["alpha_8"][GRID.last, SKIP] = 9.0
    made = decode_as_published(logits, CHOICES, [8]).branches[0].cells
    assert (made[-1].layer, made[-1].channels) == (GRID.last - 1, 8 * CHOICES.end_ratio)


@given(
    layers=st.integers(8, 20),
    seed=st.integers(0, 2**31),
    skips=st.floats(-2, 8),
    teacher=st.booleans(),
    branches=st.sampled_from([(8,), (16,), (32,), (8, 16), (8, 32), (16, 32), (8, 16, 32)]),
)
def test_any_logits_give_a_network_without_skips(layers, seed, skips, teacher, branches):
    grid = Grid(layers)
    logits = random_logits(grid, seed, skips, search_ratios=not teacher)
    before = {name: table.clone() for name, table in logits.items()}
    architecture = decode_as_published(logits, NetworkPlan(grid, NAMES, RATIOS, 2, 3, (64, 96), 2), branches)
    architecture.check()
    assert all(torch.equal(before[name], logits[name]) for name in logits)
    assert tuple(branch.scale for branch in architecture.branches) == branches
    for branch in architecture.branches:
        level = grid.level_of(branch.scale)
        assert len(branch.cells) >= round(layers / 3) + 2 * level
        assert all(cell.operator != "skip" for cell in branch.cells)
        assert branch.channels == branch.scale * 2
        assert 0 <= branch.path_margin <= 1
        if teacher:
            assert len(branch.cells) == layers
            assert {cell.ratio for cell in branch.cells[:-1]} == {max(RATIOS)}


def test_grids_that_the_published_code_cannot_decode_are_refused():
    for grid in (Grid(7), Grid(9, (8, 16))):
        with pytest.raises(UserError, match=r"rule published-code: given \d layers .* use the rule paper"):
            decode_as_published(random_logits(grid, 0, 0.0), NetworkPlan(grid, NAMES, RATIOS, 2, 3, (64, 96), 2), [8])


def test_zoomed_conv_x2_is_priced_as_conv_x2():
    for name in NAMES:
        spec = OperatorSpec(name, ((8, 4, 4),), 16, 2)
        expected = re.sub("^zoomed_conv_x2", "conv_x2", spec.key)
        assert priced_as_published(spec).key == expected
