"""The search problem of a network with choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.choices import ChoiceNetwork, Kind, RateChoice, Sample, kind_of, mean_entropy
from dnas.pricing import ExpectedLatency
from dnas.search.problem import Pass
from search_spaces.choices.config import PassName
from search_spaces.choices.parameters import ARCHITECTURE, logits_of, name_in_module, parameters_of, rates_of


class ChoiceSearch:
    """Bilevel search of the logits of a network's choices; a :class:`~dnas.search.problem.BilevelProblem`.

    The architecture parameters are the choices' logits, named ``network.KIND.CHOICE``.
    """

    def __init__(
        self,
        network: ChoiceNetwork,
        latency: ExpectedLatency,
        *,
        kinds: Mapping[str, Kind] | None = None,
        pretrain_passes: Sequence[PassName] = ("smallest", "largest", "random"),
        search_passes: Sequence[PassName] = ("smallest", "largest", "sampled"),
    ) -> None:
        self.network, self._latency, self.kinds = network, latency, dict(kinds or {})
        self.weights: nn.Module = network
        self.architecture: nn.Module = parameters_of(network)
        self._factors = {
            f"{ARCHITECTURE}.{choice.kind}.{name_in_module(name)}": kind_of(choice.kind, self.kinds).learning_rate
            for name, choice in network.choices.items()
        }
        self._passes = {"pretrain": tuple(pretrain_passes), "search": tuple(search_passes)}

    def begin_epoch(self, progress: float) -> None:
        """Nothing depends on the progress."""

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """The passes of the phase's list."""
        with torch.no_grad():
            return [
                Pass(ARCHITECTURE, self._sample(name, generator), key=None if self._is_drawn(name) else name)
                for name in self._passes[phase]
            ]

    def _is_drawn(self, name: PassName) -> bool:
        """Whether the kernels of a pass depend on a draw, or on a rate."""
        at_end = name in ("smallest", "largest")
        return name == "random" or any(
            isinstance(choice, RateChoice)
            or (kind_of(choice.kind, self.kinds).sampler != "softmax" and not (at_end and choice.ordered))
            for choice in self.network.choices.values()
        )

    def architecture_passes(self, generator: torch.Generator) -> Sequence[Pass]:
        """One sample."""
        return [Pass(ARCHITECTURE, self._sample("sampled", generator))]

    def _sample(self, name: PassName, generator: torch.Generator) -> Sample:
        sample = self.network.sample(generator, self.kinds)
        if name == "random":
            return self.network.at_random(sample, generator)
        return sample if name == "sampled" else self.network.at_end(sample, last=name == "largest")

    def validation_passes(self) -> Mapping[str, Pass]:
        """The likeliest options."""
        return {ARCHITECTURE: Pass(ARCHITECTURE, self.network.likeliest())}

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """The network's logits."""
        return {"logits": self.network(images, forward.sample)}

    def latency(self, forward: Pass) -> Tensor | None:
        """The expected latency in ms."""
        return self._latency(forward.sample.probabilities())

    def monitor(self) -> dict[str, Any]:
        """Expected latency, mean entropy of every kind, and the rates."""
        choices = self.network.choices
        with torch.no_grad():
            latency = float(self._latency({name: choice.probabilities() for name, choice in choices.items()}))
        tables: dict[str, list[Tensor]] = {}
        for choice in choices.values():
            if not isinstance(choice, RateChoice):
                tables.setdefault(choice.kind, []).append(choice.logits.detach()[None])
        found: dict[str, Any] = {
            "latency_ms": {ARCHITECTURE: latency},
            "entropy": {ARCHITECTURE: {kind: mean_entropy(rows) for kind, rows in tables.items()}},
        }
        rates = rates_of(self.network)
        return {**found, "rates": rates} if rates else found

    def logits(self) -> dict[str, Tensor]:
        """The logits, named ``network.CHOICE``."""
        return logits_of(self.network)

    def learning_rate_factors(self) -> Mapping[str, float]:
        """The learning rate of every choice's kind."""
        return self._factors

    def project(self) -> None:
        """Clamp the rates to their bounds."""
        self.network.project()
