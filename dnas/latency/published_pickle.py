"""Reading a pickled dict of numbers without executing code from the file.

A pickle can call any function by name. Here only the five names that a NumPy array with one dict needs are allowed, and
they resolve to stand-ins in this module: no function of NumPy or Python is called with values from the file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnas.errors import UserError
from dnas.files import read_bytes
from dnas.pickles import check_pickle

_WHAT = "FasterSeg latency table (.npy)"
_NUMBERS = {"f8": "d", "f4": "f"}
_MOST_BYTES = 64 * 2**20


def read_pickled_dict(path: str | Path) -> dict[str, float]:
    """The dict from text to numbers that is the only element of a ``.npy`` file, numbers as floats.

    A file that is damaged, has other content, or whose pickle names any other type raises :class:`UserError`.
    """
    data = read_bytes(path, _WHAT)
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path}: given {len(data)} bytes, expected a {_WHAT} of at most {_MOST_BYTES}")
    payload = _after_header(path, data)
    try:
        _check_opcodes(payload)
        check_pickle(payload)
        value = _Unpickler(io.BytesIO(payload)).load()
    except _ForbiddenError as error:
        raise UserError(
            f"{path}: refused: its pickle asks for {error}, which a latency table does not need and which could run "
            "code; nothing was executed"
        ) from None
    except Exception as error:  # unpickling a damaged file can raise almost anything
        raise UserError(f"{path}: not a readable {_WHAT}: {type(error).__name__}: {error}") from None
    return _as_dict(path, value)


def _after_header(path: str | Path, data: bytes) -> bytes:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception as error:  # NumPy's parser of the header can raise almost anything
        raise UserError(f"{path}: not a {_WHAT}: {error}") from None
    if dtype != np.dtype(object) or shape != ():
        raise UserError(f"{path}: given an array of {dtype} and shape {shape}, expected one pickled dict")
    return data[stream.tell() :]


def _as_dict(path: str | Path, value: object) -> dict[str, float]:
    content = value.content if isinstance(value, _Array) else None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected a dict of entry names and milliseconds in the array")
    checked: dict[str, float] = {}
    for name, number in content.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: expected entry names that are text, found one of {type(name).__name__}")
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise UserError(f"{path}: the entry {name[:80]!r}: expected milliseconds, given {type(number).__name__}")
        try:
            checked[name] = float(number)
        except OverflowError:
            raise UserError(f"{path}: the entry {name[:80]!r}: the number is too large") from None
    return checked


class _ForbiddenError(Exception):
    """The pickle uses a name that is not allowed."""


class _Callable:
    """The stand-in for a name in the pickle; it can only be called."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("changes what it calls")


class _DType:
    """Stand-in for ``numpy.dtype``: a type code, and the byte order from its state."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, *_: object) -> None:
        self._code, self._order = code, "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self._order = state[1]

    @property
    def layout(self) -> str:
        """The number's layout for :mod:`struct`."""
        if not isinstance(self._code, str) or self._code not in _NUMBERS:
            raise pickle.UnpicklingError(f"holds a NumPy number of type {self._code!r}, expected f4 or f8")
        return self._order + _NUMBERS[self._code]


class _Array:
    """Stand-in for the array: its only element, from its state."""

    __slots__ = ("content",)

    def __init__(self, *_: object) -> None:
        self.content: object = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, (), _, _, [content]) | ((), _, _, [content]):
                self.content = content
            case _:
                raise pickle.UnpicklingError("not an array of one element")


def _scalar(kind: object, data: object) -> float:
    if not isinstance(kind, _DType) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("not a NumPy number")
    return float(struct.unpack(kind.layout, data)[0])


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("not bytes written as latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """An unpickler in which every name resolves to a stand-in or raises an error."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: Mapping[tuple[str, str], Callable[..., object]] = {
            ("numpy.multiarray", "_reconstruct"): _Array,
            ("numpy.multiarray", "scalar"): _scalar,
            ("numpy", "ndarray"): object,
            ("numpy", "dtype"): _DType,
            ("_codecs", "encode"): _encode,
        }
        # NumPy 2 moved numpy.core to numpy._core.
        plain = "numpy.multiarray" if module in ("numpy.core.multiarray", "numpy._core.multiarray") else module
        if (plain, name) not in allowed:
            raise _ForbiddenError(f"{module}.{name}")
        return _Callable(allowed[plain, name])

    def persistent_load(self, identifier: object) -> Any:
        raise _ForbiddenError("an object of another file")


def _check_opcodes(payload: bytes) -> None:
    """Reject memo indices beyond the length of the file: unpicklers allocate memory up to the highest index."""
    for opcode, argument, _ in pickletools.genops(payload):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(payload):
            raise pickle.UnpicklingError(f"{opcode.name} {argument} in {len(payload)} bytes")
