"""The processes that read batches: how they start, and what their death means."""

from __future__ import annotations

import contextlib
import multiprocessing.queues
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dnas.errors import UserError

_SHARED_MEMORY = Path("/dev/shm")
_CANNOT_SEND = 74
"""Exit status of a worker that could not send a batch (EX_IOERR)."""


class WorkerDied(UserError):
    """A data worker ended before its work was done; ``terminated``: by SIGTERM, so the user or the system wanted it."""

    def __init__(self, message: str, *, terminated: bool = False) -> None:
        super().__init__(message)
        self.terminated = terminated


def start_worker(worker: int) -> None:
    """Initialise a worker process, for ``worker_init_fn`` of a loader."""
    # Ctrl-C reaches all processes of the terminal, but the main process still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler inherited from the main process would keep SIGTERM from ending the worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # By default a batch that cannot be sent is dropped with a traceback, and the main process waits for it for ever.
    queue = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]


def _cannot_send(error: BaseException, batch: object) -> None:
    os._exit(_CANNOT_SEND)


@contextlib.contextmanager
def no_child_signals() -> Iterator[None]:
    """Restore the handler of SIGCHLD that a block replaces.

    torch's raises the error about a dead worker wherever the main process is. Without it the error is raised where the
    next batch is awaited, within seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)


def worker_died(error: Exception, loader: DataLoader[Any]) -> WorkerDied | None:
    """What torch's ``error`` says about dead workers of ``loader``; None if it is another error."""
    text = str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and not text.startswith(("DataLoader worker", "Too many open files")):
        return None
    workers = getattr(getattr(loader, "_iterator", None), "_workers", ())
    for worker in workers:
        worker.join(0.2)  # a connection ends before its process does
    codes = {code for worker in workers if (code := worker.exitcode)}
    if -signal.SIGTERM in codes:
        return WorkerDied("a data worker was ended by SIGTERM", terminated=True)
    names = [signal.Signals(-code).name if code < 0 else f"status {code}" for code in sorted(codes)]
    how = f"a data worker ended with {' and '.join(names)}" if names else f"the data workers failed ({text[:80]})"
    if -signal.SIGKILL in codes:
        how += ", probably for want of memory"
    elif _CANNOT_SEND in codes:
        how += ", as it could not send a batch"
    return WorkerDied(f"{how}; {_advice()}")


def _advice() -> str:
    """The likely cause of a worker's death, and what to do."""
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        free = None
    room = "" if free is None else f" (/dev/shm has {free / 2**20:.0f} MiB free)"
    return (
        f"likely causes are too little shared memory{room}, memory, open files or a limit on the size of files: "
        "use fewer workers or none (workers=0), smaller batches, or raise the limit (docker run --shm-size, ulimit)"
    )
