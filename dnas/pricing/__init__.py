"""Prices of networks with choices: inventory, expected latency, and an integer programme over the choices."""

from dnas.pricing.expected_latency import ExpectedLatency, Term, latency_terms
from dnas.pricing.inventory import ChoiceInventory, PricedUnit, inventory_of
from dnas.pricing.programme import LatencyProgramme

__all__ = [
    "ChoiceInventory",
    "ExpectedLatency",
    "LatencyProgramme",
    "PricedUnit",
    "Term",
    "inventory_of",
    "latency_terms",
]
