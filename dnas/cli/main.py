"""The command-line application, and the handling of errors.

Commands import their dependencies when they run: ``dnas --help`` does not load torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

import dnas
from dnas.cli import (
    data,
    demo,
    derivation,
    evaluation,
    exporting,
    latency,
    networks,
    prediction,
    searching,
    sharing,
    studying,
    submission,
    whole_way,
)
from dnas.cli.failures import describe
from dnas.errors import Interrupted, OldFormatWarning
from dnas.library_settings import missing_settings
from dnas.terminal import safe_streams

app = typer.Typer(
    name="dnas",
    help="Search real-time segmentation networks for latencies measured on your own device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(latency.app, name="latency")
app.add_typer(data.app, name="data")
app.command("init")(whole_way.init)
app.command("auto")(whole_way.auto)
app.add_typer(studying.app, name="study")
app.command("demo")(demo.demo)
app.command("search")(searching.search)
app.command("derive")(derivation.derive)
app.command("retrain")(searching.retrain)
app.command("report")(searching.report)
app.command("evaluate")(evaluation.evaluate)
app.command("submission")(submission.submission)
app.command("share")(sharing.share)
app.command("predict")(prediction.predict)
app.command("export")(exporting.export)
app.command("benchmark")(networks.benchmark)
app.command("networks")(networks.networks)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(dnas.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 on success. 2 for a user error, and for what the system refuses or does not have (files, memory, room on a disk),
    with one line on standard error. 130 after Ctrl-C and 143 after SIGTERM, with how to resume.
    """
    os.environ.update(missing_settings(os.environ))  # before a command loads torch
    given = list(sys.argv[1:] if arguments is None else arguments)
    with safe_streams(), _terminated_by_interrupt():
        try:
            with _notes_for_old_formats():
                status = _run(given)
                sys.stdout.flush()
            return status
        except BrokenPipeError:
            return 0  # nobody reads the rest, as with `dnas networks | head`
        except BaseException as error:
            found = describe(error)
            if found is None:
                raise
            return _fail(*found)


def _run(given: list[str]) -> int:
    """Run the command; typer's own ``main`` would turn the message of an interruption into a bare status."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("dnas", given) as context:
            status: Any = command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    return status if isinstance(status, int) else 0


@contextlib.contextmanager
def _terminated_by_interrupt() -> Iterator[None]:
    """SIGTERM raises :class:`Interrupted`, so that it leaves as much behind, and says as much, as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def handle(number: int, frame: object) -> None:
        raise Interrupted("ended by SIGTERM", number)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _notes_for_old_formats() -> Iterator[None]:
    """Print warnings about old formats as one-line notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", OldFormatWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, OldFormatWarning):
                print(f"dnas: note: {message}", file=sys.stderr)
            else:
                show(message, category, *place)

        warnings.showwarning = note  # type: ignore[assignment]
        yield


def _fail(message: str, status: int) -> int:
    if message:
        print(f"dnas: {' '.join(message.split())}", file=sys.stderr)
    return status
