"""Typed configuration: frozen dataclasses from YAML and dictionaries, with errors that give dotted paths."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform

from dnas.errors import UserError
from dnas.files import parse_yaml

T = TypeVar("T")

__all__ = ["Field", "apply_overrides", "config", "parse_config", "record", "to_mapping"]

_MOST_PROBLEMS = 20
_MOST_BITS = 1024  # Python refuses to print much larger numbers
_WORDING = {
    "Value error, ": "",
    "Input should be": "expected",
    "Input is": "is",
    "a valid array": "a list",
    "an object": "a mapping",
    "Tuple should have": "expected",
    "Dictionary should have": "expected",
    "String should have": "expected",
    " after validation": "",
}


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field))
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen keyword-only dataclass whose values are validated and that accepts no extra keys."""
    return _validated(cls, pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field))
def record(cls: type[T]) -> type[T]:
    """Class decorator like :func:`config` for what dnas itself has written: further keys are left out.

    Run folders are data that anyone may have edited or damaged, so every reader checks them by such a class.
    """
    return _validated(cls, pydantic.ConfigDict(extra="ignore", allow_inf_nan=False))


def _validated(cls: type[T], settings: pydantic.ConfigDict) -> type[T]:
    # pydantic before 2.12 looks the names in inherited annotations up in the module of the subclass.
    hints = get_type_hints(cls, include_extras=True)
    cls.__annotations__ = {name: hints[name] for name in cls.__annotations__}
    return cast("type[T]", pydantic_dataclass(frozen=True, kw_only=True, config=settings)(cls))


def parse_config(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """An instance of the configuration class ``cls`` from plain values.

    ``source``, a file or the name of a preset, begins an error message. Types are strict: ``true`` is not a number and
    ``"3"`` is not an integer; an integer is accepted as a float. Raises :class:`UserError` with all invalid keys: the
    dotted path, what was given and what was expected.
    """
    unplain = [f"{'.'.join(path) or 'the whole'}: {problem}" for path, problem in _unplain(values, ())]
    if unplain:
        raise UserError(f"{source}: " + "; ".join(unplain[:_MOST_PROBLEMS]))
    try:
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(values, default=dict), strict=True)
    except pydantic.ValidationError as error:
        errors = [problem for problem in error.errors(include_url=False) if not _counts_refused(problem)]
        problems = [*dict.fromkeys(_describe(cls, problem) for problem in errors[:_MOST_PROBLEMS])]
        problems += [f"and {len(errors) - _MOST_PROBLEMS} more"] * (len(errors) > _MOST_PROBLEMS)
        raise UserError(f"{source}: " + "; ".join(problems)) from None


def _counts_refused(problem: Any) -> bool:
    """Whether a list is too short only without its entries that are refused, each by an error of its own."""
    return problem["type"] == "too_short" and bool(len(problem["input"]) >= problem["ctx"]["min_length"])


def _unplain(value: Any, path: tuple[str, ...], around: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The places in a value that are not a finite number, text, list or mapping, which JSON does not have."""
    if any(value is outer for outer in around):
        yield path, "given a list or mapping that holds itself"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, (str, int, float, type(None))):
                yield path, f"given a key that is a {type(key).__name__}, expected text"
            elif isinstance(key, str) or (isinstance(key, int) and key.bit_length() > _MOST_BITS):
                yield from _unplain(key, (*path, "a key"))
            yield from _unplain(inner, (*path, str(key)), (*around, value))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _unplain(inner, (*path, str(index)), (*around, value))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"given {value}, expected a finite number"
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield path, f"given {value!r}, which is not valid UTF-8; rename the file or folder"
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        yield path, f"given a number of {value.bit_length()} bits, expected a smaller one"
    elif not isinstance(value, (int, float, type(None))):
        yield path, f"given a {type(value).__name__}, expected a number, text, a list or a mapping"


def _describe(cls: type, problem: Any) -> str:
    parts, known = _locate(cls, problem["loc"])
    path = ".".join(parts) or "the whole"
    kind, message = problem["type"], problem["msg"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _locate(cls, problem["loc"][:-1])[1]
        return f"{path}: unknown key, known keys: {', '.join(known) or 'none'}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: missing, it has no default"
    for theirs, ours in _WORDING.items():
        message = message.replace(theirs, ours)
    given = json.dumps(problem["input"], default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{path}: given {given}, {message}"


def _locate(cls: Any, location: Iterable[int | str]) -> tuple[list[str], list[str]]:
    """The dotted path of a location that pydantic reports, and the keys of the configuration class there.

    A location also contains the name of the member of a union that was tried, and ``[key]`` for an invalid key of a
    mapping. Neither is in the user's file, so both are left out of the path.
    """
    path: list[str] = []
    members, chosen = _members(cls), False
    for part in location:
        if len(members) > 1 and not chosen:
            members = [member for member in members if getattr(member, "__name__", None) == part] or members
            chosen = True
        elif part != "[key]":
            path.append(str(part))
            members = [inner for member in members for inner in _inside(member, part)]
            chosen = False
    fields = [name for member in members for name in getattr(member, "__pydantic_fields__", ())]
    return path, list(dict.fromkeys(fields))


def _members(annotation: Any) -> list[Any]:
    """The members of a union except None; for any other annotation the annotation itself."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for option in get_args(annotation) if option is not type(None) for member in _members(option)]
    return [annotation]


def _inside(annotation: Any, part: int | str) -> list[Any]:
    """The annotations of the value at a key or index; none if ``annotation`` does not say."""
    fields = getattr(annotation, "__pydantic_fields__", {})
    if part in fields:
        return _members(fields[part].annotation)
    arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    origin = get_origin(annotation)
    if not arguments or not isinstance(origin, type):
        return []
    if issubclass(origin, Mapping):
        return _members(arguments[-1])
    if issubclass(origin, Sequence) and isinstance(part, int):
        return _members(arguments[min(part, len(arguments) - 1)])
    return []


def to_mapping(value: Any) -> dict[str, Any]:
    """A configuration as plain containers for YAML or JSON; the inverse of :func:`parse_config`."""
    mapping: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(value), default=str))
    return mapping


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values`` with each ``dotted.key=value`` of ``overrides`` applied; the value is read as YAML."""
    result: dict[str, Any] = copy.deepcopy(dict(values))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise UserError(f"--set {override}: expected KEY=VALUE, for example search.epochs=3")
        *parents, name = path.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set {override}: {parent} is a value, not a group of keys")
        inner[name] = parse_yaml(text, f"--set {path}")
    return result
