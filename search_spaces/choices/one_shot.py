"""The problem of the one-shot search of a network with choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.choices import Choice, ChoiceNetwork, Decision, RateChoice, Sample, fair_draws
from dnas.search.problem import Pass
from search_spaces.choices.parameters import ARCHITECTURE, logits_of, parameters_of, rates_of

WATCHED = 3
"""Random networks whose mIoU the log shows."""


class ChoiceSampling:
    """The weights of a network with choices, trained by sampled options.

    A :class:`~dnas.search.problem.OneShotProblem` whose only trained architecture parameters are the dilation rates,
    which are real numbers.
    """

    def __init__(self, network: ChoiceNetwork, *, networks: int, largest_first: bool, seed: int) -> None:
        """``networks``: of one step. ``largest_first``: whether the first one has all largest widths and depths."""
        self.network = network
        self.weights: nn.Module = network
        self.architecture: nn.Module = parameters_of(network)
        for choice in network.choices.values():
            choice.logits.requires_grad_(isinstance(choice, RateChoice))
        self._networks, self._largest_first = networks, largest_first
        self._watched = fair_options(network.choices, WATCHED, torch.Generator().manual_seed(seed))

    def one_shot(self) -> bool:
        """True."""
        return True

    def project(self) -> None:
        """Clamp the rates to their bounds."""
        self.network.project()

    def begin_epoch(self, progress: float) -> None:
        """Nothing depends on the progress."""

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """The networks of one step."""
        drawn = fair_options(self.network.choices, self._networks, generator)
        if self._largest_first:
            choices = self.network.choices.items()
            drawn[0] |= {name: len(c.labels) - 1 for name, c in choices if c.ordered and name in drawn[0]}
        return [self._pass(options) for options in drawn]

    def validation_passes(self) -> Mapping[str, Pass]:
        """Some random networks, always the same."""
        return {f"network {number}": self._pass(options) for number, options in enumerate(self._watched, start=1)}

    def _pass(self, options: Mapping[str, int]) -> Pass:
        unknown = torch.empty(0)  # nobody asks for probabilities: there is no latency term
        decisions = {
            name: Decision(unknown, rate=choice.rate())
            if isinstance(choice, RateChoice)
            else Decision(unknown, options[name])
            for name, choice in self.network.choices.items()
        }
        return Pass(ARCHITECTURE, Sample(decisions))

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """The network's logits."""
        return {"logits": self.network(images, forward.sample)}

    def latency(self, forward: Pass) -> Tensor | None:
        """None: latencies matter when a network is selected."""
        return None

    def monitor(self) -> dict[str, Any]:
        """The rates; no latencies."""
        rates = rates_of(self.network)
        found: dict[str, Any] = {"latency_ms": {}}
        return {**found, "rates": rates} if rates else found

    def logits(self) -> dict[str, Tensor]:
        """The logits, named ``network.CHOICE``; only rates have a meaning before networks have been judged."""
        return logits_of(self.network)


def fair_options(choices: Mapping[str, Choice], count: int, generator: torch.Generator) -> list[dict[str, int]]:
    """The options of ``count`` networks by name, without rates: each option of a choice equally often."""
    found: list[dict[str, int]] = [{} for _ in range(count)]
    for name, choice in choices.items():
        if isinstance(choice, RateChoice):
            continue
        for options, index in zip(found, fair_draws(len(choice.labels), count, generator), strict=True):
            options[name] = index
    return found
