"""What the search loop drives: any object that offers weights, architecture parameters, outputs and a latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pass:
    """One forward pass: the name of the architecture it belongs to, and what the problem needs to run it.

    ``count``: as how many passes its loss counts in a step, where it runs several at once.
    """

    architecture: str
    sample: Any
    count: int = 1


class SearchProblem(Protocol):
    """A network with weights and architecture parameters, and the passes that train them; see the two kinds below.

    Passes are drawn from the generator they are given and from nothing else, so that every process of a run, and a
    resumed run, draws the same. The parameters of ``architecture`` are named ``ARCHITECTURE.KIND``, or more than
    that: the log tells gradients by both.
    """

    weights: nn.Module
    architecture: nn.Module

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """The passes whose mean loss trains the weights in one step of ``phase``; they carry no gradient elsewhere."""

    def validation_passes(self) -> Mapping[str, Pass]:
        """The pass that stands for each architecture as it is now."""

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """Images (N, 3, H, W) -> named logits (N, classes, h, w) of any size, all of which are trained."""

    def latency(self, forward: Pass) -> Tensor | None:
        """The expected latency in ms to be weighed against the loss; None where there is no such term."""

    def monitor(self) -> dict[str, Any]:
        """What the log tells of the architecture parameters after an epoch."""

    def logits(self) -> dict[str, Tensor]:
        """The architecture parameters as ``ARCHITECTURE.TABLE``, to derive from."""


@runtime_checkable
class BilevelProblem(SearchProblem, Protocol):
    """A problem whose architecture parameters are trained on other images than the weights."""

    def architecture_passes(self, generator: torch.Generator) -> Sequence[Pass]:
        """The passes whose losses, and latencies, train the architecture parameters in one step."""


@runtime_checkable
class JointProblem(SearchProblem, Protocol):
    """A problem whose architecture parameters are trained by the passes of the weights, of which they may be a part."""

    def begin_epoch(self) -> None:
        """Make ready for an epoch: nothing but what follows from weights and architecture parameters as they are."""

    def project(self) -> None:
        """Put the architecture parameters within their bounds, after every step."""
