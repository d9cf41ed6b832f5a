"""The engines by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnas.errors import UserError
from dnas.workflows.study.engine import Engine
from dnas.workflows.study.local import LocalEngine


def find_engine(on: str, *, cores: int | None = None, options: Mapping[str, Any] | None = None) -> Engine:
    """The engine for ``local``, ``ray``, ``ray:ADDRESS`` or ``slurm``.

    ``cores``: cores that ``local`` uses, default all. ``options``: those of submitit for ``slurm``.
    """
    name, _, address = on.partition(":")
    if cores is not None and name != "local":
        raise UserError(f"--cores is for --on local; {name} has its own resources")
    if options and name != "slurm":
        raise UserError(f"--on-set is for --on slurm, not for {name}")
    if on == "local":
        return LocalEngine(cores)
    if name == "ray":
        from dnas.workflows.study.ray_engine import RayEngine

        return RayEngine(address or None)
    if on == "slurm":
        from dnas.workflows.study.slurm import SlurmEngine

        return SlurmEngine(options)
    raise UserError(f"--on {on}: expected local, ray, ray:ADDRESS or slurm")
