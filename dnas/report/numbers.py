"""Numbers as the page shows them."""

from __future__ import annotations

MISSING = "–"
"""What stands for a number that is not known."""


def format_count(value: float) -> tuple[str, str]:
    """A count with three digits and its unit: 3340000 is ("3.34", "M"), 28.2e9 is ("28.2", "G")."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return three_digits(value / limit), unit
    return f"{value:g}", ""


def format_ms(value: float | None) -> str:
    """A latency in ms with three digits and without the unit."""
    return MISSING if value is None else three_digits(value)


def three_digits(value: float) -> str:
    """A number of at least three digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share (0 to 1) in percent, without the unit."""
    return MISSING if share is None else f"{100 * share:.1f}"


def count(value: int | None) -> str:
    """A count with its unit."""
    return MISSING if value is None else " ".join(format_count(value)).strip()
