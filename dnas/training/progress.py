"""What long work tells while it runs; by default nothing."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import rich.progress
from rich.console import Console
from typing_extensions import Self


class Progress(Protocol):
    """One bar at a time, and lines that stay."""

    def begin(self, description: str, total: int) -> None:
        """Replace the bar by one of ``total`` steps."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Move the bar and show figures such as ``loss=0.4`` beside it."""

    def message(self, text: str) -> None:
        """Print a line that stays."""


class NoProgress:
    """Tells nothing."""

    def begin(self, description: str, total: int) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""


class RichProgress:
    """A bar on the terminal's standard error; use it in ``with``. Where there is no terminal only messages appear."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
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

    def begin(self, description: str, total: int) -> None:
        """Replace the bar by one of ``total`` steps."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(description, total=total, figures="")

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Move the bar and show figures such as ``loss=0.4`` beside it."""
        if self._task is not None:
            text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
            self._bar.update(self._task, advance=steps, figures=text)

    def message(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._bar.refresh()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
