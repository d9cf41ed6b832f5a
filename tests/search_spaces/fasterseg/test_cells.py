"""Cells with shared computation, compared with a reference that runs every operator separately."""

import copy
import itertools

import pytest
import torch

from dnas.ops import OPERATORS, SearchableOperator, fit_channels, make_superkernel
from search_spaces.fasterseg import (
    ArchitectureParameters,
    CellOutput,
    Grid,
    MixedOperator,
    MultiResolutionSupernet,
    run_cell,
    run_cell_reference,
    run_recomputed,
)

WIDTHS = (4, 6)
SUBSETS = [OPERATORS, ("skip",), ("conv_x2",), ("zoomed_conv", "zoomed_conv_x2"), ("conv", "zoomed_conv_x2")]
GRID = Grid(4)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def cell(names, size, widths=(4, 12), weighted=True):
    torch.manual_seed(0)
    operators = [MixedOperator.of(OPERATORS, 5, WIDTHS), MixedOperator.of(OPERATORS, 5, (8, 12), stride=2)]
    for module in operators:
        module.double()
    weights = [torch.rand(len(names), dtype=torch.float64, requires_grad=True) for _ in operators]
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)

    def outputs():
        return [
            CellOutput(
                module, [dict(zip(names, values.unbind() if weighted else [None] * len(names), strict=True))], width
            )
            for module, values, width in zip(operators, weights, widths, strict=True)
        ]

    return operators, weights, x, outputs


def results(run, operators, leaves, x, outputs):
    """Outputs, gradients of leaves and weights, running statistics."""
    operators = copy.deepcopy(operators)
    outputs = [CellOutput(module, one.weights, one.width) for module, one in zip(operators, outputs, strict=True)]
    outputs = run(x, outputs)
    loss = sum((out.sin() * (index + 1)).sum() for index, out in enumerate(outputs))
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    found = {f"output {index}": out.detach() for index, out in enumerate(outputs)}
    found |= {f"leaf {index}": leaf.grad for index, leaf in enumerate(leaves)}
    for index, module in enumerate(operators):
        found |= {f"{index} {name}": p.grad for name, p in module.named_parameters()}
        found |= {f"{index} {name}": b for name, b in module.named_buffers()}
    return found


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
@pytest.mark.parametrize("size", [(30, 32), (5, 7), (2, 3)], ids=str)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("run", [run_cell, run_recomputed])
def test_a_cell_is_its_operators_alone(names, size, weighted, run):
    operators, weights, x, outputs = cell(names, size, weighted=weighted)
    leaves = [x, *weights]
    mine, plain = (results(one, operators, leaves, x, outputs()) for one in (run, run_cell_reference))
    assert mine.keys() == plain.keys()
    for key, expected in plain.items():
        if expected is None:
            assert mine[key] is None, key
        else:
            close(mine[key], expected)


def test_the_first_convolutions_of_a_stride_run_as_one(monkeypatch):
    calls = []
    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda x, w, *rest: calls.append(w.shape[0]) or conv2d(x, w, *rest)
    )
    _, _, x, outputs = cell(OPERATORS, (40, 42))
    run_cell(x, outputs())
    # All zoomed operators, their second layers; stride 1; stride 2; the two halves of the skip of stride 2.
    assert calls == [4 + 4 + 12 + 12, 4, 12, 4 + 4, 4, 12 + 12, 12, 6, 6]


def supernet(dtype=torch.float64):
    torch.manual_seed(0)
    network = MultiResolutionSupernet(GRID, OPERATORS, (1, 2), (2,), 2, num_classes=3)
    student = ArchitectureParameters(
        GRID, 5, (1, 2), end_ratio=2, generator=torch.Generator().manual_seed(0), noise=1.0
    )
    return network.to(dtype), student.to(dtype)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("single_path", [True, False])
def test_the_whole_supernet_has_the_plain_gradients(recompute, single_path):
    network, student = supernet()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    found = []
    for run, again in ((run_cell, recompute), (run_cell_reference, False), (run_cell_reference, recompute)):
        clone = copy.deepcopy(network)
        student.zero_grad()
        generator = torch.Generator().manual_seed(3)
        sample = student.sample(generator)
        if single_path:
            sample = student.with_operators(sample, generator)
        outputs = clone(images, sample, run, recompute=again)
        torch.stack([value.sin().sum() for value in outputs.values()]).sum().backward()
        gradients = {name: p.grad for name, p in (*clone.named_parameters(), *student.named_parameters())}
        found.append(({**dict(clone.named_buffers()), **gradients}, list(outputs.values())))
    shared, (plain, expected), plain_again = found
    for mine, outputs in (shared, plain_again):
        close(outputs, expected)
        for name, value in plain.items():
            if value is None or not value.numel():
                assert mine[name] is None or not mine[name].numel(), name
            else:
                close(mine[name], value)


