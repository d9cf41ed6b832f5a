"""Options, parsing and printing shared by several commands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from dnas.errors import UserError


def find_table(reference: str) -> Path:
    """The file of a latency table; see :func:`dnas.workflows.tables.find_table`."""
    from dnas.workflows.tables import find_table as find

    return find(reference)


TableArgument = Annotated[
    Path, typer.Argument(metavar="T.json", parser=find_table, help="A latency table: file, or name of a bundled one.")
]
FigureOption = Annotated[Path | None, typer.Option("--figure", help="Also draw a figure, as SVG or PNG.")]
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
NetworkSetOption = Annotated[
    list[str] | None,
    typer.Option("--network-set", metavar="KEY=VALUE", help="Option of a network given by its name; repeatable."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all randomness.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
OtherEnvironmentOption = Annotated[
    bool,
    typer.Option(
        "--other-environment", help="Resume although threads, device or versions differ, which may change the result."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
RatesOption = Annotated[
    str,
    typer.Option("--rates", help="Of a search of dilation rates: searched (fractional) or rounded (as dnas derive)."),
]
CheckOption = Annotated[
    str, typer.Option("--check", help="Files to read before: a sample, all or none; broken ones are named at once.")
]
DeterministicOption = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="The same bits in every run on a GPU, too, which is slower; on a CPU they are anyway."
    ),
]
TensorBoardOption = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")]


def print_json(value: object) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, allow_nan=False))


def note(text: str) -> None:
    """Print a line for the user on standard error, which keeps standard output clean."""
    print(text, file=sys.stderr)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``HEIGHTxWIDTH`` as (height, width)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(re.fullmatch("[0-9]{1,5}", part) and 1 <= int(part) <= 16384 for part in parts):
        raise UserError(f"size {text!r}: expected HEIGHTxWIDTH in pixels, for example 360x480")
    return int(parts[0]), int(parts[1])


def parse_check(text: str) -> int | None:
    """``sample``, ``all`` or ``none`` as the number of images of each split to read; None for all."""
    from dnas.workflows.data_check import SAMPLED_IMAGES

    numbers = {"sample": SAMPLED_IMAGES, "all": None, "none": 0}
    if text not in numbers:
        raise UserError(f"check {text!r}: expected sample, all or none")
    return numbers[text]


def parse_duration(text: str) -> float:
    """``90``, ``90s``, ``20m`` or ``1.5h`` as seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh]?)", text.strip(), re.ASCII)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 1 <= seconds <= 30 * 24 * 3600:
        raise UserError(f"duration {text!r}: expected seconds, or a number with s, m or h, such as 90s, 20m or 1.5h")
    return seconds


def wants_rounded(rates: str) -> bool:
    """Whether ``--rates`` asks for the rounded ones."""
    if rates not in ("searched", "rounded"):
        raise UserError(f"rates {rates!r}: expected searched or rounded")
    return rates == "rounded"


def parse_factors(text: str, option: str) -> tuple[float, ...]:
    """Comma-separated positive numbers, such as ``0.5,1,2``."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 16 for value in values):
        raise UserError(f"{option} {text!r}: expected numbers between 0 and 16 with commas, for example 0.5,1,2")
    return values
