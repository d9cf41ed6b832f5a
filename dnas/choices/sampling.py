"""Sampling of discrete choices from logits."""

from __future__ import annotations

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
    choices, gates = [], []
    for table in tables:
        # Sampled on the CPU, so that a seed gives the same noise on every device.
        noise = -torch.log(torch.empty(table.shape).exponential_(generator=generator)).to(table)
        soft = F.softmax((F.log_softmax(table, dim=-1) + noise) / temperature, dim=-1)
        index = soft.argmax(dim=-1)
        chosen = soft.gather(1, index[:, None])[:, 0]
        choices.append(tuple(index.tolist()))
        gates.append(1.0 + (chosen - chosen.detach()))  # exactly 1
    return tuple(choices), tuple(gates)


def mean_entropy(tables: Sequence[Tensor]) -> float:
    """Mean normalised entropy of the softmax over all rows of the logit tables: 1 if uniform, 0 if one-hot.

    Returns 0 if no row has more than one choice.
    """
    rows = [F.log_softmax(table.detach().float(), dim=-1) for table in tables if table.numel() and table.shape[1] > 1]
    if not rows:
        return 0.0
    entropies = [-(row.exp() * row).sum(dim=-1) / torch.log(torch.tensor(float(row.shape[1]))) for row in rows]
    return float(torch.cat(entropies).mean())
