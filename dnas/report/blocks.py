"""The building blocks of the page: a section is a title, a sentence, and figures, tables and galleries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """A headline number: ``label`` over ``value`` with its ``unit``; ``note`` is small print."""

    label: str
    value: str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with the caption that says what to read from it: give ``svg`` (markup) or ``image`` (PNG or JPEG).

    ``svg`` is put into the page as it is, so it must come from this package or another trusted drawing.
    ``description`` is read out by screen readers. ``width`` (CSS pixels) keeps a wide drawing legible: on a narrower
    page it scrolls sideways.
    """

    caption: str
    svg: str | None = None
    image: bytes | None = None
    description: str = ""
    width: int | None = None

    def __post_init__(self) -> None:
        if (self.svg is None) == (self.image is None):
            raise ValueError("a figure needs either svg or image")


@dataclass(frozen=True)
class Bar:
    """A table cell that is also drawn as a bar: ``share`` (0 to 1) of the cell's width, ``text`` beside it."""

    text: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text or bars under ``header``; ``numeric`` columns (by index) are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    numeric: Sequence[int] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Names and their values, set as a list; ``mono`` for values that are code (commands, keys)."""

    items: Sequence[tuple[str, str]]
    mono: bool = False


@dataclass(frozen=True)
class Swatch:
    """A class in the legend of a gallery."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a gallery: encoded ``data`` (PNG or JPEG) and the words under it."""

    data: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Rows of pictures side by side under one caption, with a legend of colours."""

    rows: Sequence[Sequence[Picture]]
    caption: str
    legend: Sequence[Swatch] = ()


Block = Figure | Table | Definitions | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: ``lead`` is the sentence under the title."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
