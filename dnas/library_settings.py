"""Environment variables for the libraries below PyTorch, which read them once, when torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping

ALLOCATOR = "PYTORCH_ALLOC_CONF"

DEFAULTS = {
    # How long OpenMP's threads spin while they wait: spinning endlessly is slow beside other work on the machine,
    # sleeping immediately almost halves the speed on an idle machine.
    "GOMP_SPINCOUNT": "10000",
    # A search varies its widths: oneDNN's default cache of 1024 compiled kernels is too small to reuse them.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "2048",
    # PyTorch's cache of descriptors of matrix products, by default 1024 of a quarter of a megabyte each.
    "LRU_CACHE_CAPACITY": "64",
    # On GPUs: a search varies its widths, which leaves gaps in memory that is allocated in fixed blocks.
    ALLOCATOR: "expandable_segments:True",
}


def missing_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to ``environment``; values that it already has are kept."""
    given = set(environment) | ({"GOMP_SPINCOUNT"} if "OMP_WAIT_POLICY" in environment else set())
    given |= {ALLOCATOR} if "PYTORCH_CUDA_ALLOC_CONF" in environment else set()  # its older name
    return {name: value for name, value in DEFAULTS.items() if name not in given}
