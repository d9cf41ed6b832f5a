"""Classes from what masks hold: their values, the colours of their palettes, or their colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnas.data.decode import mask_values
from dnas.data.discovery.tables import ListedClass
from dnas.data.labels import Colour
from dnas.data.masks import MaskReading
from dnas.data.stored import read_stored
from dnas.errors import UserError

_MOST_VALUES = 255


@dataclass(frozen=True)
class MaskContent:
    """What sampled masks hold: the pixels of each value, or of each colour, and the colours of a common palette."""

    values: dict[int, int]
    colours: dict[Colour, int]
    palette: dict[int, Colour]


@dataclass(frozen=True)
class FoundClasses:
    """The content of a classes file, how masks are to be read, and notes on what was decided."""

    file: dict[str, Any]
    masks: MaskReading | None
    notes: tuple[str, ...]


def look_at_masks(paths: Sequence[Path]) -> MaskContent:
    """Read masks; files of values and files of colours in one folder are a :class:`UserError`."""
    values: Counter[int] = Counter()
    colours: Counter[Colour] = Counter()
    palettes: list[dict[int, Colour]] = []
    of_values = of_colours = None
    for path in paths:
        stored = read_stored(path)
        pixels = mask_values(stored, path)
        if pixels.ndim == 3:
            of_colours = path
            found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
            for colour, count in zip(found.tolist(), counts.tolist(), strict=True):
                colours[(colour[0], colour[1], colour[2])] += count
        else:
            of_values = path
            found, counts = np.unique(pixels, return_counts=True)
            values.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            if stored.palette is not None:
                shown = stored.palette.tolist()
                palettes.append({value: tuple(shown[value]) for value in found.tolist() if value < len(shown)})
        _refuse_too_many(path, len(values) + len(colours))
    if of_values and of_colours:
        raise UserError(f"{of_values} holds values and {of_colours} colours; choose one kind by --masks PATTERN")
    return MaskContent(dict(sorted(values.items())), dict(colours.most_common()), _common(palettes, len(paths)))


def classes_of_masks(content: MaskContent, table: Sequence[ListedClass], source: str) -> FoundClasses:
    """A classes file for the content of masks; names and colours come from ``table`` as far as it has them.

    Raises :class:`UserError` for values and colours that the table does not explain, and where names stand for values
    and for colours that contradict each other.
    """
    if content.colours:
        return _of_colours(content, table, source)
    return _of_table(content, table, source) if table else _of_values(content)


def _of_colours(content: MaskContent, table: Sequence[ListedClass], source: str) -> FoundClasses:
    if not table:
        shown = sorted(content.colours)
        names = [f"colour_{red:02x}{green:02x}{blue:02x}" for red, green, blue in shown]
        entries = [{"name": name, "colour": list(colour)} for name, colour in zip(names, shown, strict=True)]
        note = "no table of classes: one class for each colour, named by it; rename them in classes.yaml"
        return FoundClasses({"classes": entries}, "colours", (note,))
    known = {entry.colour for entry in table if entry.colour is not None}
    unknown = [list(colour) for colour in content.colours if colour not in known]
    if unknown:
        raise UserError(
            f"masks hold {len(unknown)} colours that {source} does not list, the first {unknown[0]}; add them, or give "
            "another table by --classes FILE"
        )
    return FoundClasses({"classes": _entries(table)}, "colours", (f"classes and colours from {source}",))


def _of_table(content: MaskContent, table: Sequence[ListedClass], source: str) -> FoundClasses:
    """Values by the table's own numbers, its order, or the colours of a palette, which must not contradict it."""
    found = dict(content.values)
    ignored = found.pop(255, None) if len(table) < 256 and all(entry.value != 255 for entry in table) else None
    numbered = [index if entry.value is None else entry.value for index, entry in enumerate(table)]
    coloured = {entry.colour: entry for entry in table if entry.colour is not None}
    by_number = dict(zip(numbered, table, strict=True))
    for value, colour in content.palette.items():
        other = coloured.get(colour)
        if other is not None and value in by_number and by_number[value] != other:
            raise UserError(
                f"masks hold the value {value}, which is {by_number[value].name!r} by its number in {source}, but its "
                f"palette colour {list(colour)} is that of {other.name!r}; write the value into the table, as in "
                f"{value},{other.name},{','.join(map(str, colour))}"
            )
    unknown = [value for value in found if value not in by_number]
    notes = [f"classes from {source}"]
    if unknown:
        raise UserError(
            f"masks hold the values {', '.join(map(str, unknown[:6]))}, which {source} does not have "
            f"({len(table)} classes, values {min(numbered)} to {max(numbered)}); give the values as its first column"
        )
    file: dict[str, Any] = {"classes": _entries(table)}
    if ignored is not None and len(table) == 2 and set(found) <= {0}:
        file["classes"] = [{**entry, "values": [value]} for entry, value in zip(_entries(table), (0, 255), strict=True)]
        return FoundClasses(file, "indices", (*notes, f"255 is {table[1].name!r}, as masks hold 0 and 255 only"))
    if numbered != list(range(len(table))):
        file["classes"] = [{**entry, "values": [value]} for entry, value in zip(_entries(table), numbered, strict=True)]
    if ignored is not None:
        file["ignore"] = 255
        notes.append("255 is ignored")
    return FoundClasses(file, "indices", tuple(notes))


