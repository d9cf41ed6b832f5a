"""Drawing discrete choices from logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def gumbel_choices(
    tables: Iterable[Tensor], generator: torch.Generator, temperature: float
) -> tuple[tuple[tuple[int, ...], ...], tuple[Tensor, ...]]:
    """A hard straight-through Gumbel-softmax choice for each row of tables of logits, each (rows, choices).

    Returns by table the chosen columns, and gates (rows,): exactly 1, with the gradient of the chosen entry of the
    softmax (FasterSeg, Appendix C).
    """
    choices, gates = [], []
    for table in tables:
        # Drawn on the CPU, so that a seed means the same on every device.
        noise = -torch.log(torch.empty(table.shape).exponential_(generator=generator)).to(table)
        soft = F.softmax((F.log_softmax(table, dim=-1) + noise) / temperature, dim=-1)
        index = soft.argmax(dim=-1)
        chosen = soft.gather(1, index[:, None])[:, 0]
        choices.append(tuple(index.tolist()))
        gates.append(1.0 + (chosen - chosen.detach()))  # exactly 1
    return tuple(choices), tuple(gates)


def mean_entropy(tables: Sequence[Tensor]) -> float:
    """Mean entropy of the softmax of every row of the logit tables, 1 for uniform and 0 for decided; NaN-free.

    Returns 0 where there is nothing to decide.
    """
    rows = [F.log_softmax(table.detach().float(), dim=-1) for table in tables if table.numel() and table.shape[1] > 1]
    if not rows:
        return 0.0
    entropies = [-(row.exp() * row).sum(dim=-1) / torch.log(torch.tensor(float(row.shape[1]))) for row in rows]
    return float(torch.cat(entropies).mean())
