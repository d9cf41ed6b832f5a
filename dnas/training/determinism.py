"""Deterministic algorithms: the same bits in every run on one device, at the price of slower kernels."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from dnas.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Values with which matrix products of cuBLAS are deterministic (its documentation, Results Reproducibility)."""

_REFUSAL = re.compile(r"(\S+) does not have a deterministic implementation")


def fix_workspace(enabled: bool) -> None:
    """Fix the workspace of cuBLAS, which it reads from the environment when CUDA is initialised; the variable stays.

    Nothing if not ``enabled``. Raises :class:`UserError` if the variable has a value with which products are not
    deterministic, and if CUDA is initialised without it.
    """
    given = os.environ.get(WORKSPACE)
    if not enabled or given in WORKSPACES:
        return
    if given is not None:
        raise UserError(f"--deterministic: {WORKSPACE} is {given}, expected {' or '.join(WORKSPACES)}")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UserError(f"--deterministic: CUDA is in use already; set {WORKSPACE}={WORKSPACES[0]} in the environment")
    os.environ[WORKSPACE] = WORKSPACES[0]


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """A context in which PyTorch uses deterministic algorithms only; nothing changes if not ``enabled``.

    All switches are restored in the end. Call :func:`fix_workspace` before CUDA is initialised. Raises
    :class:`UserError` for an operator that has no deterministic form on the device.
    """
    if not enabled:
        yield
        return
    fix_workspace(enabled)
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switches = cudnn.benchmark, cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    except RuntimeError as error:
        refused = _REFUSAL.search(str(error))
        if refused is None:
            raise
        raise UserError(
            f"{refused[1]} has no deterministic form on this device: leave --deterministic out, or use another network"
        ) from None
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        cudnn.benchmark, cudnn.deterministic = switches


@contextlib.contextmanager
def order_does_not_matter() -> Iterator[None]:
    """A context for sums of integers, which are the same in any order: deterministic algorithms are off in it.

    Where they are on, torchmetrics counts with a matrix of all pixels by all pairs of classes, which are gigabytes.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
