"""Operator selection by perturbation: the operator whose removal hurts the supernet most stays.

After Wang et al. 2021, "Rethinking Architecture Selection in Differentiable NAS". They discretise one cell after the
other and train the supernet in between. Here the supernet stays as it is and all choices are measured in it, because a
latency target needs the scores of all operators of all cells.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from derive.judging import Judge
from dnas.runs import RunFolder
from dnas.search import Pass
from search_spaces.fasterseg import CoSearch, FasterSegSpace
from search_spaces.fasterseg.parameters import Sample

GRADIENT = "architecture_gradient"
"""Name of the weights file with the logits that the gradient found."""


def perturb(run: RunFolder, space: FasterSegSpace, judge: Judge, which: str) -> None:
    """Replace the logits of one architecture's operators and ratios in the run folder by measured scores.

    An operator's score is the mIoU that the supernet loses without it. A ratio cannot be removed, since one pass has
    one ratio; its score is the supernet's mIoU with it. Entries of paths (beta) keep their logits. The unit of both
    scores is the standard deviation of all scores relative to the others of their cell.
    """
    # If a finished search is resumed, its logits are already replaced.
    found = run.load_weights(GRADIENT if run.has_weights(GRADIENT) else "architecture")
    run.save_weights(GRADIENT, found)
    problem = judge.problem
    assert isinstance(problem, CoSearch)
    sample = problem.validation_passes()[which].sample
    changed = {**dict(_without_operators(sample, space)), **dict(_with_ratios(sample, space))}
    passes = {f"{which}.{table} {row} {column}": Pass(which, one) for (table, row, column), one in changed.items()}
    scores = judge.miou_of_passes(passes, f"judging choices of the {which}", {"kind": "perturbation"})
    tables = {
        name: table.double().clone()
        for name, table in found.items()
        if name.startswith((f"{which}.alpha", f"{which}.gamma"))
    }
    for key, miou in scores.items():
        name, row, column = key.split()
        # Without an operator a low mIoU is good, with a ratio a high one.
        tables[name][int(row), int(column)] = -miou if ".alpha" in name else miou
    centred = {name: table - table.mean(dim=1, keepdim=True) for name, table in tables.items()}
    unit = statistics.pstdev(torch.cat([table.flatten() for table in centred.values()]).tolist()) or 1.0
    run.save_weights("architecture", {**found, **{name: (table / unit).float() for name, table in centred.items()}})
    judge.wait()


def _without_operators(sample: Sample, space: FasterSegSpace) -> Iterator[tuple[tuple[str, int, int], Sample]]:
    """By table, row and column: the sample without one operator of one cell; the others share its weight."""
    for level, scale in enumerate(space.settings.network.scales):
        alpha = sample.alpha[level]
        for row, column in torch.cartesian_prod(*map(torch.arange, alpha.shape)).tolist():
            changed = alpha.clone()
            changed[row, column] = 0.0
            changed[row] /= changed[row].sum()
            yield (f"alpha_{scale}", row, column), dataclasses.replace(sample, alpha=_at(sample.alpha, level, changed))


def _with_ratios(sample: Sample, space: FasterSegSpace) -> Iterator[tuple[tuple[str, int, int], Sample]]:
    """By table, row and column: the sample with one ratio of one connection."""
    for level, scale in enumerate(space.settings.network.scales):
        rows, columns = sample.gamma[level].shape
        for row in range(rows):
            for column in range(columns):
                choice = list(sample.choice[level])
                choice[row] = column
                choices = tuple(tuple(choice) if j == level else one for j, one in enumerate(sample.choice))
                yield (f"gamma_{scale}", row, column), dataclasses.replace(sample, choice=choices)


def _at(tables: tuple[Tensor, ...], index: int, table: Tensor) -> tuple[Tensor, ...]:
    return (*tables[:index], table, *tables[index + 1 :])
