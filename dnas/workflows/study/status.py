"""The state of a study, from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.json_lines import read_lines
from dnas.workflows.study.config import StudyConfig, load_study
from dnas.workflows.study.graph import Job, base_values, plan
from dnas.workflows.study.job import INTERRUPTED, attempts, is_done, is_running, last_line
from dnas.workflows.study.trials import read_trials

STUDY_FILE = "study.yaml"


@dataclass(frozen=True)
class JobState:
    """State of a job: ``done``, ``running``, ``failed``, ``stopped`` (its process ended before it was done),
    ``ready`` or ``waiting`` (for other jobs).

    seconds: time of all finished attempts. epochs: finished epochs of a search or a training. message: the last line
    of a failed job.
    """

    job: Job
    state: str
    attempts: int = 0
    seconds: float = 0.0
    epochs: int | None = None
    message: str = ""

    def to_mapping(self) -> dict[str, Any]:
        """The state as plain values for JSON."""
        return {
            "job": self.job.name,
            "state": self.state,
            "attempts": self.attempts,
            "seconds": round(self.seconds, 1),
            "epochs": self.epochs,
            "message": self.message,
            "values": dict(self.job.values),
        }


def open_study(folder: Path) -> tuple[StudyConfig, list[Job]]:
    """The study in a folder, and its jobs; :class:`UserError` if there is none."""
    if not (folder / STUDY_FILE).is_file():
        raise UserError(f"{folder}: no study there ({STUDY_FILE} is missing); expected the --out of dnas study")
    study = load_study(folder / STUDY_FILE)
    return study, plan(study, base_values(study.base, folder), read_trials(folder))


def states(jobs: Sequence[Job], study: Path) -> list[JobState]:
    """The states of the jobs of the study in the folder ``study``."""
    done = {job.name for job in jobs if is_done(job.folder(study))}
    return [_state(job, study, done) for job in jobs]


def _state(job: Job, study: Path, done: set[str]) -> JobState:
    folder = job.folder(study)
    tried = attempts(folder)
    ended = [record for record in tried if "ended" in record]
    count, seconds = sum("started" in record for record in tried), sum(record["seconds"] for record in ended)
    message = ""
    if job.name in done:
        state = "done"
    elif not tried:
        state = "ready" if done.issuperset(job.after) else "waiting"
    elif is_running(folder):
        state = "running"
    elif tried[-1].get("status", INTERRUPTED) not in (0, INTERRUPTED):
        state, message = "failed", last_line(folder)
    else:
        state = "stopped"
    return JobState(job, state, count, seconds, _epochs(folder), message)


def _epochs(folder: Path) -> int | None:
    records = [line.record for line in read_lines(folder / "log.jsonl", "log of a run") if line.record]
    finished = [int(record["epoch"]) + 1 for record in records if record.get("kind") == "epoch"]
    return max(finished) if finished else None
