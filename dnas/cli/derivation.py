"""``dnas derive``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import JsonOption, note, print_json
from dnas.errors import UserError


def derive(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of dnas search.")],
    out: Annotated[Path, typer.Option("--out", help="The architecture file to write.")],
    rule: Annotated[str, typer.Option("--rule", help="How to decode the logits: paper.")] = "paper",
    branches: Annotated[
        str | None, typer.Option("--branches", metavar="S,S", help="Final scales, such as 16,32; default: the best.")
    ] = None,
    which: Annotated[str, typer.Option("--which", help="student or teacher.")] = "student",
    table: Annotated[
        Path | None, typer.Option("--table", help="Latency table to price it with; default: the run's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Derive the discrete network from searched parameters and write it as an architecture file."""
    from dnas.cli.jobs import derive_from_run
    from dnas.latency import LatencyTable

    if rule != "paper":
        raise UserError(f"rule {rule!r}: expected paper")
    prices = None if table is None else LatencyTable.load(table)
    derivation = derive_from_run(source, which, _parse_branches(branches), prices)
    derivation.architecture.save(out)
    if as_json:
        print_json(derivation.to_mapping())
        return
    for score in derivation.scores if len(derivation.scores) > 1 else ():
        parts = [f"branches {','.join(map(str, score.branches)):<6}"]
        parts += [] if score.miou is None else [f"mIoU {100 * score.miou:5.1f} %"]
        parts += [] if score.latency_ms is None else [f"predicted {score.latency_ms:7.3f} ms"]
        parts += [] if score.score is None else [f"score {score.score:.4f}"]
        print("  ".join(parts))
    for branch in derivation.architecture.summary():
        print(f"branch 1/{branch['scale']}")
        for cell in branch["cells"]:
            down = f" -> 1/{2 * cell['scale']}" if cell["stride"] == 2 else ""
            print(
                f"  1/{cell['scale']:<3} {cell['operator']:<15} ratio {cell['ratio']:<3} "
                f"{cell['out_channels']} channels{down}"
            )
    if derivation.latency_ms is not None:
        print(f"predicted latency {derivation.latency_ms:.3f} ms")
    note(f"{out}: {which} derived by the rule of the {rule}")


def _parse_branches(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"branches {text!r}: expected final scales such as 16,32")
    return tuple(sorted(int(part) for part in parts))
