"""The measured latency tables that ship with dnas: one JSON file each, named after its space and device.

Beside ``NAME.json`` lies ``NAME.check.json``: whole networks, predicted by the table and measured on its device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path

from dnas.errors import UserError

__all__ = ["check_file", "table_file", "table_names"]

_CHECK = ".check.json"


def table_names() -> tuple[str, ...]:
    """Names of the tables that ship with dnas, sorted."""
    files = resources.files("latency_tables").iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if _is_table(file.name)))


def table_file(name: str) -> AbstractContextManager[Path]:
    """A context with the path of a shipped table, for :meth:`dnas.latency.LatencyTable.load`.

    The path is good inside the ``with`` block only: a package that is imported from an archive is unpacked for it.
    Raises :class:`UserError` for an unknown name, listing the known ones.
    """
    if name not in table_names():
        raise UserError(f"{name}: unknown latency table, expected one of {', '.join(table_names()) or '(none ships)'}")
    return resources.as_file(resources.files("latency_tables").joinpath(f"{name}.json"))


def check_file(name: str) -> AbstractContextManager[Path]:
    """As :func:`table_file`, the file of the table's check: what ``dnas latency check --json`` printed."""
    return resources.as_file(resources.files("latency_tables").joinpath(f"{name}{_CHECK}"))


def _is_table(file: str) -> bool:
    return file.endswith(".json") and not file.endswith(_CHECK)
