"""Writing files atomically, and reading them with errors that name the file."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from dnas.errors import UserError
from dnas.limits import MAX_DEPTH, MAX_DIGITS, check_depth, check_graph

MAX_YAML_BYTES = 128 * 2**10
"""PyYAML reads some 100 KB in a second; the largest architectures have 20 KB."""

MAX_JSON_BYTES = 64 * 2**20
_MAX_YAML_VALUES = 100_000
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")


def user_cache() -> Path:
    """The folder of this user for files that can be made again: ``dnas`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnas"


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` with a temporary file beside ``path``, flush it to disk and move it to ``path``.

    If the process is killed, ``path`` has either its old content or the complete new one. Raises :class:`UserError`
    naming ``path`` if there is something else than a regular file (a device, a folder), and if the system refuses (no
    permission, a full disk).
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                _write_to(stream, write)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot write this file: {error.strerror or error}") from error


def _write_to(stream: IO[bytes], write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write``; if it hides an error of the system or Ctrl-C in a RuntimeError, as torch does, raise that one."""
    try:
        write(stream)
    except RuntimeError as error:
        hidden: BaseException | None = error
        while hidden is not None:
            if isinstance(hidden, (OSError, KeyboardInterrupt)):
                raise hidden from None
            hidden = hidden.__cause__ or hidden.__context__
        raise


def check_replaceable(path: str | Path) -> None:
    """Raise :class:`UserError` if there is something at ``path`` that is no regular file; links are followed.

    Moving a file to such a path would replace a device such as ``/dev/null`` for all programs.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        where = f"{path}, a link to {path.resolve()}," if path.is_symlink() else f"{path}:"
        raise UserError(f"{where} cannot write this file: {_kind(mode)}; give the path of a file")


def remove_temporary(folder: Path, name: str | None = None) -> None:
    """Remove what writers that were killed left in ``folder``, all or for one file; the caller holds a lock on it."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and name in (None, found[1]) and path.is_file():
            path.unlink(missing_ok=True)


def _kind(mode: int) -> str:
    """What a path that is no regular file is."""
    if stat.S_ISDIR(mode):
        return "Is a directory"
    if stat.S_ISFIFO(mode):
        return "it is a pipe"
    return "it is a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "it is no regular file"


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically; what UTF-8 does not have (parts of odd paths) as its escape."""
    write_atomically(path, lambda stream: stream.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities, which JSON does not have, raise ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bytes(path: str | Path, what: str = "file", limit: int | None = None) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Any other raises :class:`UserError` that names it and ``what`` it should be; of a device or a pipe nothing is read,
    as it may have no end.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: is a folder, expected a {what}")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: {_kind(status.st_mode)}, expected a {what} as a regular file")
        if limit is not None and status.st_size > limit:
            raise UserError(f"{path}: has {status.st_size} bytes, expected a {what} of at most {limit}")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this {what}: {error.strerror or error}") from None
    except MemoryError:
        raise UserError(f"{path}: not enough memory to read this {what}") from None


def read_text(path: str | Path, what: str = "file", limit: int | None = None) -> str:
    """Read a UTF-8 text file of at most ``limit`` bytes; any other file raises :class:`UserError`."""
    try:
        return read_bytes(path, what, limit).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file (not UTF-8), expected a {what}") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON strictly, in linear time.

    NaN, infinities, numbers of too many digits, duplicate keys and deep nesting raise :class:`ValueError`.
    """
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer, object_pairs_hook=_no_duplicates
        )
    except RecursionError:
        raise ValueError("nested too deeply: the limit on recursion is exceeded") from None
    check_depth(value)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:80]!r} occurs twice")
            seen.add(name)
    return mapping


def read_json(path: str | Path, what: str = "JSON file") -> Any:
    """Read JSON with :func:`parse_json`; any other or a truncated file raises :class:`UserError` that names it."""
    text = read_text(path, what, MAX_JSON_BYTES)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: not a valid {what} ({error}); it may be truncated, recreate it") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as a number (as YAML 1.2), dates as text, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "found unhashable key", key_node.start_mark)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(key)[:80]!r} occurs twice", key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    """The nodes in a node; refuses numbers of too many digits."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag in _NUMBER_TAGS and len(node.value) > MAX_DIGITS:
        raise ValueError(f"a number of {len(node.value)} digits")
    return []


_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
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
    """Parse YAML text safely, in linear time; ``source`` names it in errors.

    Texts over :data:`MAX_YAML_BYTES`, deep nesting, and references that would expand to too much raise
    :class:`UserError`, like any invalid YAML.
    """
    if len(text) > MAX_YAML_BYTES:
        raise UserError(f"{source}: has {len(text)} characters, expected at most {MAX_YAML_BYTES}")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            check_graph(node, _parts, depth=MAX_DEPTH, size=_MAX_YAML_VALUES)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except Exception as error:  # an explicit tag on a value that does not fit can raise almost anything
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(f"{source}:{where} not valid YAML: {problem}") from None


def read_yaml(path: str | Path, what: str = "YAML file") -> dict[str, Any]:
    """Read a YAML file that contains a mapping; any other file raises :class:`UserError` that names it."""
    value = parse_yaml(read_text(path, what, MAX_YAML_BYTES), str(path))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: expected a mapping of names to values, found {type(value).__name__}")
    return value


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Plain containers and scalars as YAML text, in the given order; the inverse of :func:`parse_yaml`."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
