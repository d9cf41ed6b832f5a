"""Starting the process of one job, for engines that run on other machines; this module imports little."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.workflows.study.job import INTERRUPTED, OUTPUT, USER_ERROR, attempts, is_done, last_line


class JobDied(RuntimeError):
    """The process of a job ended before the job was done; another attempt may succeed."""


class JobRefused(RuntimeError):
    """A job ended by a mistake or by the wish of the user; another attempt would not help."""


def run_process(command: Sequence[str], folder: str, cores: int, working: str) -> None:
    """Run the job in ``folder`` by ``command``, with that number of threads, in the folder ``working``.

    Raises :class:`JobDied` or :class:`JobRefused` if it is not done afterwards. The process ends with this one.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    words = [*command, folder]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, env=environment, cwd=working, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        assert process.stdin is not None
        process.stdin.close()
    if status:
        raise (JobRefused if status in (USER_ERROR, INTERRUPTED) else JobDied)(failure(Path(folder), status))


@dataclass(frozen=True)
class Repeated:
    """One job as submitit runs it, with its retries; after a preemption it is queued again, and resumes."""

    command: tuple[str, ...]
    folder: str
    cores: int
    working: str
    retries: int

    def __call__(self) -> None:
        """Run the job, and again if it died."""
        for _ in range(self.retries):
            with contextlib.suppress(JobDied):
                return run_process(self.command, self.folder, self.cores, self.working)
        return run_process(self.command, self.folder, self.cores, self.working)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """What to queue in place of a job that was preempted: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args, **kwargs)


def run_task(command: Sequence[str], folder: str, cores: int, working: str, *after: None) -> None:
    """One job as Ray runs it; ``after`` are the results of the tasks it waits for, none of which failed."""
    run_process(command, folder, cores, working)


def failure(folder: Path, status: int) -> str:
    """Why a job failed, in one line."""
    count = sum("started" in record for record in attempts(folder))
    died = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    times = f" after {count} attempts" if count > 1 else ""
    return f"{died}{times}: {last_line(folder) or 'no message'} ({folder / OUTPUT})"


def last_status(folder: Path) -> int:
    """The exit status of the last attempt; 137 (killed) if it did not get to its end."""
    if is_done(folder):
        return 0
    tried = attempts(folder)
    return int(tried[-1].get("status", 137)) if tried else 137
