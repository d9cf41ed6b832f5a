"""Signals during searches and retrainings, whose data workers receive them too."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from dnas.data.workers import WorkerDied
from dnas.errors import Interrupted
from dnas.progress import Progress
from dnas.runs import Interrupt


@contextlib.contextmanager
def interruptible(run: Path, progress: Progress) -> Iterator[Interrupt]:
    """An :class:`Interrupt` for the epochs of a run.

    SIGTERM to a whole group of processes also ends the data workers; their end is then the interruption, no error.
    """
    with Interrupt(progress.message) as interrupt:
        try:
            yield interrupt
        except WorkerDied as error:
            if interrupt.requested or error.terminated:
                number = interrupt.number if interrupt.requested else signal.SIGTERM
                message = f"{run}: stopped, its data workers were ended; continue with --resume"
                raise Interrupted(message, number) from None
            raise
