"""Inspection of a foreign ``.pt2`` file before torch loads it, as loading and running one can execute code.

A file that ``torch.export.save`` writes for an image network holds raw weights, a graph of ATen operators as JSON, and
sample inputs. Everything else that the format allows is refused: pickles, objects, compiled libraries, operators that
take file names, and symbolic expressions beyond simple sizes (torch evaluates their text as Python). The inspected
members are written to a new archive, so that torch cannot find another content in the file than the inspection did.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dnas.errors import UserError
from dnas.files import parse_json
from dnas.pickles import check_archive

_ROOT = "archive/"
_FIXED = (
    "archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version",
)  # fmt: skip
_PROGRAM, _INPUTS = "models/model.json", "data/sample_inputs/model.pt"
_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_RAW = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+|extra/[\w.-]+")
_MAX_JSON = 64 * 2**20

_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_SCALAR_FUNCTIONS = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|getitem)|math\.(ceil|floor|trunc)"
    r"|torch\.sym_(max|min|int|float)"
)
_TEXT_ARGUMENTS = frozenset({"mode", "rounding_mode", "approximate", "reduce", "padding_mode", "indexing"})
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})
_EXPRESSION = re.compile(
    r"(?:Symbol|Integer|Add|Mul|Max|Min|FloorDiv|Mod|positive|nonnegative|integer|True|'?[su]\d{1,6}'?|-?\d{1,12}"
    r"|=|,|\(|\)|\+|-|\*(?!\*)|\s)*"
)


class RefusedError(Exception):
    """The file holds something that could execute code; the message says what."""


def inspected(content: bytes, source: str) -> bytes:
    """The content of a ``.pt2`` file as a new archive of inspected members.

    Raises :class:`UserError` for a file that is no such archive, and for one that could execute code.
    """
    try:
        members = _members(content)
        _check_payloads(members)
        members[_PROGRAM] = _checked_program(members[_PROGRAM])
        check_archive(members[_INPUTS])
        torch.load(io.BytesIO(members[_INPUTS]), weights_only=True, map_location="cpu")
    except RefusedError as error:
        raise UserError(
            f"{source}: refused: it holds {error}, which an exported network does not need and which could run code; "
            "nothing was executed"
        ) from None
    except KeyError as error:
        raise UserError(f"{source}: not a valid torch.export file (no {error.args[0]}); export it again") from None
    except Exception as error:  # the reader of a damaged archive can raise almost anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: not a valid torch.export file ({reason[:200]}); export it again") from None
    rewritten = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(rewritten)
    for name, data in members.items():
        if name not in (".data/version", ".data/serialization_id", "byteorder", "version"):  # the writer's own
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return rewritten.getvalue()


def _members(content: bytes) -> dict[str, bytes]:
    """The members by name below the root; refuses unknown ones, and archives that expand beyond their own size."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > len(content):
            raise ValueError("it is compressed, or its members overlap")
        root = infos[0].filename.partition("/")[0] + "/" if infos else _ROOT
        members: dict[str, bytes] = {}
        for info in infos:
            name = info.filename.removeprefix(root)
            known = name in (*_FIXED, _PROGRAM, _INPUTS, _WEIGHTS, _CONSTANTS) or _RAW.fullmatch(name)
            if not info.filename.startswith(root) or not known:
                raise RefusedError(f"the member {info.filename[:100]!r}")
            if name in members:
                raise RefusedError(f"the member {name!r} twice")
            members[name] = archive.read(info)
    return members


def _check_payloads(members: Mapping[str, bytes]) -> None:
    """Refuse weights and constants that are stored as pickles or objects."""
    for config, pattern in ((_WEIGHTS, r"weight_\d+"), (_CONSTANTS, r"tensor_\d+")):
        for name, entry in _json(members[config])["config"].items():
            if entry["use_pickle"] is not False:
                raise RefusedError(f"{name[:100]!r} as a pickle")
            if not re.fullmatch(pattern, entry["path_name"]):
                raise RefusedError(f"{name[:100]!r} as an object")


def _checked_program(content: bytes) -> bytes:
    """The program without the metadata of its nodes, after a check of all that torch looks up or evaluates by name."""
    program = _json(content)
    for key, value in _entries(program):
        if key == "target" and isinstance(value, str):
            _check_operator(value)
        elif key == "as_operator":
            _check_operator(str(value))
        elif key in ("as_custom_obj", "custom_obj"):
            raise RefusedError("an object")
        elif key == "expr_str" and not (isinstance(value, str) and len(value) < 500 and _EXPRESSION.fullmatch(value)):
            raise RefusedError(f"the expression {str(value)[:100]!r}")
        elif key in ("in_spec", "out_spec") and isinstance(value, str) and value:
            _check_tree(_json(value.encode()))
    for key, value in list(_entries(program)):
        if isinstance(value, dict) and "target" in value and "metadata" in value:
            value["metadata"] = {}
        elif key == "range_constraints":
            for name in value:
                if not re.fullmatch(r"[su]\d{1,6}", name):
                    raise RefusedError(f"the symbol {name[:100]!r}")
    program["guards_code"] = []
    program["graph_module"]["metadata"] = {}
    return json.dumps(program).encode()


def _check_operator(name: str) -> None:
    if _SCALAR_FUNCTIONS.fullmatch(name):
        return
    found = _OPERATOR.fullmatch(name)
    operator = getattr(getattr(torch.ops.aten, found[1], None), found[2], None) if found else None
    if operator is None or not isinstance(operator, torch._ops.OpOverload):
        raise RefusedError(f"a call of {name[:100]!r}")
    for argument in operator._schema.arguments:
        if "str" in str(argument.type) and argument.name not in _TEXT_ARGUMENTS:
            raise RefusedError(f"a call of {name[:100]!r}")


def _check_tree(spec: Any) -> None:
    for key, value in _entries(spec):
        if key == "type" and value not in _TREE_TYPES:
            raise RefusedError(f"an argument of type {str(value)[:100]!r}")
        if key == "context" and value not in (None, "null") and not re.fullmatch(r'\[(?:"\w*",? ?)*\]', str(value)):
            raise RefusedError(f"arguments with the context {str(value)[:100]!r}")


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values below a value of JSON, each with the key that it or its list has; the nesting is limited."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _entries(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, key)


def _json(content: bytes) -> Any:
    if len(content) > _MAX_JSON:
        raise ValueError(f"a member of {len(content)} bytes")
    return parse_json(content)
