"""Networks with integer dilation rates, rounded from the searched fractional rates."""

from derive.dilated.architecture import BaseNetwork, DilatedArchitecture, with_rates
from derive.dilated.deriver import DilatedDerivation, DilatedDeriver
from derive.dilated.rounding import by_block, round_rates, round_to_target

__all__ = [
    "BaseNetwork",
    "DilatedArchitecture",
    "DilatedDerivation",
    "DilatedDeriver",
    "by_block",
    "round_rates",
    "round_to_target",
    "with_rates",
]
