"""The building blocks of the page: a section has a title, a lead sentence, and figures, tables and galleries."""

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
    """A drawing with a caption that explains it: either ``svg`` (markup) or ``image`` (PNG or JPEG).

    ``svg`` is inserted into the page unescaped, so it must come from a trusted source. ``description`` is the text for
    screen readers. ``width`` (CSS pixels) keeps a wide drawing legible: on a narrower page it scrolls horizontally.
    """

    caption: str
    svg: str | None = None
    image: bytes | None = None
    description: str = ""
    width: int | None = None

    def __post_init__(self) -> None:
        if (self.svg is None) == (self.image is None):
            raise ValueError("expected exactly one of svg and image")


@dataclass(frozen=True)
class Bar:
    """A table cell with a bar: ``share`` (0 to 1) is the length of the bar, ``text`` the label beside it."""

    text: str
    share: float


@dataclass(frozen=True)
class Marked:
    """A table cell that is highlighted."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text, bars or highlighted text under ``header``; ``numeric`` columns (by index) are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Bar | Marked]]
    numeric: Sequence[int] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """A list of names and values; ``mono`` selects a monospace font for code (commands, keys)."""

    items: Sequence[tuple[str, str]]
    mono: bool = False


@dataclass(frozen=True)
class Swatch:
    """A class in the legend of a gallery."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a gallery: encoded ``data`` (PNG or JPEG) and its caption."""

    data: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A grid of pictures with a common caption and a colour legend."""

    rows: Sequence[Sequence[Picture]]
    caption: str
    legend: Sequence[Swatch] = ()


Block = Figure | Table | Definitions | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page: ``lead`` is the sentence under the title."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
