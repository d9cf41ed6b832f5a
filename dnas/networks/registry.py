"""Registry of the published networks: create one by name, list them, look up the figures of their papers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from torch import nn

from dnas.errors import UserError
from dnas.profile import PRODUCTS_ONLY, ElementwisePrices

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class PrintedFigure:
    """A figure as printed in a paper, such as ``3.34M`` or ``39.1G``, with the precision of its digits."""

    text: str

    def __post_init__(self) -> None:
        if self.text[-1:] not in _UNITS:
            raise ValueError(f"{self.text!r} is not a printed figure: expected digits and one of {', '.join(_UNITS)}")
        Decimal(self.text[:-1])

    @property
    def value(self) -> float:
        """The figure as a plain number: ``3.34M`` is 3340000."""
        return float(Decimal(self.text[:-1]) * _UNITS[self.text[-1]])

    @property
    def half_digit(self) -> float:
        """Half a unit in the last printed digit: every number this close to ``value`` is printed as ``text``."""
        exponent = int(Decimal(self.text[:-1]).as_tuple().exponent)
        return 0.5 * 10.0**exponent * _UNITS[self.text[-1]]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class PaperFacts:
    """The figures that a paper gives for a network, and the deviation of our network from them.

    ``input_size`` is (height, width) in pixels, the size at which ``multiply_adds`` was counted; ``field_of_view`` is
    that of the backbone, in pixels. A figure that the paper does not give is None. ``elementwise`` is what the paper's
    counter adds to the multiply-adds of convolutions. ``parameters_off`` and ``multiply_adds_off`` are our count
    divided by the printed one, minus 1, or 0 if they agree to the last printed digit; ``why`` gives the reason.
    """

    source: str
    input_size: tuple[int, int]
    parameters: PrintedFigure | None = None
    multiply_adds: PrintedFigure | None = None
    elementwise: ElementwisePrices = PRODUCTS_ONLY
    field_of_view: int | None = None
    parameters_off: float = 0.0
    multiply_adds_off: float = 0.0
    why: str = ""

    def __post_init__(self) -> None:
        if (self.parameters_off or self.multiply_adds_off) and not self.why:
            raise ValueError(f"{self.source}: a deviation from the paper needs a reason in `why`")


class NetworkRegistry:
    """Network factories by name; names are unique."""

    def __init__(self) -> None:
        self._factories: dict[str, Callable[..., nn.Module]] = {}
        self._facts: dict[str, PaperFacts] = {}

    def register(self, name: str, facts: PaperFacts) -> Callable[[Factory], Factory]:
        """Decorator for a factory ``(num_classes, **options) -> nn.Module``; ValueError if the name is taken."""

        def add(factory: Factory) -> Factory:
            if name in self._factories:
                raise ValueError(f"network {name!r} is already registered by {self._factories[name].__qualname__}")
            self._factories[name] = factory
            self._facts[name] = facts
            return factory

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._factories)

    def facts(self, name: str) -> PaperFacts:
        """The figures of the paper for the network ``name``."""
        self._check_known(name)
        return self._facts[name]

    def create(self, name: str, num_classes: int, **options: object) -> nn.Module:
        """Build the network ``name`` with fresh weights; UserError for a wrong name, number of classes or option."""
        self._check_known(name)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise UserError(f"network {name}: given {num_classes!r} classes, expected an integer of at least 1")
        factory = self._factories[name]
        parameters = inspect.signature(factory).parameters
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        unknown = [] if takes_any else [option for option in options if option not in parameters]
        if unknown:
            known = ", ".join(parameter for parameter in parameters if parameter != "num_classes") or "none"
            raise UserError(f"network {name}: unknown option {', '.join(unknown)}; known options: {known}")
        return factory(num_classes, **options)

    def _check_known(self, name: str) -> None:
        if name not in self._factories:
            raise UserError(f"unknown network {name!r}; known networks: {', '.join(self.names())}")


_REGISTRY = NetworkRegistry()


def register_network(name: str, facts: PaperFacts) -> Callable[[Factory], Factory]:
    """Decorator that registers ``factory(num_classes, **options) -> nn.Module`` for :func:`create_network`.

    The network must take normalised float images (N, 3, H, W) and return logits (N, num_classes, H, W). Raises
    ValueError if the name is taken.
    """
    return _REGISTRY.register(name, facts)


def create_network(name: str, num_classes: int = 19, **options: object) -> nn.Module:
    """Build a published network with fresh weights.

    It takes normalised float images (N, 3, H, W), H and W from 64 up, and returns logits (N, num_classes, H, W).
    ``options`` are passed to the network's factory. Raises :class:`UserError` for an unknown name (listing the known
    ones), an unknown option or a number of classes below 1.
    """
    return _REGISTRY.create(name, num_classes, **options)


def list_networks() -> list[str]:
    """The names of all registered networks, sorted."""
    return _REGISTRY.names()


def network_facts(name: str) -> PaperFacts:
    """The figures of the paper for the network ``name``; raises :class:`UserError` for an unknown name."""
    return _REGISTRY.facts(name)
