"""Decisions about choices, and samples: the immutable values that a network with choices runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What a sample says about one choice.

    probabilities: (options,), for the expected latency; for a dilation rate the weights of the two adjacent integers.
    index: the option that runs; None: all options run, weighted by the probabilities. gate: a scalar, 1 in the forward
    pass, with the straight-through gradient of the option that runs; None: no gradient. rate: the dilation rate, a
    scalar; None for other choices, and for a rate that is already an integer (``index`` + 1).
    """

    probabilities: Tensor
    index: int | None = None
    gate: Tensor | None = None
    rate: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """A decision about every choice of a network, by the choice's name; the argument of ``network(images, sample)``."""

    decisions: Mapping[str, Decision]

    def __post_init__(self) -> None:
        object.__setattr__(self, "decisions", MappingProxyType(dict(self.decisions)))

    def probabilities(self) -> dict[str, Tensor]:
        """The probabilities of every choice's options."""
        return {name: decision.probabilities for name, decision in self.decisions.items()}

    def replaced(self, decisions: Mapping[str, Decision]) -> Sample:
        """A copy with other decisions about some choices."""
        return Sample({**self.decisions, **decisions})

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """A copy with ``function`` applied to every tensor."""

        def optional(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        def mapped(one: Decision) -> Decision:
            return Decision(function(one.probabilities), one.index, optional(one.gate), optional(one.rate))

        return Sample({name: mapped(decision) for name, decision in self.decisions.items()})
