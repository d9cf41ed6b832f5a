"""Reading the exports of annotation tools: COCO, labelme, CVAT, Label Studio, and polygons of YOLO."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dnas.data.decode import read_size
from dnas.data.discovery.pairing import image_files
from dnas.data.discovery.polygons import (
    AnnotatedImage,
    Annotations,
    Shape,
    find_image,
    rectangle,
)
from dnas.data.discovery.run_lengths import coco_run_lengths, row_run_lengths
from dnas.errors import UserError
from dnas.files import parse_yaml, read_text

_LARGEST_JSON = 1 << 30

Files = Mapping[str, Sequence[Path]]
"""The images below the root by file name."""


def find_annotations(root: Path) -> Annotations | None:
    """The annotations in polygons below ``root``; None if there are none. Several kinds are a :class:`UserError`."""
    images: dict[str, list[Path]] = {}
    for path in image_files(root):
        images.setdefault(path.name, []).append(path)
    kinds: dict[str, list[tuple[Path, Any]]] = {}
    for path, content in _documents(root):
        kind = _kind_of(content)
        if kind is not None:
            kinds.setdefault(kind, []).append((path, content))
    if len(kinds) > 1:
        raise UserError(
            f"{root}: contains annotations of {' and '.join(sorted(kinds))}; expected one kind, move the rest"
        )
    readers: dict[str, Callable[[Path, list[tuple[Path, Any]], Files], Annotations]] = {
        "COCO": _read_coco,
        "labelme": _read_labelme,
        "CVAT": _read_cvat,
        "Label Studio": _read_label_studio,
    }
    if not kinds:
        return _read_yolo(root, images)
    ((kind, documents),) = kinds.items()
    try:
        return readers[kind](root, documents, images)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        names = ", ".join(path.name for path, _ in documents[:3])
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{root}: the {kind} annotations in {names} are damaged ({reason[:100]})") from None


def _documents(root: Path) -> Iterator[tuple[Path, Any]]:
    """JSON and XML documents below ``root``; others are left out."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in (".json", ".xml") or not path.is_file() or path.stat().st_size > _LARGEST_JSON:
            continue
        try:
            yield path, json.loads(path.read_bytes()) if path.suffix.lower() == ".json" else _parse_xml(path)
        except (ValueError, RecursionError, ElementTree.ParseError):
            continue


def _parse_xml(path: Path) -> ElementTree.Element:
    text = read_text(path, "XML file")
    if "<!ENTITY" in text:
        raise ValueError("entities are not read")
    return ElementTree.fromstring(text)


def _kind_of(content: Any) -> str | None:
    if isinstance(content, ElementTree.Element):
        return "CVAT" if content.tag == "annotations" else None
    if isinstance(content, dict):
        if {"images", "annotations", "categories"} <= content.keys():
            return "COCO"
        return "labelme" if {"shapes", "imagePath"} <= content.keys() else None
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        return "Label Studio" if all("data" in item and "annotations" in item for item in content) else None
    return None


def _read_coco(root: Path, documents: list[tuple[Path, Any]], files: Files) -> Annotations:
    names: dict[int, str] = {}
    skipped: Counter[str] = Counter()
    images: list[AnnotatedImage] = []
    for path, content in documents:
        for category in content["categories"]:
            if names.setdefault(category["id"], category["name"]) != category["name"]:
                raise UserError(f"{path}: category {category['id']} is {category['name']!r}, elsewhere another name")
        sizes = {
            record["id"]: (record["height"], record["width"])
            for record in content["images"]
            if {"height", "width"} <= record.keys()
        }
        found: dict[Any, list[tuple[float, list[Shape]]]] = {}
        for entry in content["annotations"]:
            shapes = _coco_shapes(entry, names[entry["category_id"]], sizes.get(entry["image_id"]), str(path))
            if shapes:
                found.setdefault(entry["image_id"], []).append((float(entry.get("area", 0)), shapes))
            else:
                skipped["annotations without a region"] += 1
        for record in content["images"]:
            image = find_image(root, path.parent, record["file_name"], files)
            if image is None:
                skipped["images that are not there"] += 1
                continue
            # Large regions first: small ones stay visible where they overlap.
            ordered = sorted(found.get(record["id"], []), key=lambda region: -region[0])
            drawn = tuple(shape for _, shapes in ordered for shape in shapes)
            images.append(AnnotatedImage(image, drawn, sizes.get(record["id"])))
    return Annotations("COCO", tuple(images), tuple(name for _, name in sorted(names.items())), skipped)


