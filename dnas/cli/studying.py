"""``dnas study``: many runs from one file, and their state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dnas.cli.common import JsonOption, note, print_json

if TYPE_CHECKING:
    from dnas.workflows.study.status import JobState


class _StudyGroup(TyperGroup):
    """``dnas study FILE`` is short for ``dnas study run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert ``run`` unless a command or --help comes first."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_StudyGroup,
    help="Studies: many runs from one file. dnas study STUDY.yaml --out DIR runs it, or continues it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What varies, and the jobs.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the study.")],
    on: Annotated[str, typer.Option("--on", metavar="local|ray[:ADDRESS]|slurm", help="Where the jobs run.")] = "local",
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="Cores to use locally; default: all.")] = None,
    on_settings: Annotated[
        list[str] | None,
        typer.Option("--on-set", metavar="KEY=VALUE", help="Option of submitit, such as timeout_min=600; repeatable."),
    ] = None,
) -> None:
    """Run the jobs of a study that are not done yet; the same command continues a stopped study."""
    from dnas.config import apply_overrides
    from dnas.progress import RichProgress
    from dnas.workflows.study.config import load_study
    from dnas.workflows.study.engines import find_engine
    from dnas.workflows.study.running import run_study

    loaded = load_study(study)
    engine = find_engine(on, cores=cores, options=apply_overrides({}, on_settings or []))
    with RichProgress() as progress:
        jobs = run_study(loaded, out, engine=engine, progress=progress)
    note(f"{out}: all {len(jobs)} jobs are done. Next: dnas report {out}")


@app.command()
def status(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The folder of a study.")],
    as_json: JsonOption = False,
) -> None:
    """Print the state of every job of a study."""
    from dnas.workflows.study.status import open_study, states

    found = states(open_study(study)[1], study.resolve())
    counts: dict[str, int] = {}
    for state in found:
        counts[state.state] = counts.get(state.state, 0) + 1
    hours = sum(state.seconds * state.job.cores for state in found) / 3600
    if as_json:
        print_json({"counts": counts, "core_hours": hours, "jobs": [state.to_mapping() for state in found]})
        return
    width = max(len(state.job.name) for state in found)
    for state in found:
        print(f"{state.job.name:<{width}}  {_details(state)}")
    print(f"{', '.join(f'{number} {name}' for name, number in counts.items())}; {hours:.2f} core hours")


@app.command(hidden=True)
def job(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a job.")]) -> int:
    """Run one job of a study; the engines call this."""
    from dnas.cli.main import main
    from dnas.workflows.study.job import end_with_parent, run_job, several_processes

    def execute(words: Sequence[str]) -> int:
        sys.argv = ["dnas", *words]  # which the run folder records
        several = several_processes(folder, words)
        return main(words) if several is None else subprocess.run(several).returncode

    end_with_parent()
    return run_job(folder, execute)


def _details(state: JobState) -> str:
    parts = [state.state]
    if state.seconds:
        parts.append(f"{state.seconds:.0f} s")
    if state.epochs is not None:
        parts.append(f"{state.epochs} epochs")
    if state.attempts > 1:
        parts.append(f"{state.attempts} attempts")
    return ", ".join(parts) + (f": {state.message}" if state.message else "")
