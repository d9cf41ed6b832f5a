"""What can be chosen in a network: an operator, a width, an input, a number of repetitions, a dilation rate.

Each choice is an ``nn.Module`` with logits. Which option runs is not a state of the module: it comes from the sample
that :class:`dnas.choices.ChoiceNetwork` runs, and without one from the logits (the likeliest option).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dnas.choices.running import Lazy, current
from dnas.errors import UserError

INITIAL_NOISE = 1e-3
"""Standard deviation of the initial logits: no option is preferred."""


class Choice(nn.Module):
    """A choice among options.

    labels: the options' names. kind: the group whose settings (learning rate, sampler, ...) it has. given_name: its
    name; None: its path in the network. ordered: whether the options go from less to more. one_runs: whether only one
    option can run, so that no mixture is possible.
    """

    ordered: ClassVar[bool] = False
    one_runs: ClassVar[bool] = False
    logits: nn.Parameter

    def __init__(self, labels: Iterable[str], kind: str, name: str | None = None) -> None:
        super().__init__()
        self.labels, self.kind, self.given_name = tuple(labels), kind, name
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise UserError(f"{self.what}: options {', '.join(self.labels) or 'none'}: expected distinct ones")
        self.logits = nn.Parameter(INITIAL_NOISE * torch.randn(len(self.labels)))

    @property
    def what(self) -> str:
        """Name and class, for messages."""
        return f"{type(self).__name__} {self.given_name or '(' + ', '.join(self.labels[:4]) + ')'}"

    def probabilities(self) -> Tensor:
        """(options,): the softmax of the logits."""
        return self.logits.softmax(-1)

    def likeliest(self) -> int:
        """Index of the likeliest option."""
        return int(self.logits.detach().argmax())

    def project(self) -> None:
        """Project the logits onto their bounds, after a step of their optimiser; softmax logits have none."""

    def extra_repr(self) -> str:
        """Kind and options."""
        return f"{self.kind}: {', '.join(self.labels)}"


class OperatorChoice(Choice):
    """One of several modules with the same inputs and the same shape of output."""

    def __init__(self, options: Mapping[str, nn.Module], *, kind: str = "operator", name: str | None = None) -> None:
        super().__init__(options, kind, name)
        self.options = nn.ModuleDict(dict(options))

    def forward(self, *inputs: Any) -> Tensor:
        """The output of the option that runs, or the weighted sum of all options' outputs."""
        return current().select(self, [partial(self.options[label], *inputs) for label in self.labels])


class InputChoice(Choice):
    """Which of several maps of the same shape is read.

    Maps may be given as :class:`Lazy` values: what is not read is then not computed, and costs nothing.
    """

    def __init__(self, labels: Iterable[str], *, kind: str = "input", name: str | None = None) -> None:
        super().__init__(labels, kind, name)

    def forward(self, maps: Sequence[Tensor | Lazy]) -> Tensor:
        """One of ``maps``, in the order of the labels, or their weighted sum."""
        if len(maps) != len(self.labels):
            raise UserError(f"{self.what}: given {len(maps)} maps, expected {len(self.labels)}")
        return current().select(self, [_value_of(one) for one in maps])


class RepeatChoice(Choice):
    """How many of ``blocks`` run, one after another, at least ``minimum``; all must keep the shape of their input."""

    ordered = True

    def __init__(
        self, blocks: Sequence[nn.Module], minimum: int = 0, *, kind: str = "repeat", name: str | None = None
    ) -> None:
        if not 0 <= minimum <= len(blocks):
            raise UserError(f"minimum {minimum}: expected 0 to {len(blocks)}, the number of blocks")
        super().__init__([str(count) for count in range(minimum, len(blocks) + 1)], kind, name)
        self.minimum = minimum
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) after the chosen number of blocks."""
        after = [Lazy(lambda: x)]
        for block in self.blocks:
            after.append(Lazy(partial(_applied, block, after[-1])))
        return current().select(self, [lazy.value for lazy in after[self.minimum :]])


class WidthChoice(Choice):
    """Number of channels of a map. Layers that produce the same map, or maps that are added, share one object."""

    ordered = True
    one_runs = True

    def __init__(self, widths: Iterable[int], *, kind: str = "width", name: str | None = None) -> None:
        self.widths = tuple(widths)
        if list(self.widths) != sorted(set(self.widths)) or not self.widths or self.widths[0] < 1:
            raise UserError(f"widths {list(self.widths)}: expected distinct positive integers in ascending order")
        super().__init__(map(str, self.widths), kind, name)

    @property
    def widest(self) -> int:
        """The largest width."""
        return self.widths[-1]


class RateChoice(Choice):
    """A dilation rate from 1 to ``upper``: a real number while searching, an integer in the derived network.

    ``logits`` is the rate itself, a scalar. The options are the integers; :meth:`probabilities` are the weights of the
    two adjacent ones, so that an expectation over them is linear interpolation.
    """

    ordered = True
    one_runs = True

    def __init__(self, upper: float, initial: float = 1.0, *, kind: str = "rate", name: str | None = None) -> None:
        if not (1 <= initial <= upper and math.isfinite(upper)):
            raise UserError(f"dilation rate {initial:g} with upper bound {upper:g}: expected 1 <= rate <= bound")
        super().__init__([str(rate) for rate in range(1, math.ceil(upper) + 1)], kind, name)
        self.upper = float(upper)
        self.logits = nn.Parameter(torch.tensor(float(initial)))

    def rate(self) -> Tensor:
        """The rate within its bounds, a scalar with a straight-through gradient."""
        rate = self.logits
        # Exact, as the difference is zero; see FractionalConv2d.clamped_dilation.
        return rate.detach().clamp(1.0, self.upper) + (rate - rate.detach())

    def probabilities(self) -> Tensor:
        """(integers,): 1 - f and f for the integers around the rate."""
        return interpolation_weights(self.rate(), len(self.labels))

    def likeliest(self) -> int:
        """Index of the nearest integer."""
        return math.floor(float(self.logits.detach().clamp(1.0, self.upper)) + 0.5) - 1

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the rate to its bounds."""
        self.logits.clamp_(1.0, self.upper)

    def extra_repr(self) -> str:
        """Kind and upper bound."""
        return f"{self.kind}: 1 to {self.upper:g}"


def interpolation_weights(rate: Tensor, count: int) -> Tensor:
    """(count,): the weights of the integers 1 to ``count`` in a linear interpolation at the scalar ``rate``."""
    integers = torch.arange(1, count + 1, device=rate.device, dtype=rate.dtype)
    if count == 1:
        return torch.ones_like(integers) + 0 * rate
    # The gradient at an integer is that towards the next larger one, except at the last.
    lower = float(rate.detach().floor().clamp(1, count - 1))
    fraction = rate - lower
    return torch.where(integers == lower, 1 - fraction, torch.where(integers == lower + 1, fraction, 0.0 * rate))


def named_choices(network: nn.Module) -> dict[str, Choice]:
    """The choices of ``network`` by name, each once; raises :class:`UserError` for a name that two choices have."""
    found: dict[str, Choice] = {}
    for path, module in network.named_modules():
        if isinstance(module, Choice):
            name = module.given_name or path or "choice"
            if name in found:
                raise UserError(f"two choices are named {name}: give them different names")
            found[name] = module
    return found


def _value_of(one: Tensor | Lazy) -> Callable[[], Tensor]:
    return one.value if isinstance(one, Lazy) else partial(_same, one)


def _same(x: Tensor) -> Tensor:
    return x


def _applied(block: nn.Module, before: Lazy) -> Tensor:
    return cast("Tensor", block(before.value()))
