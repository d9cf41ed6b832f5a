"""``dnas derive``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import DeviceOption, JsonOption, find_table, note, print_json
from dnas.errors import UserError


def derive(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder of dnas search, or a file of FasterSeg's logits.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The architecture file to write.")],
    rule: Annotated[
        str | None,
        typer.Option("--rule", help="Rule for decoding: paper, or published-code (as in FasterSeg's code)."),
    ] = None,
    branches: Annotated[
        str | None, typer.Option("--branches", metavar="S,S", help="Final scales, such as 16,32; default: the best.")
    ] = None,
    which: Annotated[
        str | None, typer.Option("--which", help="Which architecture: student or teacher; default: the student.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", parser=find_table, help="Latency table for predictions; default: the run's."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="MS|none", help="Latency target of a run's student; default: the run's."),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            min=1,
            help="Students near the target that the supernet judges; the best is derived. Default: the search's.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the network, with the device and settings of the table.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Derive the discrete network from searched parameters and write it as an architecture file."""
    from derive import DeriveOptions
    from dnas.latency import LatencyTable
    from dnas.progress import RichProgress
    from dnas.workflows.derivation import derive_network

    with RichProgress() as progress:
        options = DeriveOptions(
            which=which,
            rule=rule,
            branches=_parse_branches(branches),
            table=None if table is None else LatencyTable.load(table),
            target_ms=_parse_target(target),
            use_target=target != "none",
            candidates=candidates,
            device=device,
            progress=progress,
        )
        derivation = derive_network(source, options, measure=measure)
    derivation.architecture.save(out)
    if as_json:
        print_json(derivation.to_mapping())
        return
    for line in derivation.lines():
        print(line)
    other = "" if derivation.rule == "paper" else f" with the rule of the {derivation.rule.replace('-', ' ')}"
    note(f"{out}: derived{other}")


def _parse_target(text: str | None) -> float | None:
    if text is None or text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"target {text!r}: expected a latency in ms such as 8.3, or none")
    return value


def _parse_branches(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(re.fullmatch("[0-9]{1,5}", part.strip()) for part in parts):
        raise UserError(f"branches {text!r}: expected final scales such as 16,32")
    return tuple(sorted(int(part) for part in parts))
