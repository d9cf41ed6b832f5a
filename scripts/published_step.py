"""The search step with the structure of FasterSeg's published code, a baseline for :mod:`bench_search_step`.

Every operator runs separately with sliced weights, and every cell once per predecessor, mixing outputs instead of
inputs. A weight step sums its losses for one backward pass, the architecture step also computes the gradients of all
weights, and SGD is PyTorch's. Loss, forward passes and weights are those of our search. Mixing outputs is a different
function from Eq. 1, which mixes inputs (except for one-hot beta), so only the cost is comparable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.search.bilevel import BilevelSearch
from search_spaces.fasterseg import MultiResolutionSupernet, RunCell, Sample

Arriving = list[tuple[Tensor, Tensor | None]]
"""The outputs of a cell's predecessors with their weights; None means 1."""


class PublishedSupernet(MultiResolutionSupernet):
    """The supernet with every cell run once per predecessor."""

    def _run_cells(
        self, stems: Sequence[Tensor], samples: Sequence[Sample], run: RunCell
    ) -> tuple[list[dict[tuple[int, int], Tensor]], list[dict[int, Tensor]]]:
        (sample,) = samples
        unmixed = dataclasses.replace(sample, beta=tuple(map(torch.ones_like, sample.beta)))
        arriving: dict[tuple[int, int], Arriving] = {(0, 0): [(stems[0], None)]}
        outputs = {}
        for level, layer in self.grid.cells():
            is_last = layer == self.grid.last
            for target in [None] if is_last else self._targets(level, layer):
                wanted = [self._output(level, layer, target, [unmixed])]
                out = _mixed([(run(x, wanted)[0], weight) for x, weight in arriving[level, layer]])
                if target is None:
                    outputs[self.grid.scales[level]] = out
                else:
                    arriving.setdefault(target, []).append((out, self._share(level, target, sample)))
        return [{cell: _mixed(maps) for cell, maps in arriving.items()}], [outputs]

    def _share(self, level: int, target: tuple[int, int], sample: Sample) -> Tensor | None:
        """The weight of the predecessor at ``level`` for the cell ``target`` (Eq. 1)."""
        into, layer = target
        if not 0 < into < layer:
            return None
        return sample.beta[into][self.grid.beta_row(*target)][level - into + 1]


def _mixed(maps: Arriving) -> Tensor:
    first, *others = [x if weight is None else x * weight for x, weight in maps]
    return sum(others, start=first)


class PublishedSearch(BilevelSearch):
    """Both steps with plain backward passes that compute all gradients."""

    def prepare(self) -> None:
        """Use PyTorch's optimiser instead of ours."""
        self.weight_optimizer.close()
        self.weight_optimizer.state.clear()
        config = self.config
        self.plain_sgd = torch.optim.SGD(
            self.problem.weights.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def _weight_step(self, batch: tuple[Tensor, Tensor], phase: str, generator: torch.Generator) -> float:
        images, labels = self._move(batch)
        passes = self.problem.weight_passes(phase, generator)
        self.plain_sgd.zero_grad()
        loss = torch.stack([self._loss(images, labels, one) for one in passes]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self.problem.weights.parameters(), self.config.gradient_clipping)
        self.plain_sgd.step()
        return float(loss.detach())

    def _architecture_step(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Any:
        images, labels = self._move(batch)
        self.architecture_optimizer.zero_grad()
        for one in self.problem.architecture_passes(generator):
            loss, latency = self._loss(images, labels, one), self.problem.latency(one)
            total = loss if latency is None else loss + self.config.latency_weight * latency
            total.backward()  # type: ignore[no-untyped-call]
        self.architecture_optimizer.step()
