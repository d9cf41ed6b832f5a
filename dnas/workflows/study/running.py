"""Running a study: planning, resuming, handing over to an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import filelock

from dnas.config import to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml, write_text
from dnas.progress import NoProgress, Progress
from dnas.runs import Interrupted
from dnas.workflows.study.config import StudyConfig, check_names
from dnas.workflows.study.engine import Engine, Outcome
from dnas.workflows.study.graph import Job, base_values, plan
from dnas.workflows.study.job import INTERRUPTED, is_done, prepare
from dnas.workflows.study.local import LocalEngine, job_command
from dnas.workflows.study.status import STUDY_FILE
from dnas.workflows.study.trials import run_trials


def run_study(
    study: StudyConfig,
    out: Path,
    *,
    engine: Engine | None = None,
    runner: Sequence[str] | None = None,
    progress: Progress | None = None,
    finished: Callable[[Job], None] | None = None,
) -> list[Job]:
    """Run all jobs of a study that are not done yet, in folders below ``out``; returns all jobs.

    A study that was stopped or killed continues; values and jobs may be added to it. ``engine`` runs the jobs, by
    default as processes of this machine; ``runner`` is the command for one job. ``finished`` is called for each job
    that ends with success now. Raises :class:`UserError` if a job failed, after all others that do not depend on it,
    and :class:`~dnas.runs.Interrupted` after Ctrl-C.
    """
    out, progress = out.resolve(), progress or NoProgress()
    check_names(study, str(out))
    chosen, command = engine or LocalEngine(), runner or job_command()

    def run(jobs: Sequence[Job]) -> list[str]:
        for job in jobs:
            prepare(job, out)
        write_text(out / STUDY_FILE, dump_yaml(to_mapping(study)))
        waiting = [job for job in jobs if not is_done(job.folder(out))]
        return _run(waiting, len(jobs), out, chosen, command, progress, finished)

    with _only_one(out):
        jobs = plan(study, base_values(study.base, out))
        if study.optimise is not None:
            jobs, failed = run_trials(study, out, run)
        else:
            failed = run(jobs)
    if failed:
        blocked = sum(not is_done(job.folder(out)) for job in jobs) - len(failed)
        waits = f"; {blocked} jobs wait for them" if blocked and study.optimise is None else ""
        raise UserError(f"{len(failed)} of {len(jobs)} jobs failed{waits}. First: {failed[0]}")
    return jobs


def _run(
    waiting: list[Job],
    total: int,
    out: Path,
    engine: Engine,
    runner: Sequence[str],
    progress: Progress,
    finished: Callable[[Job], None] | None,
) -> list[str]:
    """Run the jobs that wait; returns the messages of those that failed."""
    failed: list[str] = []
    done = total - len(waiting)
    progress.begin("jobs", total)
    progress.advance(done)

    def report(job: Job, outcome: Outcome) -> None:
        nonlocal done
        if outcome.status == 0:
            done += 1
            progress.advance()
            progress.message(f"{done}/{total} {job.name}")
            if finished is not None:
                finished(job)
        elif outcome.status != INTERRUPTED:
            failed.append(f"{job.name}: {outcome.message}")
            progress.message(f"failed: {failed[-1]}")

    ended = engine.run(waiting, out, runner, report) if waiting else True
    if not ended:
        raise Interrupted(f"stopped: {done} of {total} jobs are done; the same command continues the study")
    return failed


def _only_one(out: Path) -> contextlib.AbstractContextManager[object]:
    """The lock of the study's folder, for use in ``with``; :class:`UserError` if another process holds it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(out / ".study.lock").acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{out}: another process runs this study; wait for it, see dnas study status {out}") from None
    except OSError as error:
        raise UserError(f"{out}: cannot write a study there: {error.strerror or error}") from None
