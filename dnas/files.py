"""Writing files atomically, and reading them with errors that name the file."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from dnas.errors import UserError


def user_cache() -> Path:
    """The folder of this user for files that can be made again: ``dnas`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnas"


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` with a temporary file beside ``path``, flush it to disk and move it to ``path``.

    If the process is killed, ``path`` has either its old content or the complete new one. Raises :class:`UserError`
    naming ``path`` if the system refuses (no permission, a folder of that name, a full disk).
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot write this file: {error.strerror or error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities, which JSON does not have, raise ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bytes(path: str | Path, what: str = "file") -> bytes:
    """Read a file; a missing or unreadable one raises :class:`UserError` that names it and ``what`` it should be."""
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this {what}: {error.strerror or error}") from None


def read_text(path: str | Path, what: str = "file") -> str:
    """Read a UTF-8 text file; any other file raises :class:`UserError`."""
    try:
        return read_bytes(path, what).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file (not UTF-8), expected a {what}") from None


def read_json(path: str | Path, what: str = "JSON file") -> Any:
    """Read JSON; NaN, infinities, duplicate keys and truncated files raise :class:`UserError` that names the file."""

    def refuse_constant(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    def finite_float(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is too large for a number")
        return value

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r} occurs twice")
        return mapping

    text = read_text(path, what)
    try:
        return json.loads(
            text, parse_constant=refuse_constant, parse_float=finite_float, object_pairs_hook=no_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a valid {what} ({error}); it may be truncated, recreate it") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as a number (as YAML 1.2), dates as text, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            keys.append(self.construct_object(key_node, deep=True))
            if keys[-1] in keys[:-1]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {keys[-1]!r} occurs twice", key_node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly the texts that :class:`_Loader` would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a container that occurs twice in full, not as a reference."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only in double quotes does PyYAML write rare line breaks in a form that it reads back.
    style = '"' if re.search(r"[^\S \n]|\ufeff", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(str, _represent_text)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text safely; ``source`` names it in errors."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{source}:{where} not valid YAML: {problem}") from None


def read_yaml(path: str | Path, what: str = "YAML file") -> dict[str, Any]:
    """Read a YAML file that contains a mapping; any other file raises :class:`UserError` that names it."""
    value = parse_yaml(read_text(path, what), str(path))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: expected a mapping of names to values, found {type(value).__name__}")
    return value


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Plain containers and scalars as YAML text, in the given order; the inverse of :func:`parse_yaml`."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
