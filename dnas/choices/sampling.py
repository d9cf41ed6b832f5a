"""Sampling of discrete choices from logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def gumbel_choices(
    tables: Iterable[Tensor], generator: torch.Generator, temperature: float
) -> tuple[tuple[tuple[int, ...], ...], tuple[Tensor, ...]]:
    """Hard straight-through Gumbel-softmax sampling for each row of tables of logits, each (rows, choices).

    Returns, per table, the sampled columns and gates (rows,): exactly 1 in the forward pass, with the gradient of the
    sampled softmax entry (FasterSeg, Appendix C).
    """
    drawn, gates = gumbel_draws(tables, generator, temperature)
    (columns,) = read_columns([drawn])
    return columns, gates


def gumbel_draws(
    tables: Iterable[Tensor], generator: torch.Generator, temperature: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """:func:`gumbel_choices` whose sampled columns (rows,) stay on the device, so that nobody waits for it."""
    tables = list(tables)
    indices, gates = [], []
    for table, noise in zip(tables, _gumbel_noise(tables, generator), strict=True):
        soft = F.softmax((F.log_softmax(table, dim=-1) + noise) / temperature, dim=-1)
        index = soft.argmax(dim=-1)
        chosen = soft.gather(1, index[:, None])[:, 0]
        indices.append(index)
        gates.append(1.0 + (chosen - chosen.detach()))  # exactly 1
    return tuple(indices), tuple(gates)


def read_columns(draws: Sequence[Sequence[Tensor]]) -> list[tuple[tuple[int, ...], ...]]:
    """The columns of :func:`gumbel_draws` as numbers, those of all draws together: the host waits once."""
    indices = [index for drawn in draws for index in drawn]
    columns = iter(torch.cat(indices).tolist() if indices else [])
    return [tuple(tuple(itertools.islice(columns, len(index))) for index in drawn) for drawn in draws]


def _gumbel_noise(tables: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
    """Gumbel noise for each table, sampled on the CPU, so that a seed gives the same noise on every device."""
    if not tables:
        return []
    noise = [-torch.log(torch.empty(table.shape).exponential_(generator=generator)) for table in tables]
    moved = torch.cat([part.flatten() for part in noise]).to(tables[0], non_blocking=True)
    parts = moved.split_with_sizes([table.numel() for table in tables])
    return [part.view_as(table) for part, table in zip(parts, tables, strict=True)]


def fair_draws(options: int, count: int, generator: torch.Generator) -> list[int]:
    """``count`` of the numbers below ``options``: all of them in a random order, again and again.

    So over each ``options`` draws in a row every option is drawn once (strict fairness; Chu et al. 2021, "FairNAS").
    """
    orders = -(-count // options)
    drawn: list[int] = torch.cat([torch.randperm(options, generator=generator) for _ in range(orders)]).tolist()
    return drawn[:count]


def mean_entropy(tables: Sequence[Tensor]) -> float:
    """Mean normalised entropy of the softmax over all rows of the logit tables: 1 if uniform, 0 if one-hot.

    Returns 0 if no row has more than one choice.
    """
    rows = [F.log_softmax(table.detach().float(), dim=-1) for table in tables if table.numel() and table.shape[1] > 1]
    if not rows:
        return 0.0
    entropies = [-(row.exp() * row).sum(dim=-1) / torch.log(torch.tensor(float(row.shape[1]))) for row in rows]
    return float(torch.cat(entropies).mean())
