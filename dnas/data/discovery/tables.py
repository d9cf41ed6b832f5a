"""Tables of class names and colours in the formats that annotation tools and datasets use."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.data.labels import Colour
from dnas.errors import UserError
from dnas.files import parse_yaml, read_text

_NAMES = re.compile(
    r"(class(es)?|label(s|map)?|colou?r(s|_?map)?|palette|obj|class_?(dict|names|list|colou?rs)|label_?(colou?rs|names)|"
    r"names|_classes)\.(csv|txt|json|tsv|names)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ListedClass:
    """A class of a table: its name, its colour and its mask value, as far as the table gives them."""

    name: str
    colour: Colour | None = None
    value: int | None = None


def find_table(root: Path) -> Path | None:
    """The table of classes in a folder, by its name; several are a :class:`UserError`."""
    found = sorted(path for path in root.iterdir() if path.is_file() and _NAMES.fullmatch(path.name))
    if len(found) > 1:
        names = " and ".join(path.name for path in found[:3])
        raise UserError(f"{root}: {names} may be the table of classes; choose one by --classes FILE")
    return found[0] if found else None


def read_table(path: Path) -> tuple[ListedClass, ...]:
    """Classes of a CSV, JSON or text file.

    Rows may hold a name, three numbers for its colour before or after it, and a number for its mask value before it
    (``name,r,g,b``, ``r g b name``, ``value,name,r,g,b``, ``name:r,g,b::``, or a name alone). A header may name the
    columns. Raises :class:`UserError` for other rows.
    """
    if path.suffix.lower() == ".json":
        return _of_json(path)
    rows = []
    for number, line in enumerate(read_text(path, "table of classes").splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            fields = _fields(text)
            if number == 1 and _is_header(fields):
                continue
            rows.append(_of_fields(fields, f"{path}: line {number}"))
    if not rows:
        raise UserError(f"{path}: holds no classes, expected a row for each, such as NAME,RED,GREEN,BLUE")
    return tuple(rows)


def _fields(text: str) -> list[str]:
    if re.fullmatch(r"[^:]+:\s*\d+\s*,\s*\d+\s*,\s*\d+\s*(:.*)?", text):  # CVAT's label map
        name, colour = text.split(":")[:2]
        return [name.strip(), *(part.strip() for part in colour.split(","))]
    if "," in text or ";" in text or "\t" in text:
        delimiter = next(mark for mark in ("\t", ";", ",") if mark in text)
        cells = [field.strip() for field in next(csv.reader([text], delimiter=delimiter)) if field.strip()]
        return [word for cell in cells for word in (cell.split() if re.fullmatch(r"[\d\s]+", cell) else [cell])]
    numbers = re.match(r"((?:\d+\s+){3,4}|(?:\d+\s+))(\D.*)$", text)
    if numbers:
        return [*numbers[1].split(), numbers[2].strip()]
    numbers = re.match(r"(\D.*?)\s+(\d+\s+\d+\s+\d+)$", text)
    return [numbers[1].strip(), *numbers[2].split()] if numbers else [text]


def _is_header(fields: list[str]) -> bool:
    words = {field.lower() for field in fields}
    return bool(words & {"name", "class", "label", "class_name", "classname"}) and not any(
        field.isdecimal() for field in fields
    )


def _of_fields(fields: list[str], where: str) -> ListedClass:
    names = [index for index, field in enumerate(fields) if not field.isdecimal()]
    if len(names) != 1:
        raise UserError(f"{where}: {', '.join(fields)}; expected a name and perhaps three numbers for its colour")
    before, after = ([int(field) for field in part] for part in (fields[: names[0]], fields[names[0] + 1 :]))
    value: int | None = None
    if len(before) in (1, 4):
        value, before = before[0], before[1:]
    numbers = before + after
    if len(numbers) not in (0, 3) or max(numbers, default=0) > 255:
        raise UserError(f"{where}: {', '.join(fields)}; expected three numbers from 0 to 255 for a colour")
    colour = (numbers[0], numbers[1], numbers[2]) if numbers else None
    return ListedClass(fields[names[0]], colour, value)


def _of_json(path: Path) -> tuple[ListedClass, ...]:
    try:
        content: Any = json.loads(read_text(path, "table of classes"))
    except ValueError:
        content = parse_yaml(read_text(path, "table of classes"), str(path))
    if isinstance(content, dict) and isinstance(content.get("classes", content.get("labels")), list):
        content = content.get("classes", content.get("labels"))
    if isinstance(content, dict):
        content = [{"name": name, "colour": value} for name, value in content.items()]
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: expected a list of classes, or colours by name")
    return tuple(_of_entry(entry, path) for entry in content)


def _of_entry(entry: Any, path: Path) -> ListedClass:
    if isinstance(entry, str):
        return ListedClass(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("name", entry.get("readable")), str):
        raise UserError(f"{path}: {entry!r}: expected a name, or a mapping with name and colour")
    name = str(entry.get("name", entry.get("readable")))
    colour = next((entry[key] for key in ("colour", "color", "rgb") if key in entry), None)
    value = next((entry[key] for key in ("value", "id", "index") if isinstance(entry.get(key), int)), None)
    if isinstance(colour, int):
        return ListedClass(name, None, colour)
    if isinstance(colour, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        colour = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    if colour is not None and not (isinstance(colour, list) and len(colour) == 3):
        raise UserError(f"{path}: {name}: given the colour {colour!r}, expected [RED, GREEN, BLUE] or '#rrggbb'")
    return ListedClass(name, None if colour is None else (colour[0], colour[1], colour[2]), value)
