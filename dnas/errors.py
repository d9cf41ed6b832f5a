"""The exception and the warning that are meant for the user."""


class UserError(Exception):
    """A mistake that the user can correct: a wrong path, an unknown key, a broken file.

    The message is one line that says what was given, what was expected and what to do. The command line prints it on
    standard error and ends with status 2; library callers catch it like any exception.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class OldFormatWarning(UserWarning):
    """A file or option in the format of an earlier version; the message names the current one."""
