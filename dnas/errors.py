"""The exceptions and the warning that are meant for the user."""

from __future__ import annotations

import signal

from dnas.text import printable, shortened

_LONGEST = 2000


class UserError(Exception):
    """A mistake that the user can correct: a wrong path, an unknown key, a broken file.

    The message is one line that says what was given, what was expected and what to do. The command line prints it on
    standard error and ends with status 2; library callers catch it like any exception. Control characters, which names
    and values from files can contain, are shown as escapes, and the middle of a very long message is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(" ".join(message.split())), _LONGEST))


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work; the message says how far it got and how to go on.

    ``number`` is the signal; the command line ends with status 128 + ``number``.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = int(number)


class OldFormatWarning(UserWarning):
    """A file or option in the format of an earlier version; the message names the current one."""
