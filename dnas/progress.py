"""Progress reports of long work: searching, retraining, evaluating, measuring."""

from __future__ import annotations

import datetime
import sys
from types import TracebackType
from typing import Protocol, TextIO, cast

import rich.progress
from rich.console import Console
from rich.text import Text
from typing_extensions import Self

from dnas.terminal import Output
from dnas.text import printable


class Progress(Protocol):
    """One progress bar at a time, and lines that stay."""

    def begin(self, description: str, total: int | None = None) -> None:
        """Replace the bar by a new one of ``total`` steps; None if their number is not known yet."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Move the bar by ``steps`` and show figures such as ``loss=0.4`` beside it."""

    def update(self, done: int, total: int, *, item: str = "", left_s: float | None = None) -> None:
        """Set the bar to ``done`` of ``total`` steps, for work that revises its total.

        ``item`` names what was done last. ``left_s`` is an estimate of the seconds left; None leaves it to the bar.
        """

    def message(self, text: str) -> None:
        """Print a line that stays."""


class NoProgress:
    """Reports nothing."""

    def begin(self, description: str, total: int | None = None) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Do nothing."""

    def update(self, done: int, total: int, *, item: str = "", left_s: float | None = None) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""


class RichProgress:
    """A bar on standard error, for use in ``with``. Without a terminal only the messages are printed.

    If standard error is lost (closed, full, nobody reads), the work goes on without messages.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=_standard_error())
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            _TimeLeft(),
            rich.progress.TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, description: str, total: int | None = None) -> None:
        """Replace the bar by a new one of ``total`` steps; None if their number is not known yet."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(printable(description), total=total, text="", left_s=None)

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Move the bar by ``steps`` and show figures such as ``loss=0.4`` beside it."""
        if self._task is not None:
            text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
            self._bar.update(self._task, advance=steps, text=text)

    def update(self, done: int, total: int, *, item: str = "", left_s: float | None = None) -> None:
        """Set the bar to ``done`` of ``total`` steps; see :meth:`Progress.update`."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, text=printable(item), left_s=left_s)

    def message(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._bar.refresh()
        self._console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


def _standard_error() -> TextIO:
    """Standard error with the control characters of the bar."""
    stream = sys.stderr
    return cast("TextIO", stream.as_raw() if isinstance(stream, Output) else Output(stream, optional=True, raw=True))


class _TimeLeft(rich.progress.TimeRemainingColumn):
    """The time left: the caller's estimate if there is one, else rich's own."""

    def render(self, task: rich.progress.Task) -> Text:
        """The column of one bar."""
        left_s = task.fields["left_s"]
        if left_s is None:
            return super().render(task)
        return Text(str(datetime.timedelta(seconds=round(left_s))), style="progress.remaining")
