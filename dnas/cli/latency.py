"""``dnas latency``: build and check; the commands for existing tables are in ``latency_tables``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnas.cli import latency_prediction, latency_remote, latency_tables
from dnas.cli.common import (
    FigureOption,
    JsonOption,
    SetOption,
    SpaceArgument,
    TableArgument,
    note,
    parse_duration,
    print_json,
)

if TYPE_CHECKING:
    from derive import Architecture

app = typer.Typer(
    help="Latency tables: build, check, show, compare, merge, import and export them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("show")(latency_tables.show)
app.command("diff")(latency_tables.diff)
app.command("predict")(latency_prediction.predict)
app.command("merge")(latency_tables.merge)
app.command("import")(latency_tables.import_table)
app.command("export")(latency_tables.export)
app.command("bundle")(latency_remote.bundle)
app.command("collect")(latency_remote.collect)


@app.command()
def build(
    space: SpaceArgument,
    out: Annotated[Path, typer.Option("--out", help="The table to write.")],
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps, or several GPUs: cuda:0,1, cuda:all.")
    ] = "auto",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="eager, compiled, cudagraph, onnxruntime, openvino, tensorrt, or auto: cudagraph on CUDA, else eager.",
        ),
    ] = "auto",
    precision: Annotated[str, typer.Option("--precision", help="fp32, tf32, fp16, bf16 or int8.")] = "fp32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: torch's.")] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Use the channels-last layout.")] = False,
    cache: Annotated[str, typer.Option("--cache", help="warm, or cold: flushed before each call.")] = "warm",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds over all entries.")] = 5,
    time_per_entry: Annotated[
        float, typer.Option("--time-per-entry", min=0.001, help="Seconds of timing per entry.")
    ] = 0.2,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Total time, such as 90s, 20m or 1h: all entries coarsely, then refined."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted build, or add entries.")] = False,
    settings: SetOption = None,
) -> None:
    """Measure every operator of SPACE on a device; an interrupted build keeps its measurements."""
    from dnas.device import resolve_devices
    from dnas.latency import Effort, build_table, make_setup
    from dnas.progress import RichProgress
    from search_spaces import load_space

    chosen = load_space(space, settings or [])
    setups = [
        make_setup(
            found, backend=backend, precision=precision, channels_last=channels_last, threads=threads, cache=cache
        )
        for found in resolve_devices(device, mps=True)
    ]
    inventory = chosen.inventory()
    budget_s = None if budget is None else parse_duration(budget)
    # What was measured, not "auto": on another machine that may be something else.
    place = device if len(setups) > 1 else str(setups[0].device)
    options = {"--out": out, "--device": place, "--backend": setups[0].backend}
    options |= {"--precision": precision, "--threads": threads}
    options |= {"--rounds": rounds, "--time-per-entry": time_per_entry, "--budget": budget}
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    words += ["--channels-last"] * channels_last + ["--cache", cache] * (cache != "warm")
    words += [word for setting in settings or [] for word in ("--set", setting)]
    command = shlex.join(["dnas", "latency", "build", space, *words])
    with RichProgress() as progress:
        table = build_table(
            inventory,
            out,
            setups[0],
            space=chosen.name,
            input_size=chosen.input_size,
            effort=Effort(rounds=rounds, time_per_entry=time_per_entry),
            resume=resume,
            budget_s=budget_s,
            command=command,
            progress=progress,
            workers=setups if len(setups) > 1 else (),
        )
    summary = table.summary()
    note(f"{out}: {len(table)} operators of {chosen.name} on {summary['device']}")


@app.command()
def check(
    table: TableArgument,
    space: SpaceArgument,
    networks: Annotated[int, typer.Option("--networks", min=0, help="Number of sampled networks to measure.")] = 30,
    network: Annotated[
        list[Path] | None,
        typer.Option("--network", metavar="ARCHITECTURE", help="Also measure this derived network; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds over all networks.")] = 5,
    time_per_network: Annotated[
        float, typer.Option("--time-per-network", min=0.01, help="Seconds of timing per network.")
    ] = 0.5,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Measure all networks twice, to estimate the noise of the machine.")
    ] = False,
    fit: Annotated[
        int, typer.Option("--fit", min=0, help="Also report a correction, fitted on this number of other networks.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed for sampling the networks.")] = 0,
    figure: FigureOption = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Accept a table of another device or input size.")
    ] = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure whole networks of SPACE, from fast to slow, and compare with the predictions of the table."""
    from dnas.latency import Effort, LatencyTable
    from dnas.progress import RichProgress
    from dnas.workflows.checking import check_table
    from search_spaces import load_space

    loaded = LatencyTable.load(table)
    chosen = load_space(space, settings or [])
    derived = _architectures(network or [])
    effort = Effort(rounds=rounds, time_per_entry=time_per_network)
    with RichProgress() as progress:
        result = check_table(
            loaded,
            chosen,
            networks,
            derived=derived,
            repeat=repeat,
            fit=fit,
            seed=seed,
            effort=effort,
            allow_mismatch=allow_mismatch,
            progress=progress,
        )
    if figure is not None:
        result.save_figure(figure)
    if as_json:
        summary = loaded.summary()
        described = ("device", "backend", "precision", "input_size", "threads", "date")
        about = {"space": chosen.name, **{name: summary[name] for name in described}}
        print_json({**result.to_mapping(), "table": about})
        return
    for line in result.lines():
        print(line)


def _architectures(paths: list[Path]) -> dict[str, Architecture]:
    """Architectures by the stem of their file, or by its path if several files have the same stem."""
    from derive import Architecture

    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): Architecture.load(path) for path in paths}
