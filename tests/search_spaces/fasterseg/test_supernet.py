"""The supernet compared with a literal implementation of Eq. 1 and 2, and its gradients."""

import dataclasses
import itertools

import pytest
import torch

from dnas.ops import OPERATORS, fit_channels
from search_spaces.fasterseg import ArchitectureParameters, Grid, MultiResolutionSupernet, combination_name, run_cell
from search_spaces.fasterseg.supernet import sum_widths, weight_table

CASES = [
    (Grid(5), (1, 2, 3), (2, 3), 2),
    (Grid(4), (1, 2), (3,), 3),
    (Grid(3), (2,), (1, 2), 1),
    (Grid(4, (8, 16)), (1, 2), (2,), 1),
    (Grid(3, (8, 16)), (1, 2), (2,), 2),
    (Grid(2, (8,)), (1, 2), (1,), 1),
]


def make(grid, ratios, end_ratios, branches, operators=OPERATORS, search_ratios=True, seed=0):
    torch.manual_seed(seed)
    supernet = MultiResolutionSupernet(grid, operators, ratios, end_ratios, branches, num_classes=4)
    parameters = ArchitectureParameters(
        grid,
        len(operators),
        ratios,
        end_ratio=end_ratios[-1],
        search_ratios=search_ratios,
        generator=torch.Generator().manual_seed(seed),
        noise=1.0,
    )
    return supernet.double(), parameters.double()


def predecessors(grid, level, layer):
    return [source for source in (level - 1, level) if source >= 0 and source <= layer - 1]


def reference_inputs(supernet, sample, images):
    """Eq. 1 of Eq. 2, literally: every operator separately, weighted by alpha, then by beta."""
    grid = supernet.grid
    inputs = {(0, 0): supernet.stems[str(sample.end_ratio)](images)}
    for level, layer in grid.cells():
        if not layer:
            continue
        width = supernet.ratios[sample.choice[level][grid.gamma_row(level, layer)]] * grid.scales[level]
        sources = predecessors(grid, level, layer)
        total = 0
        for source in sources:
            mixed = (supernet.keep if source == level else supernet.down)[f"{source}_{layer - 1}"]
            alpha = sample.alpha[source][grid.alpha_row(source, layer - 1)]
            out = sum(
                alpha[index] * mixed[name](inputs[source, layer - 1], width)
                for index, name in enumerate(supernet.operators)
            )
            share = sample.beta[level][grid.beta_row(level, layer)][source - level + 1] if len(sources) == 2 else 1.0
            total = total + share * out
        inputs[level, layer] = total
    return inputs


def all_walks(grid, level):
    walks = [(level,)]
    for layer in range(grid.last, 0, -1):
        walks = [(source, *walk) for walk in walks for source in predecessors(grid, walk[0], layer)]
    return walks


def reference_logits(supernet, sample, images):
    """Skip maps as the expectation, over all walks, of the walk's last map at a scale."""
    grid = supernet.grid
    inputs = reference_inputs(supernet, sample, images)
    ends = supernet.ends[str(sample.end_ratio)]
    at_eight = {}
    for level, scale in enumerate(grid.scales):
        mixed = supernet.keep[f"{level}_{grid.last}"]
        alpha = sample.alpha[level][grid.alpha_row(level, grid.last)]
        x = sum(
            alpha[index] * mixed[name](inputs[level, grid.last], sample.end_ratio * scale)
            for index, name in enumerate(supernet.operators)
        )
        for finer in range(level - 1, -1, -1):
            widest = max(inputs[finer, layer].shape[1] for layer in range(finer, grid.last))
            left = 0
            for walk in all_walks(grid, level):
                mass = 1.0
                for layer in range(1, grid.layers):
                    if len(predecessors(grid, walk[layer], layer)) == 2:
                        row = sample.beta[walk[layer]][grid.beta_row(walk[layer], layer)]
                        mass = mass * row[walk[layer - 1] - walk[layer] + 1]
                leaves = max(layer for layer in range(grid.layers) if walk[layer] == finer)
                left = left + mass * fit_channels(inputs[finer, leaves], widest)
            x = ends.fuse(scale, grid.scales[finer])(left, x)
        at_eight[scale] = x
    size = images.shape[-2:]
    return {c: ends.head(c)([at_eight[scale] for scale in c], size) for c in supernet.combinations}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_supernet_is_eq_1_and_2_written_out(case):
    supernet, parameters = make(*case)
    sample = parameters.sample(torch.Generator().manual_seed(4))
    images = torch.randn(2, 3, 65, 79, dtype=torch.float64)
    with torch.no_grad():
        found = supernet.eval()(images, sample)
        expected = reference_logits(supernet, sample, images)
    assert list(found) == list(expected) == list(itertools.combinations(case[0].scales, case[3]))
    for combination, logits in expected.items():
        assert found[combination].shape == (2, 4, 65, 79)
        torch.testing.assert_close(found[combination], logits, rtol=1e-9, atol=1e-9)


