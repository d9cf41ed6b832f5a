"""Formatting of numbers for the page."""

from __future__ import annotations

MISSING = "–"
"""Placeholder for an unknown number."""


def format_count(value: float) -> tuple[str, str]:
    """A count with three digits and its prefix: 3340000 is ("3.34", "M"), 28.2e9 is ("28.2", "G")."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return three_digits(value / limit), unit
    return f"{value:g}", ""


def format_ms(value: float | None) -> str:
    """A latency in ms with three digits, without the unit."""
    return MISSING if value is None else three_digits(value)


def three_digits(value: float) -> str:
    """A number with at least three digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A fraction (0 to 1) in percent, without the unit."""
    return MISSING if share is None else f"{100 * share:.1f}"


def count(value: int | None) -> str:
    """A count with its prefix, such as ``3.34 M``."""
    return MISSING if value is None else " ".join(format_count(value)).strip()
