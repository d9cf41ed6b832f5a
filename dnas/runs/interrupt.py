"""Ctrl-C that lets the current step finish."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from typing_extensions import Self

from dnas.errors import Interrupted


class Interrupt:
    """Context manager: the first SIGINT or SIGTERM only sets :attr:`requested`, the second raises :class:`Interrupted`.

    A loop inside checks ``requested`` after every step and ends itself by :class:`Interrupted`, which gets the number
    of the signal. The previous handlers are restored at the end. Outside the main thread, where Python allows no
    handlers, it does nothing.
    """

    def __init__(self, notify: Callable[[str], object] | None = None) -> None:
        """``notify`` is called with one line for the user at the first signal."""
        self.requested = False
        self.number: int = signal.SIGINT
        self._notify = notify
        self._process = os.getpid()
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                # None: the handler was not set by Python, which then cannot restore it.
                if previous is not None:
                    self._previous[number] = previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Interrupted) and self.requested:
            error.number = self.number
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]  # what getsignal returned is what signal takes
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A data worker, forked from this process: Ctrl-C reaches it too, but its parent ends it.
            if number == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.requested:
            raise Interrupted("stopped at once; finished epochs are kept, continue with --resume", number)
        self.requested, self.number = True, number
        if self._notify is not None:
            self._notify("stopping after this step; once more to stop at once")