def test_recomputing_keeps_less():
    """Bytes saved for the backward pass, without those of the weights."""
    network, student = supernet(torch.float32)
    images, sample = torch.randn(2, 3, 64, 64), student.sample(torch.Generator().manual_seed(0))
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}
    for recompute in (False, True):
        storages = {}

        def save(tensor, storages=storages):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            outputs = network(images, sample, recompute=recompute)
        kept[recompute] = sum(storages.values())
        del outputs
    assert kept[True] < 0.25 * kept[False]


def test_a_single_path_runs_one_operator_a_cell_and_is_straight_through():
    """The gradient is that of the mixture weighted by the hard Gumbel-softmax, whose other terms are zero."""
    network, student = supernet()
    network.eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    widths = student.sample(generator)
    state = generator.get_state()
    sample = student.with_operators(widths, generator)
    ran = []

    def run(x, outputs):
        ran.extend(list(one.weights) for one in outputs)
        return run_cell(x, outputs)

    def loss(outputs):
        return torch.stack([value.sin().sum() for value in outputs.values()]).sum()

    single = loss(network(images, sample, run))
    assert all(len(names) == 1 for names in ran)
    found = torch.autograd.grad(single, list(student.alpha), retain_graph=True)

    torch.set_rng_state(state)
    hard, alone = [], []
    for table in student.alpha:
        y = torch.nn.functional.gumbel_softmax(table.float(), hard=True).double()
        assert sample.operators[len(hard)] == tuple(y.argmax(1).tolist())
        hard.append(y)
        alone.append(y * y.detach())  # no gradient for operators that do not run
    mixture = type(widths)(**{**widths.__dict__, "alpha": tuple(alone)})
    reference = loss(network(images, mixture, run_cell_reference))
    assert single.item() == pytest.approx(reference.item(), rel=1e-6)
    for mine, expected in zip(found, torch.autograd.grad(reference, list(student.alpha)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)


def test_single_paths_follow_alpha():
    """Operators are sampled with the probabilities of alpha; their gates are ones."""
    _, student = supernet()
    table = student.alpha[0].detach()[:1]
    counts = torch.zeros(5)
    generator = torch.Generator().manual_seed(0)
    sample = student.at_width("smallest")
    for _ in range(2000):
        drawn = student.with_operators(sample, generator)
        counts[drawn.operators[0][0]] += 1
        assert all(torch.equal(gate, torch.ones_like(gate)) for gate in drawn.operator_gate)
        assert drawn.alpha is sample.alpha
        assert drawn.choice is sample.choice
    torch.testing.assert_close(counts / 2000, table.softmax(1)[0].float(), rtol=0, atol=0.04)


def test_the_likeliest_operators_are_the_one_hot_mixture():
    network, student = supernet()
    network.eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        sample = student.at_width("likeliest")
        likeliest = student.with_likeliest_operators(sample)
        certain = tuple(torch.nn.functional.one_hot(table.argmax(1), 5).to(table) for table in student.alpha)
        mixed = type(sample)(**{**sample.__dict__, "alpha": certain})
        for mine, expected in zip(network(images, likeliest).values(), network(images, mixed).values(), strict=True):
            close(mine, expected)
    levels = itertools.chain(*likeliest.operators)
    assert list(levels) == [index for table in student.alpha for index in table.argmax(1).tolist()]


class Doubling(SearchableOperator):
    """An operator without a chain of convolutions, unknown to cells."""

    def forward(self, x, width):
        return 2 * fit_channels(x, width)

    def extract(self, in_channels, width, keep=None):
        raise NotImplementedError


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("run", [run_cell, run_cell_reference])
def test_an_operator_of_ones_own_takes_part(run, parts):
    module = MixedOperator({"conv": make_superkernel("conv", 5, WIDTHS), "doubling": Doubling()}).double()
    x = torch.randn(4, 5, 6, 7, dtype=torch.float64)
    weights = torch.rand(parts, dtype=torch.float64)
    conv = torch.rand(parts, dtype=torch.float64)

    def outputs(names):
        return [CellOutput(module, [{n: {"conv": c, "doubling": w}[n] for n in names} for c, w in pairs], 4)]

    pairs = list(zip(conv.unbind(), weights.unbind(), strict=True))
    (both,), (alone,) = run(x, outputs(["conv", "doubling"])), run(x, outputs(["conv"]))
    each = weights.repeat_interleave(4 // parts)[:, None, None, None]
    close(both - alone, each * 2 * x[:, :4])


def test_a_module_that_is_no_operator_is_refused():
    with pytest.raises(TypeError, match="operator odd: given Conv2d, expected a SearchableOperator"):
        MixedOperator({"odd": torch.nn.Conv2d(5, 4, 3)})
    with pytest.raises(TypeError, match="given stride 2, expected 1"):
        MixedOperator({"skip": make_superkernel("skip", 5, WIDTHS, 2)})
