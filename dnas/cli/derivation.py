"""``dnas derive``."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnas.cli.common import JsonOption, note, print_json, table_path
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.cli.branches import BranchScore, Derivation
    from dnas.latency import LatencyTable


def derive(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder of dnas search, or a file of FasterSeg's logits.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The architecture file to write.")],
    rule: Annotated[
        str, typer.Option("--rule", help="How to decode: paper, or as the published code does: published-code.")
    ] = "paper",
    branches: Annotated[
        str | None, typer.Option("--branches", metavar="S,S", help="Final scales, such as 16,32; default: the best.")
    ] = None,
    which: Annotated[str, typer.Option("--which", help="student or teacher.")] = "student",
    table: Annotated[
        Path | None,
        typer.Option("--table", parser=table_path, help="Latency table to price it with; default: the run's."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="MS|none", help="Latency of a run's student; default: the run's target."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the network as the table was measured, on its device.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Derive the discrete network from searched parameters and write it as an architecture file."""
    from dnas.cli.branches import derive_from_run
    from dnas.latency import LatencyTable

    if rule not in ("paper", "published-code"):
        raise UserError(f"rule {rule!r}: expected paper or published-code")
    if not source.exists():
        raise UserError(f"{source}: no such run folder of dnas search, and no such file of FasterSeg's logits")
    for_branches = measure or target is not None
    if source.is_dir() and _derive_rates(
        source, out, rule, which, branches, table, for_branches=for_branches, as_json=as_json
    ):
        return
    prices = None if table is None else LatencyTable.load(table)
    target_ms = _parse_target(target)
    if source.is_file():
        if target_ms is not None:
            raise UserError(f"{source}: --target is for the run folder of a search")
        derivation = _derive_from_file(source, rule, which, _parse_branches(branches), prices)
    else:
        derivation = derive_from_run(
            source,
            which,
            _parse_branches(branches),
            prices,
            rule=rule,
            target_ms=target_ms,
            use_target=target != "none",
        )
    if measure:
        derivation = _measured(derivation, source, prices)
    derivation.architecture.save(out)
    if as_json:
        print_json(derivation.to_mapping())
        return
    _print(derivation)
    note(f"{out}: {which} derived by the rule of the {rule.replace('-', ' ')}")


def _print(derivation: Derivation) -> None:
    """The scores of the combinations, the cells of the chosen one, and its latency, for the person at the terminal."""
    from dnas.cli.branches import describe_latency

    for score in derivation.scores if len(derivation.scores) > 1 else ():
        parts = [f"branches {','.join(map(str, score.branches)):<6}"]
        parts += [] if score.miou is None else [f"mIoU {100 * score.miou:5.1f} %"]
        parts += [] if score.latency_ms is None else [f"predicted {score.latency_ms:7.3f} ms"]
        parts += [] if score.score is None else [f"score {score.score:.4f}"]
        parts += [_adjustment(score)] if score.reached is not None else []
        print("  ".join(parts))
    for branch in derivation.architecture.summary():
        print(f"branch 1/{branch['scale']}")
        for cell in branch["cells"]:
            down = f" -> 1/{2 * cell['scale']}" if cell["stride"] == 2 else ""
            print(
                f"  1/{cell['scale']:<3} {cell['operator']:<15} ratio {cell['ratio']:<3} "
                f"{cell['out_channels']} channels{down}"
            )
    if derivation.chosen is not None and derivation.chosen.changes:
        print(f"led to the target from the likeliest choices, {_adjustment(derivation.chosen)}:")
        for change in derivation.chosen.changes:
            print(f"  {change}")
    if derivation.latency_ms is not None:
        print(describe_latency(derivation))


def _adjustment(score: BranchScore) -> str:
    if not score.changes:
        return "argmax as it is"
    text = f"argmax {score.argmax_ms:.3f} ms, {len(score.changes)} changes, "
    text += f"log-probability -{score.lost_log_probability:.2f}"
    return text if score.reached else f"{text}, target not reached"


def _measured(derivation: Derivation, source: Path, table: LatencyTable | None) -> Derivation:
    """The same with its latency on the table's device, which is also noted in the architecture's provenance."""
    from dnas.cli.branches import TABLE
    from dnas.cli.checking import measure_architecture
    from dnas.latency import LatencyTable

    if table is None and (source / TABLE).exists():
        table = LatencyTable.load(source / TABLE)
    if table is None:
        raise UserError("--measure: give the latency table of this device, --table")
    measured = measure_architecture(derivation.architecture, table)
    noted = {**derivation.architecture.provenance, "measured_ms": f"{measured:.6f}"}
    architecture = replace(derivation.architecture, provenance=noted)
    return replace(derivation, architecture=architecture, measured_ms=measured)


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


def _derive_from_file(
    path: Path, rule: str, which: str, branches: tuple[int, ...] | None, table: LatencyTable | None
) -> Derivation:
    from derive.published import INPUT_SIZE, PublishedLogits, predicted_latency_ms
    from dnas.cli.branches import Derivation

    architecture = PublishedLogits.load(path, which).derive(branches, rule)
    if table is None:
        return Derivation(architecture, rule, None)
    if tuple(table.provenance.input_size) != INPUT_SIZE:
        given, wanted = ("x".join(map(str, size)) for size in (table.provenance.input_size, INPUT_SIZE))
        raise UserError(f"{table.source}: is for images of {given}, {path} was searched for {wanted}: use its table")
    return Derivation(architecture, rule, predicted_latency_ms(architecture, table.lookup, rule))


def _derive_rates(
    run: Path,
    out: Path,
    rule: str,
    which: str,
    branches: str | None,
    table: Path | None,
    *,
    for_branches: bool,
    as_json: bool,
) -> bool:
    """Derive from a search of dilation rates; False, with nothing done, for a run of another search."""
    from dnas.cli.rates import derive_rates, rate_space_of

    space = rate_space_of(run)
    if space is None:
        return False
    if rule != "paper" or branches is not None or for_branches:
        raise UserError(
            f"{run}: a search of dilation rates knows no --branches, --target or --measure, and only --rule paper"
        )
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
