"""The measured latency tables that ship with dnas: one JSON file each, named after its space and device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path

from dnas.errors import UserError

__all__ = ["table_file", "table_names"]


def table_names() -> tuple[str, ...]:
    """Names of the tables that ship with dnas, sorted."""
    files = resources.files("latency_tables").iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def table_file(name: str) -> AbstractContextManager[Path]:
    """A context with the path of a shipped table, for :meth:`dnas.latency.LatencyTable.load`.

    The path is good inside the ``with`` block only: a package that is imported from an archive is unpacked for it.
    Raises :class:`UserError` for an unknown name, listing the known ones.
    """
    if name not in table_names():
        raise UserError(f"{name}: unknown latency table, expected one of {', '.join(table_names()) or '(none ships)'}")
    return resources.as_file(resources.files("latency_tables").joinpath(f"{name}.json"))
