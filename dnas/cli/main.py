"""The command-line application, and the handling of errors.

Commands import their dependencies when they run: ``dnas --help`` does not load torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
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
)
from dnas.errors import OldFormatWarning, UserError
from dnas.library_settings import missing_settings

app = typer.Typer(
    name="dnas",
    help="Search real-time segmentation networks by gradient descent, for latencies measured on your own device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(latency.app, name="latency")
app.add_typer(data.app, name="data")
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

    0 on success; 2 for a user error, with one line on standard error; 130 after Ctrl-C, with how to resume.
    """
    os.environ.update(missing_settings(os.environ))  # before a command loads torch
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _notes_for_old_formats():
            status: Any = app(given, standalone_mode=False)
    except UserError as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(str(error) or "interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        # typer's exception for wrong options and arguments; its class is private and depends on the release.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        text = describe()
        return _fail(text, 2) if text else 2
    return status if isinstance(status, int) else 0


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
    print(f"dnas: {' '.join(message.split())}", file=sys.stderr)
    return status
