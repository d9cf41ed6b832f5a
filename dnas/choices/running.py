"""What the choices of a network do while it runs: which options run, at which width, at which rate.

A sample must reach choices in modules that know nothing of samples, such as an ``nn.Sequential``. So it is not passed
from module to module: it holds for the duration of one call (:func:`running`), in the calling thread only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dnas.choices.sample import Decision, Sample

if TYPE_CHECKING:
    from dnas.choices.choice import Choice, RateChoice, WidthChoice

Option = Callable[[], Tensor]
"""Computes the output of one option."""


class Running(ABC):
    """Answers the questions of choices and layers during one forward pass."""

    @abstractmethod
    def select(self, choice: Choice, options: Sequence[Option]) -> Tensor:
        """The output of the option that runs, or of the mixture."""

    @abstractmethod
    def width(self, choice: WidthChoice) -> int:
        """The number of channels."""

    @abstractmethod
    def gate(self, choice: Choice) -> Tensor | None:
        """The scalar that carries the gradient of the option that runs; None: no gradient."""

    @abstractmethod
    def rate(self, choice: RateChoice) -> Tensor | int:
        """The dilation rate: a scalar tensor, or an integer of a derived network."""

    def shared(self, lazy: Lazy) -> Tensor:
        """The value of a lazy map, computed when it is first read."""
        return lazy.computed()


class Decided(Running):
    """Runs decisions."""

    @abstractmethod
    def decision(self, choice: Choice) -> Decision:
        """The decision about a choice."""

    def select(self, choice: Choice, options: Sequence[Option]) -> Tensor:
        """The gated output of one option, or the sum of all outputs times their probabilities."""
        decision = self.decision(choice)
        if decision.index is not None:
            return gated(options[decision.index](), decision.gate)
        weights = decision.probabilities.unbind()
        total: Tensor | None = None
        for weight, option in zip(weights, options, strict=True):
            out = option()
            term = out * weight.to(out.dtype)
            total = term if total is None else total + term
        assert total is not None
        return total

    def width(self, choice: WidthChoice) -> int:
        """The width of the decision, which must be for one option."""
        index = self.decision(choice).index
        if index is None:
            raise ValueError(f"{choice.what}: only one width can run, but the sample mixes them")
        return choice.widths[index]

    def gate(self, choice: Choice) -> Tensor | None:
        """The gate of the decision."""
        return self.decision(choice).gate

    def rate(self, choice: RateChoice) -> Tensor | int:
        """The rate of the decision."""
        decision = self.decision(choice)
        if decision.rate is not None:
            return decision.rate
        assert decision.index is not None
        return decision.index + 1


class Sampled(Decided):
    """Runs a sample; ``names`` are those of the network's choices."""

    def __init__(self, names: Mapping[Choice, str], sample: Sample) -> None:
        self._names, self._sample = names, sample

    def decision(self, choice: Choice) -> Decision:
        """The sample's decision."""
        return self._sample.decisions[self._names[choice]]


class Fixed(Decided):
    """Runs one option of every choice, by index; the choices that are asked for are added to ``used``."""

    def __init__(self, indices: Mapping[Choice, int]) -> None:
        self._indices = indices
        self.used: set[Choice] = set()

    def decision(self, choice: Choice) -> Decision:
        """The given option; the first one of a choice that is not given."""
        self.used.add(choice)
        return Decision(torch.empty(0), self._indices.get(choice, 0))


class Likeliest(Decided):
    """Runs the likeliest option of every choice; rates are real numbers."""

    def decision(self, choice: Choice) -> Decision:
        """The likeliest option."""
        from dnas.choices.choice import RateChoice

        if isinstance(choice, RateChoice):
            return Decision(torch.empty(0), rate=choice.rate().detach())
        return Decision(torch.empty(0), choice.likeliest())


class Lazy:
    """A map that is computed when it is first read.

    Make one in every forward pass: ``Lazy(lambda: self.down(x))``. :class:`InputChoice` reads the maps that it needs.
    """

    def __init__(self, compute: Option) -> None:
        self._compute = compute
        self._found: Tensor | None = None

    def value(self) -> Tensor:
        """The map (N, C, H, W)."""
        return current().shared(self)

    def computed(self) -> Tensor:
        """The map, whatever is running."""
        if self._found is None:
            self._found = self._compute()
        return self._found


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """``x`` times the gate, if there is one."""
    return x if gate is None else x * gate.to(x.dtype)


_CURRENT: ContextVar[Running | None] = ContextVar("running", default=None)


def current() -> Running:
    """What runs now; outside of :func:`running` the likeliest options."""
    return _CURRENT.get() or Likeliest()


@contextmanager
def running(what: Running) -> Iterator[None]:
    """Context in which the choices of all networks ask ``what``."""
    token = _CURRENT.set(what)
    try:
        yield
    finally:
        _CURRENT.reset(token)
