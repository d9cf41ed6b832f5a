"""Derivation of a discrete network from searched parameters."""

from derive.architecture import Architecture
from derive.base import TABLE, TOLERANCE, Derivation, DeriveOptions, Deriver
from derive.dilated.architecture import DilatedArchitecture
from derive.judging import Judge
from derive.multi_branch.architecture import MultiBranchArchitecture
from derive.registry import architecture_from, derive_file, deriver_of

__all__ = [
    "TABLE",
    "TOLERANCE",
    "Architecture",
    "Derivation",
    "DeriveOptions",
    "Deriver",
    "DilatedArchitecture",
    "Judge",
    "MultiBranchArchitecture",
    "architecture_from",
    "derive_file",
    "deriver_of",
]
