"""Class names and colours of a dataset, and the YAML file that defines them."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from dnas.config import Field, config, parse_config
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.presets import read_preset

IGNORE_LABEL = 255
"""Label of pixels without a class; ignored by losses and metrics."""

Colour = tuple[int, int, int]
_Byte = Annotated[int, Field(ge=0, le=255)]
_Colour = tuple[_Byte, _Byte, _Byte]


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset: names and RGB colours (0 to 255), in the order of their indices."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= IGNORE_LABEL:
            raise UserError(
                f"given {len(self.names)} class{'' if len(self.names) == 1 else 'es'}, expected 2 to {IGNORE_LABEL}: "
                "the background counts, so that one kind of object is two classes"
            )
        if len(self.names) != len(self.colours):
            raise UserError(
                f"given {len(self.names)} class names and {len(self.colours)} colours, expected equally many"
            )
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise UserError(f"the class name {twice[0]!r} occurs twice")

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to ``num_classes - 1``, or :data:`IGNORE_LABEL`."""
        return len(self.names)

    def colourise(self, mask: torch.Tensor | npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Colours of a mask of labels (H, W), of any integer type, as uint8 (H, W, 3); ignored pixels are black."""
        indices = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colours
        return palette[indices.astype(np.uint8)]


@config
class ClassEntry:
    """One class of a classes file.

    colour: shown in figures, and that of the class in colour masks; null chooses one for figures.
    values: the mask values of the class; null is its index plus the file's ``offset``.
    colours: further colours of the class in colour masks.
    """

    name: str
    colour: _Colour | None = None
    values: tuple[int, ...] | None = None
    colours: tuple[_Colour, ...] = ()


@config
class ClassesFile:
    """The content of a classes file: the classes in the order of their indices, and what masks mean.

    ignore: the mask value, or list of values, of ignored pixels. 255 is ignored unless it is the value of a class.
    ignore_colour: the colour, or list of colours, of ignored pixels in colour masks.
    offset: mask value of the first class, if values count up from there.
    others: whether values and colours that are not listed are an error, or ignored.
    """

    classes: tuple[ClassEntry, ...]
    ignore: int | tuple[int, ...] | None = None
    ignore_colour: _Colour | tuple[_Colour, ...] | None = None
    offset: int = 0
    others: Literal["error", "ignore"] = "error"

    @property
    def labels(self) -> Labels:
        """The classes as :class:`Labels`; classes without a colour get a distinct one."""
        taken = [entry.colour for entry in self.classes if entry.colour is not None]
        free = (colour for colour in _distinct_colours() if colour not in taken)
        colours = tuple(entry.colour or next(free) for entry in self.classes)
        return Labels(tuple(entry.name for entry in self.classes), colours)

    @property
    def ignored_values(self) -> tuple[int, ...]:
        """The values of ``ignore``."""
        return (self.ignore,) if isinstance(self.ignore, int) else self.ignore or ()

    @property
    def ignored_colours(self) -> tuple[Colour, ...]:
        """The colours of ``ignore_colour``."""
        given = self.ignore_colour or ()
        return (given,) if len(given) == 3 and isinstance(given[0], int) else given

    def value_labels(self) -> dict[int, int]:
        """The label of every mask value that is listed: its class, or 255 for ignored ones."""
        found = dict.fromkeys([IGNORE_LABEL, *self.ignored_values], IGNORE_LABEL)
        for index, entry in enumerate(self.classes):
            found |= dict.fromkeys((index + self.offset,) if entry.values is None else entry.values, index)
        return found

    def colour_labels(self) -> dict[Colour, int]:
        """The label of every colour that is listed: its class, or 255 for ignored ones."""
        found = dict.fromkeys(self.ignored_colours, IGNORE_LABEL)
        for index, entry in enumerate(self.classes):
            found |= dict.fromkeys(_colours_of(entry), index)
        return found


def read_classes(path: str | Path) -> ClassesFile:
    """Read a classes file; a missing file, an invalid value or a duplicate class raises :class:`UserError`."""
    return _parse_classes(read_yaml(path, "classes file"), str(path))


def builtin_classes(name: str) -> ClassesFile:
    """The bundled classes file ``dnas/data/classes/NAME.yaml``."""
    return _parse_classes(read_preset(resources.files("dnas.data") / "classes" / f"{name}.yaml"), name)


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """``count`` colours that are easy to tell apart."""
    return tuple(itertools.islice(_distinct_colours(), count))


def _distinct_colours() -> Iterator[Colour]:
    """Colours whose hues are as far apart as the golden ratio makes them."""
    for index in itertools.count():
        value = (0.95, 0.7, 0.5)[index % 3]
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.65, 0.9)[index // 3 % 2], value)
        yield round(255 * red), round(255 * green), round(255 * blue)


def _parse_classes(values: Mapping[str, Any], source: str) -> ClassesFile:
    classes = parse_config(ClassesFile, values, source)
    try:
        _ = classes.labels
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    by_value = [(value, entry.name) for entry, values in _listed_values(classes) for value in values]
    by_value += [(value, "ignore") for value in classes.ignored_values]
    _require_once(by_value, source, "value")
    by_colour = [(colour, entry.name) for entry in classes.classes for colour in _colours_of(entry)]
    by_colour += [(colour, "ignore_colour") for colour in classes.ignored_colours]
    _require_once(by_colour, source, "colour")
    return classes


def _listed_values(classes: ClassesFile) -> Iterator[tuple[ClassEntry, tuple[int, ...]]]:
    for index, entry in enumerate(classes.classes):
        yield entry, (index + classes.offset,) if entry.values is None else entry.values


def _colours_of(entry: ClassEntry) -> list[Colour]:
    return ([entry.colour] if entry.colour else []) + list(entry.colours)


def _require_once(found: Sequence[tuple[Any, str]], source: str, what: str) -> None:
    """Raise :class:`UserError` for a value or colour that stands for two classes, or for a class and ignored pixels."""
    first: dict[Any, str] = {}
    for key, name in found:
        if key not in first:
            first[key] = name
            continue
        shown = list(key) if isinstance(key, tuple) else key
        if name == "ignore" and what == "value":
            raise UserError(f"{source}: ignore: given {shown}, the index of the class {first[key]!r}; expected another")
        raise UserError(
            f"{source}: the {what} {shown} occurs twice, for {first[key]!r} and {name!r}; expected a different one for "
            "each class"
        )
