"""References to values in the texts of a study: ``$name`` or ``${name}``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dnas.errors import UserError

STUDY = "study"
"""Name of the built-in value that holds the study's folder."""

TRIAL = "trial"
"""Name of the built-in value that holds the number of the trial, where values are sampled."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"\$(?:(?P<dollar>\$)|(?P<plain>{_NAME})|\{{(?P<braced>{_NAME})\}}|(?P<wrong>))")


def references(value: Any) -> Iterator[str]:
    """The names that the texts in a value refer to, in their order."""
    if isinstance(value, str):
        for match in _REFERENCE.finditer(value):
            if match["wrong"] is not None:
                raise UserError(f"{value!r}: a $ begins the name of a value; write $$ for a dollar sign")
            if match["dollar"] is None:
                yield match["plain"] or match["braced"]
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from references(inner)


def substitute(value: Any, resolve: Callable[[str], Any]) -> Any:
    """``value`` with all references replaced; a text that is one reference becomes the referenced value itself."""
    if isinstance(value, Mapping):
        return {key: substitute(inner, resolve) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [substitute(inner, resolve) for inner in value]
    if not isinstance(value, str):
        return value
    found = {name: resolve(name) for name in references(value)}
    whole = _REFERENCE.fullmatch(value)
    if whole is not None and found:
        return next(iter(found.values()))
    return _REFERENCE.sub(lambda match: _replacement(match, found), value)


def _replacement(match: re.Match[str], found: Mapping[str, Any]) -> str:
    return "$" if match["dollar"] else as_text(found[match["plain"] or match["braced"]])


def as_text(value: Any) -> str:
    """A value as it is written on the command line, where it is read as YAML."""
    return value if isinstance(value, str) else json.dumps(value)
