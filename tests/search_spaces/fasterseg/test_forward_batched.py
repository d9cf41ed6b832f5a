"""Samples of equal widths in one forward pass, compared with one pass each."""

import copy
import dataclasses

import pytest
import torch

from dnas.ops import OPERATORS
from search_spaces.fasterseg import (
    ArchitectureParameters,
    CellOutput,
    Grid,
    MixedOperator,
    MultiResolutionSupernet,
    can_batch,
    run_cell,
    run_cell_reference,
)

GRID = Grid(5)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("names", [OPERATORS, ("skip",), ("conv_x2",), ("zoomed_conv_x2", "conv")], ids="-".join)
@pytest.mark.parametrize("size", [(40, 42), (5, 7)], ids=str)
@pytest.mark.parametrize("run", [run_cell, run_cell_reference])
def test_parts_of_a_batch_pass_a_cell_as_if_alone(names, size, run):
    torch.manual_seed(0)
    operators = [
        MixedOperator.of(OPERATORS, 5, (4, 6)).double(),
        MixedOperator.of(OPERATORS, 5, (8,), stride=2).double(),
    ]
    leaves = [torch.randn(6, 5, *size, dtype=torch.float64), torch.rand(3, 2, len(names), dtype=torch.float64)]
    found = []
    for together in (True, False):
        modules = copy.deepcopy(operators)
        x, weights = (leaf.clone().requires_grad_() for leaf in leaves)
        by_part = [[dict(zip(names, values.unbind(), strict=True)) for values in part] for part in weights]

        def outputs(parts, modules=modules):
            return [
                CellOutput(module, [part[index] for part in parts], width)
                for index, (module, width) in enumerate(zip(modules, (6, 8), strict=True))
            ]

        if together:
            outputs = run(x, outputs(by_part))
        else:
            alone = [run_cell_reference(part, outputs([own])) for part, own in zip(x.chunk(3), by_part, strict=True)]
            outputs = [torch.cat(maps) for maps in zip(*alone, strict=True)]
        sum((out.sin() * (index + 1)).sum() for index, out in enumerate(outputs)).backward()
        state = {f"{i} {k}": v for i, module in enumerate(modules) for k, v in module.named_buffers()}
        state |= {f"{i} {k} gradient": p.grad for i, module in enumerate(modules) for k, p in module.named_parameters()}
        found.append({"outputs": outputs, "x": x.grad, "weights": weights.grad, **state})
    mine, alone = found
    for name, expected in alone.items():
        if expected is None:
            assert mine[name] is None, name
        else:
            close(mine[name], expected)


def networks():
    torch.manual_seed(0)
    supernet = MultiResolutionSupernet(GRID, OPERATORS, (1, 2), (1, 2), 2, num_classes=3).double()
    architectures = [
        ArchitectureParameters(
            GRID,
            5,
            (1, 2),
            end_ratio=ratio,
            search_ratios=ratio == 1,
            generator=torch.Generator().manual_seed(ratio),
            noise=1.0,
        ).double()
        for ratio in (2, 1)
    ]
    return supernet, architectures


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (70, 50)], ids=str)
def test_teacher_and_student_at_their_largest_are_two_passes(size, recompute):
    supernet, architectures = networks()
    with torch.no_grad():
        samples = [one.at_width("largest", torch.Generator()) for one in architectures]
    assert can_batch(*samples)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    found = []
    for together in (True, False):
        network = copy.deepcopy(supernet)
        if together:
            outputs = network.forward_batched(images, samples, recompute=recompute)
        else:
            outputs = [network(images, sample, run_cell_reference) for sample in samples]
        logits = [value for one in outputs for value in one.values()]
        torch.stack([value.sin().sum() * (index + 1) for index, value in enumerate(logits)]).sum().backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        found.append((logits, gradients, dict(network.named_buffers())))
    mine, alone = found
    close(mine[0], alone[0])
    close(mine[2], alone[2])
    # Weights that would only read padding have no gradient in either case.
    assert mine[1].keys() == alone[1].keys()
    for name, expected in alone[1].items():
        if expected is None:
            assert mine[1][name] is None, name
        else:
            close(mine[1][name], expected)


def test_samples_of_other_widths_or_operators_are_not_alike():
    _, (teacher, student) = networks()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        largest, smallest = student.at_width("largest", generator), student.at_width("smallest", generator)
        assert can_batch(teacher.at_width("largest", generator), largest)
        assert not can_batch(largest, smallest)
        single = student.with_operators(largest, generator)
        assert not can_batch(largest, single)
        other = dataclasses.replace(single, operators=tuple(tuple(4 - i for i in row) for row in single.operators))
        assert not can_batch(single, other)
