"""What the libraries below PyTorch are asked for. They read it once, when torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULTS = {
    # OpenMP's threads spin while they wait for each other, for so long that other work on the machine stops them, or
    # sleep at once, which halves the speed of an idle machine.
    "GOMP_SPINCOUNT": "10000",
    # The widths of a search come and go: oneDNN's default of 1024 compiled kernels is too few to meet them again.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "2048",
    # Descriptions of matrix products, which those kernels have besides: a quarter of a megabyte each, and 1024 of them.
    "LRU_CACHE_CAPACITY": "64",
}


def missing_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to an environment: what it says itself stays."""
    own = set(environment) | ({"GOMP_SPINCOUNT"} if "OMP_WAIT_POLICY" in environment else set())
    return {name: value for name, value in DEFAULTS.items() if name not in own}
