"""Signatures of operators: the keys of a latency table, and the operators that a search space declares."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from dnas.errors import UserError

_NAME = r"[a-z][a-z0-9_]{0,63}"
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_SHAPE = rf"{_NUMBER}x{_NUMBER}x{_NUMBER}"
_KEY = re.compile(
    rf"(?P<operator>{_NAME}) in=(?P<inputs>{_SHAPE}(?:\+{_SHAPE})*) out=(?P<out>{_NUMBER}) stride=(?P<stride>{_NUMBER})"
    rf"(?P<extras>(?: {_NAME}={_NUMBER})*)",
    re.ASCII,
)
_RESERVED = frozenset({"in", "out", "stride"})
_LARGEST = 999_999_999


@dataclass(frozen=True)
class OperatorSpec:
    """The full signature of an operator: everything that its latency on one device at one batch size depends on.

    ``inputs`` holds (channels, height, width) of each input, ``extras`` further integers, sorted by name
    (``("dilation", 2), ("groups", 16)``). Invalid values raise :class:`ValueError`.
    """

    operator: str
    inputs: tuple[tuple[int, int, int], ...]
    out_channels: int
    stride: int = 1
    extras: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _check_name("operator", self.operator)
        if not isinstance(self.inputs, tuple) or not self.inputs:
            raise ValueError(f"{self.operator}: inputs must be a tuple of at least one (channels, height, width)")
        for shape in self.inputs:
            if not isinstance(shape, tuple) or len(shape) != 3:
                raise ValueError(f"{self.operator}: an input must be (channels, height, width), given {shape!r}")
            for value in shape:
                _check_number("inputs", value, 1)
        _check_number("out_channels", self.out_channels, 1)
        _check_number("stride", self.stride, 1)
        names = [name for name, _ in self.extras]
        if not isinstance(self.extras, tuple) or names != sorted(set(names)) or _RESERVED & set(names):
            raise ValueError(f"{self.operator}: extras must be sorted, distinct and not in, out, stride, given {names}")
        for name, value in self.extras:
            _check_name("extra", name)
            _check_number(name, value, 0)

    @property
    def key(self) -> str:
        """The canonical text, such as ``conv_x2 in=32x128x256 out=64 stride=2``. Equal specs have equal keys."""
        inputs = "+".join("x".join(map(str, shape)) for shape in self.inputs)
        extras = "".join(f" {name}={value}" for name, value in self.extras)
        return f"{self.operator} in={inputs} out={self.out_channels} stride={self.stride}{extras}"

    @classmethod
    def from_key(cls, key: str) -> OperatorSpec:
        """The inverse of :attr:`key`; a text that is not a canonical key raises :class:`UserError`."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{key!r} is no operator key, expected e.g. 'conv_x2 in=32x128x256 out=64 stride=2'")
        pairs = [text.split("=") for text in match["extras"].split()]
        try:
            return cls(
                operator=match["operator"],
                inputs=tuple(_shape(text) for text in match["inputs"].split("+")),
                out_channels=int(match["out"]),
                stride=int(match["stride"]),
                extras=tuple((name, int(value)) for name, value in pairs),
            )
        except ValueError as error:
            raise UserError(f"{key!r} is no operator key: {error}") from None


@dataclass(frozen=True)
class InventoryItem:
    """One operator whose latency a search space needs.

    ``build()`` returns the module; its ``forward`` takes ``len(spec.inputs)`` tensors (batch, C, H, W) in the order of
    ``spec.inputs``. It is called whenever the module is needed, so that not all modules are in memory.
    """

    spec: OperatorSpec
    build: Callable[[], nn.Module]


def _shape(text: str) -> tuple[int, int, int]:
    channels, height, width = (int(part) for part in text.split("x"))
    return channels, height, width


def _check_name(what: str, value: object) -> None:
    if not isinstance(value, str) or re.fullmatch(_NAME, value, re.ASCII) is None:
        raise ValueError(f"{what}: expected lower-case letters, digits and underscores, given {value!r}")


def _check_number(what: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _LARGEST:
        raise ValueError(f"{what}: expected an integer from {low} to {_LARGEST}, given {value!r}")