def test_every_cell_runs_once():
    """Cells run once on the weighted mean of their inputs, for both strides, not once per predecessor."""
    supernet, parameters = make(*CASES[0])
    calls = []

    def run(x, ways):
        calls.append([id(way.operators) for way in ways])
        return run_cell(x, ways)

    supernet(torch.randn(2, 3, 64, 64, dtype=torch.float64), parameters.at_width("smallest"), run)
    assert len(calls) == len(list(supernet.grid.cells()))
    ran = [way for ways in calls for way in ways]
    assert len(ran) == len(set(ran)) == len(supernet.keep) + len(supernet.down)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_reach_every_weight_and_logit(case):
    """The smallest, largest, the teacher's and sampled widths together train every weight and logit."""
    supernet, student = make(*case)
    teachers = [make(*case, search_ratios=False)[1] for _ in case[2]]
    for teacher, ratio in zip(teachers, case[2], strict=True):
        teacher.end_ratio = ratio
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    widths = [student.at_width("smallest"), student.at_width("largest")]
    widths += [student.at_width("random", torch.Generator().manual_seed(seed)) for seed in range(12)]
    for sample in (*widths, *(teacher.at_width("largest") for teacher in teachers)):
        logits = supernet(images, sample)
        torch.stack([value.square().mean() for value in logits.values()]).sum().backward()
    for name, parameter in supernet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    student.zero_grad()
    logits = supernet(images, student.sample(torch.Generator().manual_seed(0)))
    torch.stack([value.square().mean() for value in logits.values()]).sum().backward()
    for name, parameter in student.named_parameters():
        if parameter.shape[0] and parameter.shape[1] > 1:
            assert parameter.grad.abs().sum(1).min() > 0, name


def test_the_gate_passes_the_derivative_by_the_strength_of_a_connection():
    """The gradient of a gate is that of a scale factor of the cell's input, by finite differences."""
    supernet, student = make(*CASES[0])
    supernet.eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    sample = student.sample(torch.Generator().manual_seed(2))

    def loss(*gate):
        changed = type(sample)(**{**sample.__dict__, "gate": gate})
        return torch.stack([value.sin().mean() for value in supernet(images, changed).values()]).sum()

    gates = [gate.detach().clone().requires_grad_() for gate in sample.gate]
    assert torch.autograd.gradcheck(loss, gates, eps=1e-6, atol=1e-6)


def test_without_gates_the_output_is_the_same():
    supernet, student = make(*CASES[0])
    supernet.eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    sample = student.sample(torch.Generator().manual_seed(2))
    bare = type(sample)(**{**sample.__dict__, "gate": None})
    with torch.no_grad():
        for combination, logits in supernet(images, sample).items():
            assert torch.equal(logits, supernet(images, bare)[combination])


def test_running_it_leaves_no_trace_but_statistics():
    """Running one sample does not affect another: the model has no mode flags."""
    supernet, student = make(*CASES[0])
    supernet.eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    first, other = student.at_width("smallest"), student.at_width("largest")
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    with torch.no_grad():
        alone = supernet(images, first)
        supernet(images, other)
        again = supernet(images, first)
    assert all(torch.equal(alone[key], again[key]) for key in alone)
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items())


@pytest.mark.parametrize("operators", [OPERATORS, OPERATORS[::-1], ("conv",), ("skip", "zoomed_conv")])
def test_mixed_precision_on_the_cpu(operators):
    """Operators in float32 (the skip) and in bfloat16 can be summed in any order."""
    supernet, student = make(*CASES[1], operators=operators)
    supernet.float()
    student.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = supernet(torch.randn(2, 3, 64, 64), student.sample(torch.Generator().manual_seed(0)))
    sum(value.float().mean() for value in logits.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters() if parameter.grad is not None)


def test_names_of_combinations():
    assert combination_name((8, 32)) == "8_32"
    assert combination_name([16]) == "16"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_by_level_are_those_of_every_operator(case):
    """A GPU gets the first, a CPU the second."""
    grid = case[0]
    supernet, parameters = make(*case)
    generator = torch.Generator().manual_seed(3)
    mixed = parameters.sample(generator), parameters.at_width("largest")
    single = [parameters.with_operators(sample, generator) for sample in mixed]
    single.append(dataclasses.replace(single[0], gate=None, operator_gate=None))
    for sample in (*mixed, *single):
        gates = {"gate": sample.gate, "operator_gate": sample.operator_gate}
        shifted = {name: gate and tuple(one + 0.5 for one in gate) for name, gate in gates.items()}
        sample = dataclasses.replace(sample, **shifted)
        table = weight_table(grid, sample)
        for level, layer in grid.cells():
            for target in [None] if layer == grid.last else supernet._targets(level, layer):
                each = supernet._weights(level, layer, target, sample, None)
                together = supernet._weights(level, layer, target, sample, table)
                assert each.keys() == together.keys()
                for name, weight in each.items():
                    one = torch.ones((), dtype=torch.float64)  # None is 1
                    found, expected = (one if value is None else value for value in (together[name], weight))
                    assert torch.equal(found, expected), (level, layer, target, name)


def test_maps_of_one_width_are_summed_together():
    """By a GPU; one after another by a CPU."""
    maps = [torch.randn(2, width, 3, 5, dtype=torch.float64) for width in (4, 6, 4, 6, 6)]
    weights = torch.rand(5, dtype=torch.float64)
    for chosen in (slice(None), slice(0, 3, 2)):
        expected = sum_widths(maps[chosen], weights[chosen].unbind())
        torch.testing.assert_close(sum_widths(maps[chosen], weights[chosen]), expected, rtol=0, atol=1e-12)