def _coco_shapes(entry: Mapping[str, Any], name: str, size: tuple[int, int] | None, source: str) -> list[Shape]:
    regions = entry.get("segmentation") or []
    if isinstance(regions, dict):
        runs = coco_run_lengths(regions, f"{source}: annotation {entry.get('id')}")
        if size is not None and runs.size != size:
            raise UserError(
                f"{runs.source}: a mask of {runs.size[1]}x{runs.size[0]} pixels, but its image has {size[1]}x{size[0]}"
            )
        return [Shape(name, runs=runs)]
    return [Shape(name, tuple(zip(region[::2], region[1::2], strict=False))) for region in regions if len(region) >= 6]


def _read_labelme(root: Path, documents: list[tuple[Path, Any]], files: Files) -> Annotations:
    skipped: Counter[str] = Counter()
    images = []
    for path, content in documents:
        name = content["imagePath"]
        image = find_image(root, path.parent, name, files) or find_image(
            root, path.parent, f"{path.stem}{Path(name.replace(chr(92), '/')).suffix}", files
        )
        if image is None:
            skipped["images that are not there"] += 1
            continue
        shapes = [_labelme_shape(entry) for entry in content["shapes"]]
        skipped["points and lines"] += sum(shape is None for shape in shapes)
        known = content.get("imageHeight"), content.get("imageWidth")
        size = (known[0], known[1]) if known[0] and known[1] else None
        images.append(AnnotatedImage(image, tuple(shape for shape in shapes if shape is not None), size))
    return Annotations("labelme", tuple(images), _sorted_names(images), +skipped)


def _labelme_shape(entry: Mapping[str, Any]) -> Shape | None:
    points = [(float(x), float(y)) for x, y in entry["points"]]
    kind = entry.get("shape_type", "polygon")
    if kind == "rectangle" and len(points) == 2:
        (x, y), (right, bottom) = points
        return Shape(entry["label"], rectangle(x, y, right, bottom))
    if kind == "polygon" and len(points) >= 3:
        return Shape(entry["label"], tuple(points))
    return None


def _read_cvat(root: Path, documents: list[tuple[Path, Any]], files: Files) -> Annotations:
    skipped: Counter[str] = Counter()
    images: list[AnnotatedImage] = []
    declared: dict[str, None] = {}
    for path, content in documents:
        declared |= dict.fromkeys(node.text or "" for node in content.iterfind(".//labels/label/name"))
        for record in content.iterfind("image"):
            image = find_image(root, path.parent, record.attrib["name"], files)
            if image is None:
                skipped["images that are not there"] += 1
                continue
            nodes = sorted(record, key=lambda node: int(node.attrib.get("z_order", 0)))
            shapes = [_cvat_shape(node, str(path)) for node in nodes]
            skipped["points and lines"] += sum(shape is None for shape in shapes)
            size = int(record.attrib["height"]), int(record.attrib["width"])
            images.append(AnnotatedImage(image, tuple(shape for shape in shapes if shape is not None), size))
    used = _sorted_names(images)
    names = [name for name in declared if name] + [name for name in used if name not in declared]
    return Annotations("CVAT", tuple(images), tuple(names), +skipped)


def _cvat_shape(node: ElementTree.Element, source: str) -> Shape | None:
    values = node.attrib
    if node.tag == "polygon":
        pairs = (point.split(",") for point in values["points"].split(";"))
        return Shape(values["label"], tuple((float(x), float(y)) for x, y in pairs))
    if node.tag == "box":
        return Shape(values["label"], rectangle(*(float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))))
    if node.tag == "mask":
        left, top, width, height = (int(float(values[key])) for key in ("left", "top", "width", "height"))
        runs = row_run_lengths([int(count) for count in values["rle"].split(",")], (height, width), source)
        return Shape(values["label"], runs=runs, corner=(left, top))
    return None


