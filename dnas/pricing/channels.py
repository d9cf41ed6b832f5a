"""Numbers of channels as sums over the width choices of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Channels:
    """A number of channels: a constant plus, for some width choices (by name), a factor of the chosen width."""

    constant: Fraction
    widths: tuple[tuple[str, Fraction], ...] = ()

    @staticmethod
    def of(constant: int) -> Channels:
        """A fixed number."""
        return Channels(Fraction(constant))

    @staticmethod
    def chosen(name: str) -> Channels:
        """The width of a choice."""
        return Channels(Fraction(0), ((name, Fraction(1)),))

    def plus(self, other: Channels) -> Channels:
        """The sum, of concatenated maps."""
        factors = dict(self.widths)
        for name, factor in other.widths:
            factors[name] = factors.get(name, Fraction(0)) + factor
        return Channels(self.constant + other.constant, tuple(sorted(factors.items())))

    def times(self, factor: Fraction) -> Channels:
        """A multiple or a share, of maps that are split."""
        return Channels(self.constant * factor, tuple((name, factor * value) for name, value in self.widths))

    def at(self, widths: Mapping[str, int]) -> int:
        """The number at the given widths; raises ``ValueError`` if it is not an integer."""
        value = self.constant + sum(factor * widths[name] for name, factor in self.widths)
        if value.denominator != 1:
            raise ValueError(f"{self} is no whole number at {dict(widths)}")
        return int(value)

    def __str__(self) -> str:
        parts = [f"{'' if factor == 1 else f'{factor} '}width {name}" for name, factor in self.widths]
        return " + ".join([*parts, *([str(self.constant)] if self.constant or not parts else [])])
