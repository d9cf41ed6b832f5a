"""The engines by name."""

from __future__ import annotations

from dnas.errors import UserError
from dnas.workflows.study.engine import Engine
from dnas.workflows.study.local import LocalEngine


def find_engine(on: str, *, cores: int | None = None) -> Engine:
    """The engine for ``local``; ``cores``: the cores that it uses, default all."""
    if on == "local":
        return LocalEngine(cores)
    raise UserError(f"--on {on}: expected local")
