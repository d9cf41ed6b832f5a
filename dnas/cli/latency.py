"""``dnas latency``: build, import, show, check."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import JsonOption, MeasuringBar, SetOption, SpaceArgument, note, print_json

app = typer.Typer(
    help="Latency tables: build, import, show and check them.", no_args_is_help=True, rich_markup_mode=None
)

TableArgument = Annotated[Path, typer.Argument(metavar="T.json", help="A latency table.")]


@app.command()
def build(
    space: SpaceArgument,
    out: Annotated[Path, typer.Option("--out", help="The table to write.")],
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    backend: Annotated[str, typer.Option("--backend", help="eager, compiled or cudagraph.")] = "eager",
    precision: Annotated[str, typer.Option("--precision", help="fp32, tf32, fp16 or bf16.")] = "fp32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: torch's.")] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Use the channels-last layout.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds over all entries.")] = 5,
    time_per_entry: Annotated[float, typer.Option("--time-per-entry", min=0.001, help="Seconds of timing each.")] = 0.2,
    budget: Annotated[float | None, typer.Option("--budget", min=1, help="Seconds for all; refines the worst.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted build, or add entries.")] = False,
    settings: SetOption = None,
) -> None:
    """Measure every operator of SPACE on a device; nothing measured is lost when interrupted."""
    from dnas.latency import Effort, build_table, make_target
    from search_spaces import load_space

    chosen = load_space(space, settings or [])
    target = make_target(device, backend=backend, precision=precision, channels_last=channels_last, threads=threads)
    inventory = chosen.inventory()
    options = {"--out": out, "--device": device, "--backend": backend, "--precision": precision, "--threads": threads}
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    words += ["--channels-last"] * channels_last
    words += [word for setting in settings or [] for word in ("--set", setting)]
    command = shlex.join(["dnas", "latency", "build", space, *words])
    with MeasuringBar(f"measuring {len(inventory)} operators") as bar:
        table = build_table(
            inventory,
            out,
            target,
            space=chosen.name,
            input_size=chosen.input_size,
            effort=Effort(rounds=rounds, time_per_entry=time_per_entry),
            resume=resume,
            budget_s=budget,
            command=command,
            progress=bar,
        )
    summary = table.summary()
    note(f"{out}: {len(table)} operators of {chosen.name} on {summary['device']}")


@app.command("import")
def import_table(
    source: Annotated[Path, typer.Argument(metavar="OLD.npy", help="FasterSeg's published latency_lookup_table.npy.")],
    out: Annotated[Path, typer.Option("--out", help="The table to write.")],
    device_name: Annotated[
        str | None, typer.Option("--device-name", help="What it was measured on, where not the authors' GTX 1080 Ti.")
    ] = None,
) -> None:
    """Read a latency table in the format of FasterSeg's published code; its pickle is not executed."""
    from dnas.latency.published import PUBLISHED_DEVICE, import_published_table

    table = import_published_table(source, device_name=PUBLISHED_DEVICE if device_name is None else device_name)
    table.save(out)
    height, width = table.provenance.input_size
    note(f"{out}: {len(table)} entries for images of {height}x{width} on {table.provenance.device.name}")


@app.command()
def show(
    table: TableArgument,
    slowest: Annotated[int, typer.Option("--slowest", min=0, help="How many of the slowest entries to list.")] = 10,
    space: Annotated[str | None, typer.Option("--space", help="Also print the sensitivities of this space.")] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a table's summary, provenance and slowest entries."""
    from dnas.latency import LatencyTable

    loaded = LatencyTable.load(table)
    content = {
        "summary": loaded.summary(),
        "provenance": loaded.to_mapping()["provenance"],
        "slowest": [
            {"key": key, "latency_ms": entry.median, "p10": entry.p10, "p90": entry.p90}
            for key, entry in loaded.slowest(slowest)
        ],
    }
    if space is not None:
        content["sensitivities"] = _sensitivities(loaded, space, settings or [])
    if as_json:
        print_json(content)
        return
    for title in ("summary", "provenance", "sensitivities"):
        if title in content:
            print(title)
            _print_mapping(content[title])
    print("slowest" if slowest else "", end="\n" if slowest else "")
    for row in content["slowest"]:
        print(f"  {row['latency_ms']:9.4f} ms  ({row['p10']:.4f} to {row['p90']:.4f})  {row['key']}")


def _sensitivities(table: object, space: str, settings: list[str]) -> dict[str, object]:
    from dataclasses import asdict

    from dnas.errors import UserError
    from dnas.latency import LatencyTable
    from search_spaces import FasterSegSpace, load_space

    chosen = load_space(space, settings)
    if not isinstance(chosen, FasterSegSpace) or not isinstance(table, LatencyTable):
        raise UserError(f"{space}: has no sensitivities, only a fasterseg space has")
    found = chosen.latency(table).sensitivities()
    return {"change_ms": asdict(found), "weights": asdict(found.balanced())}


def _print_mapping(value: object, indent: str = "  ") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict):
                print(f"{indent}{key}")
                _print_mapping(inner, indent + "  ")
            else:
                print(f"{indent}{key:<18} {inner}")


@app.command()
def check(
    table: TableArgument,
    space: SpaceArgument,
    networks: Annotated[int, typer.Option("--networks", min=2, help="How many sampled networks to measure.")] = 12,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds over all networks.")] = 5,
    time_per_network: Annotated[float, typer.Option("--time-per-network", min=0.01, help="Seconds each.")] = 0.5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which networks are sampled.")] = 0,
    figure: Annotated[Path | None, typer.Option("--figure", help="Write the scatter as SVG or PNG.")] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure whole sampled networks of SPACE and compare them with the table's predictions."""
    from dnas.cli.checking import check_table
    from dnas.latency import Effort, LatencyTable
    from search_spaces import load_space

    loaded = LatencyTable.load(table)
    chosen = load_space(space, settings or [])
    effort = Effort(rounds=rounds, time_per_entry=time_per_network)
    with MeasuringBar(f"measuring {networks} networks") as bar:
        result = check_table(loaded, chosen, networks, seed=seed, effort=effort, progress=bar)
    if figure is not None:
        result.save_figure(figure)
    if as_json:
        print_json(result.to_mapping())
        return
    for name, predicted, measured in result.rows():
        print(f"  {name:<14} predicted {predicted:8.3f} ms   measured {measured:8.3f} ms")
    found = result.agreement
    print(f"Pearson {found.pearson:.4f}   Spearman {found.spearman:.4f}   mean absolute error {found.mape:.1f} %")
