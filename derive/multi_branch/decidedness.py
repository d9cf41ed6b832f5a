"""How decided the choices of a search are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dnas.choices import mean_entropy

UNDECIDED = 0.9
"""Entropy of the operators above which a search counts as undecided."""

KINDS = {"alpha": "operators", "beta": "downsampling", "gamma": "expansion ratios"}


@dataclass(frozen=True)
class Decidedness:
    """Of one kind of choice: the mean normalised entropy (1 is uniform, 0 one-hot), and over all rows the mean
    difference between the largest and the second largest probability.
    """

    kind: str
    entropy: float
    margin: float


def decidedness(logits: Mapping[str, Tensor]) -> list[Decidedness]:
    """By kind of choice, from one architecture's tables of logits; kinds without a choice are left out."""
    found = []
    for prefix, kind in KINDS.items():
        tables = [table for name, table in logits.items() if name.startswith(prefix) and table.shape[-1] > 1]
        if tables:
            top = [torch.softmax(table.double(), -1).topk(2, dim=-1).values for table in tables]
            margin = torch.cat([pair[:, 0] - pair[:, 1] for pair in top]).mean()
            found.append(Decidedness(kind, mean_entropy(tables), float(margin)))
    return found


ADVICE = {
    "gradient": "Search longer, raise search.architecture_learning_rate, lower search.temperature_end, or judge more "
    "networks (search.candidates, search.method=estimator)",
    "perturbation": "Search longer, or judge more networks (search.candidates, search.method=estimator)",
    "estimator": "Train the supernet for longer (search.epochs), or judge more networks (search.judged_networks) on "
    "more images (search.judge_images)",
}
"""What to do about an undecided search, by ``search.method``."""


def undecided_warning(logits: Mapping[str, Tensor], method: str) -> str | None:
    """A warning for the terminal if the operators are undecided; ``method``: ``search.method``."""
    operators = next((one for one in decidedness(logits) if one.kind == KINDS["alpha"]), None)
    if operators is None or operators.entropy <= UNDECIDED:
        return None
    return (
        f"warning: undecided: the entropy of the operators is {operators.entropy:.3f} (1 is uniform), so the likeliest "
        f"network is close to a random one. {ADVICE[method]}"
    )
