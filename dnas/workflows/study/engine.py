"""What an engine is: something that runs a graph of jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dnas.workflows.study.graph import Job
from dnas.workflows.study.process import failure


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the exit status of its last attempt, and for a failure what to tell the user."""

    status: int
    message: str = ""


Report = Callable[[Job, Outcome], None]
"""Called in the main thread when a job has ended."""

Runner = Sequence[str]
"""The command that runs one job, without the job's folder."""


class Engine(Protocol):
    """Runs jobs in the order of their dependencies."""

    def run(self, jobs: Sequence[Job], study: Path, runner: Runner, report: Report) -> bool:
        """Run the jobs, whose folders in that of the study are prepared; jobs outside of ``jobs`` are done.

        A job that died is started again as often as it allows. Jobs that wait for a failed one are not run. Returns
        whether it came to the end, rather than being stopped by the user.
        """


def outcome_of(folder: Path, status: int) -> Outcome:
    """The outcome of the job in ``folder``, whose last attempt ended with ``status``."""
    return Outcome(0) if status == 0 else Outcome(status, failure(folder, status))