def _of_values(content: MaskContent) -> FoundClasses:
    found = list(content.values)
    notes = ["no table of classes: one class for each value of the masks; name them in classes.yaml"]
    if len(found) == 2 and found[0] == 0:
        names = ["background", "foreground"]
        notes.append(f"0 is background and {found[1]} is foreground")
        entries: list[dict[str, Any]] = [
            {"name": name, "values": [value]} for name, value in zip(names, found, strict=True)
        ]
        return FoundClasses({"classes": entries}, "indices", tuple(notes))
    kept = [value for value in found if value != 255] if len(found) > 2 else found
    entries = [
        {"name": f"class_{value}", **_colour_entry(content.palette.get(value)), "values": [value]} for value in kept
    ]
    file: dict[str, Any] = {"classes": entries}
    if len(kept) < len(found):
        file["ignore"] = 255
        notes.append("255 is ignored")
    return FoundClasses(_without_equal_colours(file), "indices", tuple(notes))


def _without_equal_colours(file: dict[str, Any]) -> dict[str, Any]:
    shown = [tuple(entry["colour"]) for entry in file["classes"] if "colour" in entry]
    if len(set(shown)) < len(shown):
        return {**file, "classes": [{k: v for k, v in entry.items() if k != "colour"} for entry in file["classes"]]}
    return file


def _entries(table: Sequence[ListedClass]) -> list[dict[str, Any]]:
    return [{"name": entry.name, **_colour_entry(entry.colour)} for entry in table]


def _colour_entry(colour: Colour | None) -> dict[str, Any]:
    return {} if colour is None else {"colour": list(colour)}


def _common(palettes: Sequence[dict[int, Colour]], masks: int) -> dict[int, Colour]:
    """The colours of values that all masks share; empty if they differ or some mask has no palette."""
    merged: dict[int, Colour] = {}
    for palette in palettes:
        for value, colour in palette.items():
            if merged.setdefault(value, colour) != colour:
                return {}
    return merged if len(palettes) == masks else {}


def _refuse_too_many(path: Path, found: int) -> None:
    if found > _MOST_VALUES:
        lossy = (
            ": JPEG changes labels, masks need a lossless format" if path.suffix.lower() in (".jpg", ".jpeg") else ""
        )
        raise UserError(
            f"{path}: masks of over {_MOST_VALUES} different values or colours are photos, no class maps{lossy}; "
            "choose the masks by --masks PATTERN"
        )
