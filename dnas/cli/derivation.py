"""``dnas derive``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnas.cli.common import JsonOption, note, print_json, table_path
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.cli.jobs import Derivation
    from dnas.latency import LatencyTable


def derive(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder of dnas search, or a file of FasterSeg's logits.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The architecture file to write.")],
    rule: Annotated[
        str, typer.Option("--rule", help="How to decode: paper, or published-code (for a file).")
    ] = "paper",
    branches: Annotated[
        str | None, typer.Option("--branches", metavar="S,S", help="Final scales, such as 16,32; default: the best.")
    ] = None,
    which: Annotated[str, typer.Option("--which", help="student or teacher.")] = "student",
    table: Annotated[
        Path | None,
        typer.Option("--table", parser=table_path, help="Latency table to price it with; default: the run's."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Derive the discrete network from searched parameters and write it as an architecture file."""
    from dnas.cli.jobs import derive_from_run
    from dnas.latency import LatencyTable

    if rule not in ("paper", "published-code"):
        raise UserError(f"rule {rule!r}: expected paper or published-code")
    if not source.exists():
        raise UserError(f"{source}: no such run folder of dnas search, and no such file of FasterSeg's logits")
    if source.is_dir() and _derive_rates(source, out, rule, which, branches, table, as_json=as_json):
        return
    prices = None if table is None else LatencyTable.load(table)
    if source.is_file():
        derivation = _derive_from_file(source, rule, which, _parse_branches(branches), prices)
    elif rule == "paper":
        derivation = derive_from_run(source, which, _parse_branches(branches), prices)
    else:
        raise UserError(f"{source}: the rule {rule} is for files of FasterSeg's published logits; use --rule paper")
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
    note(f"{out}: {which} derived by the rule of the {rule.replace('-', ' ')}")


def _derive_from_file(
    path: Path, rule: str, which: str, branches: tuple[int, ...] | None, table: LatencyTable | None
) -> Derivation:
    from derive.published import INPUT_SIZE, PublishedLogits, predicted_latency_ms
    from dnas.cli.jobs import Derivation

    architecture = PublishedLogits.load(path, which).derive(branches, rule)
    if table is None:
        return Derivation(architecture, rule, None)
    if tuple(table.provenance.input_size) != INPUT_SIZE:
        given, wanted = ("x".join(map(str, size)) for size in (table.provenance.input_size, INPUT_SIZE))
        raise UserError(f"{table.source}: is for images of {given}, {path} was searched for {wanted}: use its table")
    return Derivation(architecture, rule, predicted_latency_ms(architecture, table.lookup, rule))


def _derive_rates(
    run: Path, out: Path, rule: str, which: str, branches: str | None, table: Path | None, *, as_json: bool
) -> bool:
    """Derive from a search of dilation rates; False, with nothing done, for a run of another search."""
    from dnas.cli.rates import derive_rates, rate_space_of

    space = rate_space_of(run)
    if space is None:
        return False
    if rule != "paper" or branches is not None:
        raise UserError(f"{run}: a search of dilation rates knows no --branches and only --rule paper")
    derivation = derive_rates(run, space, which, table)
    derivation.architecture.save(out)
    if as_json:
        print_json(derivation.to_mapping())
    else:
        for line in derivation.lines():
            print(line)
        note(f"{out}: whole dilation rates derived by the rule of the paper")
    return True


def _parse_branches(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"branches {text!r}: expected final scales such as 16,32")
    return tuple(sorted(int(part) for part in parts))