def _read_label_studio(root: Path, documents: list[tuple[Path, Any]], files: Files) -> Annotations:
    skipped: Counter[str] = Counter()
    images = []
    for path, tasks in documents:
        for task in tasks:
            name = next((value for value in task["data"].values() if isinstance(value, str) and "/" in value), None)
            name = name or next((value for value in task["data"].values() if isinstance(value, str)), "")
            image = _uploaded(root, path.parent, name, files)
            if image is None:
                skipped["images that are not there"] += 1
                continue
            answers = [answer for answer in task["annotations"] if not answer.get("was_cancelled")]
            if len(answers) > 1:
                raise UserError(f"{path}: {name} has {len(answers)} annotations; export one for each image")
            results = answers[0]["result"] if answers else []
            shapes = [_label_studio_shape(result, path) for result in results]
            skipped["other results"] += sum(shape is None for shape in shapes)
            sizes = {(r["original_height"], r["original_width"]) for r in results if "original_height" in r}
            found = tuple(shape for shape in shapes if shape is not None)
            images.append(AnnotatedImage(image, found, next(iter(sizes), None)))
    return Annotations("Label Studio", tuple(images), _sorted_names(images), +skipped)


def _uploaded(root: Path, beside: Path, name: str, files: Files) -> Path | None:
    """The image of a task; uploads have a prefix of 8 digits and a hyphen."""
    last = name.replace("\\", "/").split("?d=")[-1].rpartition("/")[2]
    return find_image(root, beside, last, files) or find_image(root, beside, last.partition("-")[2] or last, files)


def _label_studio_shape(result: Mapping[str, Any], source: Path) -> Shape | None:
    value, kind = result.get("value", {}), result.get("type")
    if kind == "brushlabels":
        raise UserError(f"{source}: brush labels are not read; export them as PNG masks, or polygons")
    labels = value.get(kind) if isinstance(kind, str) else None
    if not labels:
        return None
    width, height = result["original_width"] / 100, result["original_height"] / 100
    if kind == "polygonlabels":
        return Shape(labels[0], tuple((x * width, y * height) for x, y in value["points"]))
    if kind == "rectanglelabels" and not value.get("rotation"):
        left, top = value["x"] * width, value["y"] * height
        return Shape(labels[0], rectangle(left, top, left + value["width"] * width, top + value["height"] * height))
    return None


def _read_yolo(root: Path, files: Files) -> Annotations | None:
    """Polygons as text: a line is a class index and the corners x y as shares of width and height."""
    names = _yolo_names(root)
    if names is None:
        return None
    skipped: Counter[str] = Counter()
    images = []
    for path in sorted(path for found in files.values() for path in found):
        text = _yolo_labels(root, path)
        if text is None:
            skipped["images without a text file"] += 1
            continue
        height, width = read_size(path)
        lines = enumerate(read_text(text, "polygons").splitlines(), start=1)
        shapes = [_yolo_shape(line, names, (width, height), f"{text}: line {n}") for n, line in lines if line.strip()]
        images.append(AnnotatedImage(path, tuple(shapes), None))
    return Annotations("YOLO", tuple(images), names, +skipped) if images else None


def _yolo_names(root: Path) -> tuple[str, ...] | None:
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        content = parse_yaml(read_text(path), str(path))
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names)]
        if isinstance(names, list) and names:
            return tuple(map(str, names))
    listed = root / "classes.txt"
    if listed.is_file() and any(root.rglob("labels/**/*.txt")):
        return tuple(line.strip() for line in read_text(listed).splitlines() if line.strip())
    return None


def _yolo_labels(root: Path, image: Path) -> Path | None:
    place = image.relative_to(root).with_suffix(".txt")
    moved = Path(*("labels" if part == "images" else part for part in place.parts))
    return next((root / path for path in (moved, place) if (root / path).is_file()), None)


def _yolo_shape(line: str, names: Sequence[str], size: tuple[int, int], where: str) -> Shape:
    fields = line.split()
    try:
        index, numbers = int(fields[0]), [float(field) for field in fields[1:]]
    except ValueError:
        raise UserError(f"{where}: expected a class index and numbers, given {line[:60]!r}") from None
    if len(numbers) == 4:
        raise UserError(f"{where}: a box of object detection, expected a polygon: at least three corners x y")
    if len(numbers) < 6 or len(numbers) % 2 or not 0 <= index < len(names):
        raise UserError(f"{where}: expected a class index below {len(names)} and at least three corners x y")
    corners = zip(numbers[::2], numbers[1::2], strict=True)
    return Shape(names[index], tuple((x * size[0], y * size[1]) for x, y in corners))


def _sorted_names(images: Sequence[AnnotatedImage]) -> tuple[str, ...]:
    return tuple(sorted({shape.name for image in images for shape in image.shapes}))
