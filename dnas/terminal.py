"""Standard output and standard error as they are in practice: closed, full, without Unicode, fed with odd names."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from dnas.errors import UserError
from dnas.text import printable


class Output(io.TextIOBase):
    """A text stream around standard output or standard error.

    Control characters except line breaks and tabs are written as escapes, unless ``raw``; characters that the encoding
    does not have are replaced. If the stream is ``optional``, its loss (closed, full, nobody reads) is ignored, and
    nothing more is written to it. Otherwise it raises :class:`BrokenPipeError` or :class:`UserError`.
    """

    def __init__(self, stream: TextIO | None, *, optional: bool, raw: bool = False) -> None:
        self._stream, self._optional, self._raw = stream, optional, raw

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The file descriptor of the stream; :class:`OSError` if it has none."""
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    def as_raw(self) -> Output:
        """The same stream, optional, for text whose control characters are meant."""
        return Output(self._stream, optional=True, raw=True)

    def write(self, text: str) -> int:
        """Write ``text``; returns its length. :class:`TypeError` for bytes, by which click knows text streams."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._stream is not None:
            shown = text if self._raw else "".join(map(_shown, text.splitlines(keepends=True)))
            shown = shown.encode(self.encoding, "backslashreplace").decode(self.encoding)
            with self._losses():
                self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if self._stream is not None:
            with self._losses():
                self._stream.flush()

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            lost, self._stream = self._stream, None
            _silence(lost)
            if self._optional:
                return
            if isinstance(error, BrokenPipeError):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"standard output: cannot write: {reason or error}") from None


def _shown(line: str) -> str:
    """A line, or the part of one up to a character that Python takes for a line break."""
    end = "\n" if line.endswith("\n") else ""
    return "\t".join(printable(part) for part in line.removesuffix("\n").split("\t")) + end


def _silence(stream: Any) -> None:
    """Let the process's standard stream write nowhere, so that Python's flush at the exit does not fail."""
    if stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Standard output and standard error as :class:`Output` while the block runs; the latter is optional."""
    for descriptor in (0, 1, 2):
        _open_if_closed(descriptor)
    output, errors = Output(sys.stdout, optional=False), Output(sys.stderr, optional=True)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield


def _open_if_closed(descriptor: int) -> None:
    """Otherwise the next file that is opened, such as a log, would be a standard stream to libraries."""
    try:
        os.fstat(descriptor)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
