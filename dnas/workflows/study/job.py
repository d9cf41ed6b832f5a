"""One job of a study: its files, and running it exactly once, whichever engine starts it and however often."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from dnas.errors import UserError
from dnas.files import read_json, write_json
from dnas.json_lines import append_record, read_lines, repair
from dnas.workflows.study.commands import PRINTED
from dnas.workflows.study.references import STUDY

if TYPE_CHECKING:
    from dnas.workflows.study.graph import Job

JOB = "job.json"
DONE = "done.json"
ATTEMPTS = "attempts.jsonl"
OUTPUT = "output.txt"
STOP = "stop"
"""A file of this name in its folder stops a job as Ctrl-C does, and keeps it from being started."""
_LOCK = ".job.lock"
_POLL_S = 0.5

INTERRUPTED = 130
"""Exit status of a command that the user stopped."""
USER_ERROR = 2
"""Exit status of a command after a mistake of the user; starting it again would not help."""


def prepare(job: Job, study: Path) -> Path:
    """Write the job into its folder, and return the folder.

    Raises :class:`UserError` if a job of this name was begun with another command line.
    """
    folder = job.folder(study)
    path = folder / JOB
    if path.exists() and (folder / ATTEMPTS).exists():
        before = read_json(path, "job of a study")["words"]
        if before != list(job.words):
            pairs = zip(before, job.words, strict=False)
            changed = next((f"{old!r} is now {new!r}" for old, new in pairs if old != new), "more or fewer options")
            raise UserError(
                f"{folder}: was begun with another command line: {changed}; "
                "give the study its old settings, remove this folder, or give another --out"
            )
    write_json(path, dataclasses.asdict(job))
    return folder


def run_job(folder: Path, execute: Callable[[Sequence[str]], int]) -> int:
    """Run the job in ``folder`` unless it is done, and return the exit status of its command.

    ``execute`` runs a command line of dnas. What it prints goes to files in the folder. If another process runs the
    job, this waits for it.
    """
    job = read_json(folder / JOB, "job of a study")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background processes ignore it, and so do their children; but by it a job is stopped.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with filelock.FileLock(folder / _LOCK):
        if (folder / DONE).exists():
            return 0
        if (folder / STOP).exists():
            return INTERRUPTED
        repair(folder / ATTEMPTS, "attempts of a job")
        started, processor = time.time(), _processor_seconds()
        append_record(folder / ATTEMPTS, {"started": started, "host": socket.gethostname(), "process": os.getpid()})
        status = 1
        try:
            with _output_to(folder), _stopping_on_request(folder):
                status = _status(execute, _resolved(job["words"], folder))
        finally:
            ended = {
                "ended": time.time(),
                "seconds": round(time.time() - started, 3),
                "cpu_seconds": round(_processor_seconds() - processor, 3),
                "status": status,
            }
            append_record(folder / ATTEMPTS, ended)
        if status == 0:
            write_json(folder / DONE, {"attempts": sum("started" in one for one in attempts(folder)), **ended})
        return status


def is_done(folder: Path) -> bool:
    """Whether the job has ended with success."""
    return (folder / DONE).exists()


def attempts(folder: Path) -> list[dict[str, Any]]:
    """The records of all attempts: one when an attempt started, one when it ended; one that died has no end."""
    return [line.record for line in read_lines(folder / ATTEMPTS, "attempts of a job") if line.record is not None]


def cpu_seconds(folder: Path) -> float | None:
    """Processor time of a job in seconds, over all attempts; None if an attempt died, whose time is not known."""
    records = attempts(folder)
    ended = [record for record in records if "ended" in record]
    if len(ended) < sum("started" in record for record in records):
        return None
    return float(sum(record["cpu_seconds"] for record in ended))


def is_running(folder: Path) -> bool:
    """Whether a process of this machine runs the job."""
    if not (folder / _LOCK).exists():
        return False
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def result_of(folder: Path) -> dict[str, Any]:
    """What the command of a finished job printed as JSON; {} if it prints none."""
    path = folder / PRINTED
    if not path.exists() or not path.stat().st_size:
        return {}
    found = read_json(path, "result of a job")
    return found if isinstance(found, dict) else {}


def last_line(folder: Path) -> str:
    """The last line that the command printed for the user."""
    path = folder / OUTPUT
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def end_with_parent() -> None:
    """End this process at once when its standard input is closed, as happens when the process that started it dies.

    A job whose study was killed would otherwise go on unseen. Its files are atomic, so nothing is lost but time.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(137)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


def _status(execute: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    try:
        return execute(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _stopping_on_request(folder: Path) -> Iterator[None]:
    """Interrupt this process once there is a file :data:`STOP` in the folder."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            if (folder / STOP).exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, name="stop on request", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def several_processes(folder: Path, words: Sequence[str]) -> list[str] | None:
    """The command of torchrun for a search or a training on several GPUs, one process each; None for other jobs."""
    job = read_json(folder / JOB, "job of a study")
    gpus = job["gpus"] or 0
    if gpus < 2 or job["command"] not in ("search", "retrain"):
        return None
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    return [*launcher, "-m", "dnas", *words]


def _processor_seconds() -> float:
    """Processor time of this process and of its children that have ended, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _resolved(words: Sequence[str], folder: Path) -> list[str]:
    """The command line with the study's folder in the place of ``$study``."""
    study = str(folder.resolve().parent.parent)
    return [word.replace(f"${STUDY}", study) for word in words]


@contextlib.contextmanager
def _output_to(folder: Path) -> Iterator[None]:
    """Let standard output go to the file of the result, and standard error to that of the messages."""
    saved = [os.dup(1), os.dup(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for number, name, mode in ((1, PRINTED, os.O_TRUNC), (2, OUTPUT, os.O_APPEND)):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | mode, 0o644)
            os.dup2(file, number)
            os.close(file)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in zip((1, 2), saved, strict=True):
            os.dup2(file, number)
            os.close(file)


def values_of(folder: Path) -> Mapping[str, str]:
    """The labels of the varied values that a job depends on."""
    values: dict[str, str] = read_json(folder / JOB, "job of a study")["values"]
    return values
