"""The problem of the one-shot search: discrete networks sampled from the supernet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.search.problem import Pass
from search_spaces.fasterseg.cells import RunCell, run_cell
from search_spaces.fasterseg.ends import combination_name
from search_spaces.fasterseg.plan import NetworkPlan
from search_spaces.fasterseg.selection import FairSampler, Selection
from search_spaces.fasterseg.supernet import MultiResolutionSupernet

WATCHED = 3
"""Random networks whose mIoU the log shows."""


class NetworkSampling:
    """The weights of a supernet, trained by discrete networks; see :class:`~dnas.search.problem.OneShotProblem`."""

    def __init__(
        self, supernet: MultiResolutionSupernet, plan: NetworkPlan, *, networks: int, largest_first: bool, seed: int
    ) -> None:
        """``networks``: of one step. ``largest_first``: whether the first of them is the largest one."""
        self.supernet, self.plan = supernet, plan
        self.weights: nn.Module = supernet
        self.architecture: nn.Module = nn.Module()
        self.run_cell: RunCell = run_cell
        self._networks, self._largest_first = networks, largest_first
        self._sampler = FairSampler(plan)
        self._watched = self._sampler.draw(WATCHED, torch.Generator().manual_seed(seed))

    def one_shot(self) -> bool:
        """True."""
        return True

    def project(self) -> None:
        """There are no bounds."""

    def begin_epoch(self, progress: float) -> None:
        """Nothing depends on the progress."""

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """The networks of one step."""
        drawn = self._sampler.draw(self._networks, generator)
        if self._largest_first:
            drawn[0] = self._largest(drawn[0])
        return [Pass("sampled", selection) for selection in drawn]

    def validation_passes(self) -> Mapping[str, Pass]:
        """Some random networks, always the same."""
        return {f"network {number}": Pass("sampled", one) for number, one in enumerate(self._watched, start=1)}

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """Logits at 1/8 under the name of the combination of branches."""
        selection: Selection = forward.sample
        logits = self.supernet.forward_selection(images, selection, self.plan.end_ratio, self.run_cell, full_size=False)
        return {combination_name(selection.branches): logits}

    def latency(self, forward: Pass) -> Tensor | None:
        """None: latencies matter when a network is selected."""
        return None

    def monitor(self) -> dict[str, Any]:
        """No latencies."""
        return {"latency_ms": {}}

    def logits(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def _largest(self, selection: Selection) -> Selection:
        """Along the same paths, the heaviest operator at the widest ratio in every cell."""
        heaviest = max(self.plan.operators, key=lambda name: ("conv" in name, "zoomed" not in name, name))
        return dataclasses.replace(
            selection,
            operators=dict.fromkeys(selection.operators, heaviest),
            ratios=dict.fromkeys(selection.ratios, max(self.plan.ratios)),
        )
