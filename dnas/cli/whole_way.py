"""``dnas init`` and ``dnas auto``: good defaults for the data, the device and the time, and the whole way with them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnas.cli.common import DataSetOption, SeedOption, note, parse_duration
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.workflows.planning import Plan

DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="Preset, YAML file, NAME:DIR, or a folder as it is (dnas data init).")
]
TargetOption = Annotated[
    str, typer.Option("--device", help="Device that latencies are measured on: cpu, cuda, cuda:N.")
]
BackendOption = Annotated[
    str | None,
    typer.Option("--backend", help="Runtime of the latencies; default: onnxruntime on a CPU, cudagraph on a GPU."),
]
BudgetOption = Annotated[
    float | None, typer.Option("--budget-ms", min=0.001, help="Latency of the network; default: a compromise.")
]
TimeOption = Annotated[str, typer.Option("--time", help="Time for everything, such as 30m or 8h.")]
BaseOption = Annotated[
    str | None, typer.Option("--space", help="Preset to begin with; default: by the device that trains.")
]
_RESUMED = ("search", "retrain", "latency")
"""Commands that continue where they were interrupted."""


def init(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="The YAML file to write.")],
    device: TargetOption = "cpu",
    backend: BackendOption = None,
    budget_ms: BudgetOption = None,
    time: TimeOption = "2h",
    space: BaseOption = None,
    seed: SeedOption = 0,
    data_settings: DataSetOption = None,
) -> None:
    """Write a commented search space for DATA, with the commands that lead from it to an exported network."""
    from dnas.workflows.planning import write_plan

    if out.exists():
        raise UserError(f"{out}: exists already; remove it, or give another file")
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: expected the name of a YAML file, such as space.yaml")
    plan = _plan(data, out.parent, device, backend, budget_ms, time, space, seed, data_settings)
    write_plan(plan, out)
    note(f"{out}: written, with the commands of the whole way as comments; dnas auto runs them")


def auto(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder to write, with the result in report.html.")],
    device: TargetOption = "cpu",
    backend: BackendOption = None,
    budget_ms: BudgetOption = None,
    time: TimeOption = "2h",
    space: BaseOption = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where an interrupted call stopped.")] = False,
    data_settings: DataSetOption = None,
) -> None:
    """Go the whole way: check the data, measure the device, search, derive, retrain, export, report.

    Every step is an ordinary command, which is printed, so that one can go on by hand.
    """
    from dnas.workflows.planning import read_progress, save_progress, write_plan

    if resume and (out / "plan.json").exists():
        commands, first = read_progress(out)
    else:
        if out.exists() and (not out.is_dir() or any(out.iterdir())) and not resume:
            raise UserError(f"{out}: already exists; continue it with --resume, or give another folder")
        plan = _plan(data, out, device, backend, budget_ms, time, space, seed, data_settings)
        write_plan(plan, out / "space.yaml")
        commands, first = plan.commands(out), 0
        save_progress(out, commands, first)
        for reason in plan.reasons:
            note(reason)
    for number in range(first, len(commands)):
        if commands[number][0] == "search":
            _fit_budget(out)
        _run(commands[number], number + 1, len(commands), out, resume=resume and number == first)
        save_progress(out, commands, number + 1)
    note(f"done: open {out / 'report.html'}")


def _plan(
    data: str,
    folder: Path,
    device: str,
    backend: str | None,
    budget_ms: float | None,
    time: str,
    space: str | None,
    seed: int,
    data_settings: list[str] | None,
) -> Plan:
    from dnas.data import load_data_config
    from dnas.device import resolve_device
    from dnas.workflows.planning import PlanRequest, make_plan

    seconds = parse_duration(time)
    resolve_device(device)
    if Path(data).is_dir() and not (Path(data) / "data.yaml").is_file():
        described = folder / "data"
        _described(Path(data), described)
        data = str(described / "data.yaml")
    return make_plan(
        PlanRequest(
            data=data,
            config=load_data_config(data, data_settings or []),
            data_settings=tuple(data_settings or ()),
            device=device,
            backend=backend,
            budget_ms=budget_ms,
            time_s=seconds,
            space=space,
            seed=seed,
        )
    )


def _described(source: Path, folder: Path) -> None:
    """Describe a folder as it is, unless that was done before."""
    from dnas.data.discovery import InitOptions, describe_folder

    if not (folder / "data.yaml").exists():
        note(f"$ {shlex.join(['dnas', 'data', 'init', str(source), '--out', str(folder)])}")
        for text in describe_folder(source, folder, InitOptions()).notes:
            note(f"  {text}")


def _fit_budget(folder: Path) -> None:
    """Compare the budget with the table of the whole way, once both are there."""
    from dnas.workflows.planning import fit_budget

    if (folder / "table.json").is_file() and (text := fit_budget(folder / "space.yaml", folder / "table.json")):
        note(text)


def _run(command: list[str], number: int, total: int, folder: Path, *, resume: bool) -> None:
    """Run one command in this process; a failure ends with its message and status."""
    from dnas.cli.main import main

    words = [*command, *(["--resume"] if resume and command[0] in _RESUMED else [])]
    note(f"[{number}/{total}] $ {shlex.join(['dnas', *words])}")
    status = main(words)
    if status:
        note(
            f"stopped at step {number} of {total}; mend it (the space: {folder / 'space.yaml'}), then go on with "
            f"dnas auto ... --out {folder} --resume"
        )
        raise typer.Exit(status)
