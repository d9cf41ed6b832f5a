"""What the options of a network with choices contribute to its mIoU, as judged by the supernet's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from derive.choices.architecture import ChoicesArchitecture, architecture_of
from derive.estimator import Floats, RidgeModel, fit_ridge
from derive.judging import Judge
from dnas.choices import Choice, RateChoice
from dnas.data.seeding import mix_seed
from dnas.runs import RunFolder
from search_spaces.choices import ARCHITECTURE, ChoiceSpace, fair_options


class OptionModel:
    """A linear model with a contribution of every option, except for dilation rates, of which all networks have the
    searched ones.

    The contribution of an option is the sum of one term for all choices of its kind that have an option of that name,
    and one for the choice. Choices that a network does not use contribute nothing.
    """

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self.choices = {name: choice for name, choice in choices.items() if not isinstance(choice, RateChoice)}
        self._index: dict[tuple[str, str, str], int] = {}
        for name, choice in self.choices.items():
            for label in choice.labels:
                for term in _terms(name, choice, label):
                    self._index.setdefault(term, len(self._index))

    def features(self, options: Mapping[str, str]) -> Floats:
        """How often every term occurs in a network with these options, by the names of the used choices; (terms,)."""
        row = np.zeros(len(self._index))
        for name, label in options.items():
            if name in self.choices:
                row += self._row(name, label)
        return row

    def _row(self, name: str, label: str) -> Floats:
        row = np.zeros(len(self._index))
        for term in _terms(name, self.choices[name], label):
            row[self._index[term]] += 1
        return row

    def fit(self, networks: Sequence[Mapping[str, str]], scores: Sequence[float]) -> RidgeModel:
        """The contributions that explain the mIoU of networks, at least three."""
        features = np.stack([self.features(options) for options in networks])
        return fit_ridge(features, np.asarray(scores, dtype=np.float64))

    def logits(self, ridge: RidgeModel) -> dict[str, Tensor]:
        """The contributions of every choice's options as its logits, by the choice's name.

        Their unit is the root mean square of the standard errors, relative to the other options of a choice: so
        probabilities near 1 mean that a choice is decided.
        """
        rows = {name: np.stack([self._row(name, label) for label in c.labels]) for name, c in self.choices.items()}
        centred = np.concatenate([row - row.mean(axis=0) for row in rows.values()])
        unit = math.sqrt(max(float(ridge.variances(centred).mean()), 1e-24))
        return {name: torch.from_numpy(row @ ridge.weights / unit).float() for name, row in rows.items()}


def _terms(name: str, choice: Choice, label: str) -> tuple[tuple[str, str, str], ...]:
    return (("kind", choice.kind, label), ("choice", name, label))


def estimate(
    run: RunFolder,
    space: ChoiceSpace[Any],
    judge: Judge,
    count: int,
    *,
    rates: Mapping[str, int],
    price: Callable[[ChoicesArchitecture], float],
) -> None:
    """Judge ``count`` random networks, fit :class:`OptionModel`, and save its logits as those of the search.

    ``rates``: the indices of the rounded dilation rates. ``price``: predicted latency in ms, for the record.
    """
    generator = torch.Generator().manual_seed(mix_seed("judged networks", run.seed))
    drawn = [architecture_of(space, {**one, **rates}) for one in fair_options(space.choices, count, generator)]
    notes = [{"kind": "random", "index": index, "latency_ms": price(one)} for index, one in enumerate(drawn)]
    mious = judge.miou(drawn, "judging random networks", notes)
    model = OptionModel(space.choices)
    ridge = model.fit([one.options for one in drawn], mious)
    found = {f"{ARCHITECTURE}.{name}": table for name, table in model.logits(ridge).items()}
    run.save_weights("architecture", {**run.load_weights("architecture"), **found})
    if run.is_owner:
        ridge.fit.save(run)
    judge.wait()
