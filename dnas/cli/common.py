"""What several commands share: options, printing, opening data, and networks by whatever names them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnas.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from dnas.data import AugmentationConfig, DataConfig, Labels, SegmentationDataset
    from dnas.runs import RunFolder


def table_path(reference: str) -> Path:
    """The file of a latency table: a path, or the name of one that ships with dnas (see ``latency_tables``)."""
    from latency_tables import table_file, table_names

    path = Path(reference)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    if reference not in table_names():
        known = ", ".join(table_names()) or "none"
        raise UserError(f"{reference}: no such latency table, neither a file nor one of those that ship: {known}")
    with table_file(reference) as found:
        return found


TableArgument = Annotated[
    Path, typer.Argument(metavar="T.json", parser=table_path, help="A latency table: file, or name of a shipped one.")
]
FigureOption = Annotated[Path | None, typer.Option("--figure", help="Also draw it, as SVG or PNG.")]
SpaceArgument = Annotated[str, typer.Argument(metavar="SPACE", help="A search space: name of a preset or YAML file.")]
DataOption = Annotated[str, typer.Option("--data", help="Images: preset, YAML file, or NAME:DIR such as camvid:DIR.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the configuration; repeatable."),
]
DataSetOption = Annotated[
    list[str] | None,
    typer.Option("--data-set", metavar="KEY=VALUE", help="Change a value of the data's configuration."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all randomness.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
TensorBoardOption = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs too.")]


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, allow_nan=False))


def note(text: str) -> None:
    """A line for the person at the terminal: on standard error, so that standard output stays clean."""
    print(text, file=sys.stderr)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``HEIGHTxWIDTH`` as two numbers."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 16384 for part in parts):
        raise UserError(f"size {text!r}: expected HEIGHTxWIDTH in pixels, for example 360x480")
    return int(parts[0]), int(parts[1])


def parse_duration(text: str) -> float:
    """``90``, ``90s``, ``20m`` or ``1.5h`` as seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh]?)", text.strip(), re.ASCII)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 1 <= seconds <= 30 * 24 * 3600:
        raise UserError(f"duration {text!r}: expected seconds, or a number with s, m or h, such as 90s, 20m or 1.5h")
    return seconds


def save_figure(path: Path, draw: Callable[[], Figure]) -> None:
    """Write a figure as SVG or PNG, whichever the name of the file says."""
    from dnas.report import save_png, save_svg

    save = {".svg": save_svg, ".png": save_png}.get(path.suffix)
    if save is None:
        raise UserError(f"{path}: expected a name that ends in .svg or .png")
    save(draw(), path)


def open_splits(config: DataConfig) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Training and validation images."""
    from dnas.data import open_dataset

    return open_dataset(config, "train"), open_dataset(config, "val")


def require_classes(found: int, expected: int, data: str, wanted_by: str) -> None:
    """Raise :class:`UserError` unless the data has as many classes as something was made for."""
    if found != expected:
        raise UserError(f"{data} has {found} classes, {wanted_by} is for {expected}: use the data it is for")


@dataclass(frozen=True)
class NetworkAtHand:
    """A network by name, architecture file or run; what is not known of it is None."""

    name: str
    network: nn.Module
    num_classes: int
    input_size: tuple[int, int] | None = None
    labels: Labels | None = None
    augmentation: AugmentationConfig | None = None
    run: RunFolder | None = None


def network_at_hand(reference: str, num_classes: int | None = None) -> NetworkAtHand:
    """The network of a run of ``dnas retrain``, an architecture file, or a published network's name.

    A run gives the best weights, the others fresh ones for ``num_classes`` (19, as in Cityscapes, if not given).
    """
    from derive import Architecture
    from dnas.networks import create_network, list_networks, network_facts

    path = Path(reference)
    if path.is_dir():
        return _network_of_run(path, num_classes)
    if path.is_file() or reference.endswith((".yaml", ".yml")):
        architecture = Architecture.load(path)
        classes = num_classes or architecture.num_classes or 19
        return NetworkAtHand(path.stem, architecture.build(classes), classes, architecture.input_size)
    if reference in list_networks():
        classes = num_classes or 19
        return NetworkAtHand(
            reference, create_network(reference, classes), classes, network_facts(reference).input_size
        )
    raise UserError(
        f"{reference}: no run folder, no architecture file, and no network; networks: {', '.join(list_networks())}"
    )


def build_network(description: Mapping[str, Any], num_classes: int, source: str) -> nn.Module:
    """The network that a retraining's configuration describes: by its architecture, or by name."""
    from derive import architecture_from
    from dnas.networks import create_network

    if "name" in description:
        return create_network(str(description["name"]), num_classes)
    return architecture_from(description.get("architecture", {}), source).build(num_classes)


def _network_of_run(path: Path, num_classes: int | None) -> NetworkAtHand:
    from dnas.config import parse_config
    from dnas.data import Labels
    from dnas.runs import RunFolder, load_into
    from dnas.training import RetrainConfig

    run = RunFolder.open(path, "retrain")
    source = str(path / "configuration.yaml")
    try:
        names = tuple(str(name) for name in run.configuration["classes"])
        colours = tuple((int(r), int(g), int(b)) for r, g, b in run.configuration["colours"])
        height, width = (int(side) for side in run.configuration["input_size"])
        description, recipe = run.configuration["network"], run.configuration["retrain"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not the configuration of a retraining ({error!r})") from None
    if num_classes not in (None, len(names)):
        raise UserError(f"{path}: was trained for {len(names)} classes, not {num_classes}")
    network = build_network(description, len(names), source)
    load_into(network, run.load_weights("best"), path)
    return NetworkAtHand(
        name=path.name,
        network=network.eval(),
        num_classes=len(names),
        input_size=(height, width),
        labels=Labels(names, colours),
        augmentation=parse_config(RetrainConfig, recipe, source).augmentation,
        run=run,
    )
