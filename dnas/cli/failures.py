"""What went wrong, in one line and a status, for errors that are no fault of the program."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import typer

from dnas.errors import Interrupted, UserError
from dnas.text import shortened

_NO_MEMORY = re.compile(
    r"can't allocate|allocate memory|out of memory|not enough memory|bad_alloc"
    r"|calculation overflowed|multiplication overflow|[Oo]verflow when unpacking|[Oo]verflow",
)
_LONGEST = 300


def describe(error: BaseException) -> tuple[str, int] | None:
    """The message and the exit status for an error; None for one that is a mistake of the program."""
    for found in _chain(error):
        # Some libraries turn Ctrl-C into an error of their own.
        if isinstance(found, KeyboardInterrupt):
            number = found.number if isinstance(found, Interrupted) else signal.SIGINT
            return str(found) or "interrupted", 128 + number
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, typer.Abort):
        return "interrupted", 130
    if isinstance(error, OSError):
        return _of_system(error), 2
    if isinstance(error, MemoryError):
        return _no_memory(error), 2
    if isinstance(error, (RuntimeError, OverflowError)) and _NO_MEMORY.search(str(error)):
        return _no_memory(error), 2
    # typer's exception for wrong options and arguments; its class is private and depends on the release.
    format_message = getattr(error, "format_message", None)
    return None if format_message is None else (str(format_message()), 2)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it hides."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_system(error: OSError) -> str:
    where = "" if error.filename is None else f"{_text(error.filename)}: "
    return f"{where}{error.strerror or _first_line(error)}"


def _no_memory(error: BaseException) -> str:
    return (
        f"not enough memory, or a size beyond all memory ({_first_line(error) or 'the system has no more'}); "
        "use smaller images, batches or networks"
    )


def _first_line(error: BaseException) -> str:
    return shortened((str(error).strip().splitlines() or [""])[0], _LONGEST)


def _text(name: object) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)
