"""Jobs as processes of this machine, as many at a time as cores and GPUs allow."""

from __future__ import annotations

import concurrent.futures
import contextlib
import graphlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from typing_extensions import Self

from dnas.errors import UserError
from dnas.runs import Interrupt
from dnas.workflows.study.engine import Outcome, Report, Runner, outcome_of
from dnas.workflows.study.graph import Job
from dnas.workflows.study.job import INTERRUPTED, USER_ERROR

_POLL_S = 0.2


class LocalEngine:
    """Runs jobs as processes; each gets its number of threads, and GPUs of its own."""

    def __init__(self, cores: int | None = None, gpus: Sequence[str] | None = None) -> None:
        """``cores``: cores to use, default all. ``gpus``: names as in CUDA_VISIBLE_DEVICES, default all."""
        self.cores = cores or _cores()
        self.gpus = tuple(visible_gpus() if gpus is None else gpus)

    def run(self, jobs: Sequence[Job], study: Path, runner: Runner, report: Report) -> bool:
        """See :class:`~dnas.workflows.study.engine.Engine`."""
        by_name = {job.name: job for job in jobs}
        for job in jobs:
            self._check(job)
        sorter = graphlib.TopologicalSorter({job.name: [one for one in job.after if one in by_name] for job in jobs})
        sorter.prepare()
        ready: list[str] = []
        order = {job.name: number for number, job in enumerate(jobs)}
        running: dict[concurrent.futures.Future[Outcome], tuple[Job, _Share]] = {}
        free = _Share(self.cores, self.gpus)
        with (
            Interrupt() as interrupt,
            concurrent.futures.ThreadPoolExecutor(self.cores) as pool,
            _Processes(interrupt) as processes,
        ):
            while True:
                ready = sorted([*ready, *sorter.get_ready()], key=order.__getitem__)
                for name in list(ready) if not interrupt.requested else ():
                    share = self._share(by_name[name], free, idle=not running)
                    if share is None:
                        continue
                    free = free.without(share)
                    ready.remove(name)
                    environment = _environment(by_name[name], share, bool(self.gpus))
                    future = pool.submit(processes.run, by_name[name], study, runner, environment)
                    running[future] = (by_name[name], share)
                if not running:
                    return not (interrupt.requested and sorter.is_active())
                for future in processes.wait(running):
                    job, share = running.pop(future)
                    free = free.plus(share)
                    outcome = future.result()
                    report(job, outcome)
                    if outcome.status == 0:
                        sorter.done(job.name)

    def _check(self, job: Job) -> None:
        if job.resources:
            names = ", ".join(job.resources)
            raise UserError(f"job {job.name}: needs {names}, which only a cluster offers: --on ray:ADDRESS")
        if job.cores > self.cores:
            raise UserError(f"job {job.name}: cores {job.cores}, this machine has {self.cores}; give it fewer")
        if (job.gpus or 0) > len(self.gpus):
            raise UserError(f"job {job.name}: gpus {job.gpus}, this machine has {len(self.gpus)}; give it fewer")

    def _share(self, job: Job, free: _Share, *, idle: bool) -> _Share | None:
        """What the job gets of what is free; None if it has to wait."""
        if job.alone:
            return free if idle else None
        gpus = job.gpus if job.gpus is not None else min(1, len(self.gpus))
        if job.cores > free.cores or gpus > len(free.gpus):
            return None
        return _Share(job.cores, free.gpus[:gpus])


class _Share:
    """Cores and GPUs."""

    def __init__(self, cores: int, gpus: tuple[str, ...]) -> None:
        self.cores = cores
        self.gpus = gpus

    def without(self, other: _Share) -> _Share:
        return _Share(self.cores - other.cores, tuple(gpu for gpu in self.gpus if gpu not in other.gpus))

    def plus(self, other: _Share) -> _Share:
        return _Share(self.cores + other.cores, (*self.gpus, *other.gpus))


class _Processes:
    """The running processes, so that an interruption reaches all of them."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._told = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._told = True
            self._signal(signal.SIGKILL)

    def run(self, job: Job, study: Path, runner: Runner, environment: Mapping[str, str]) -> Outcome:
        """Run the process of a job until it succeeds or no attempt is left."""
        folder = job.folder(study)
        attempt, status = 0, 1
        while attempt <= job.retries:
            attempt, status = attempt + 1, self._once([*runner, str(folder)], environment)
            if status in (0, INTERRUPTED, USER_ERROR) or self._stopped:
                break
        return outcome_of(folder, INTERRUPTED if self._stopped and status else status)

    @property
    def _stopped(self) -> bool:
        return self._told or self._interrupt.requested

    def wait(
        self, running: Mapping[concurrent.futures.Future[Outcome], object]
    ) -> set[concurrent.futures.Future[Outcome]]:
        """The jobs that have ended, at least one; an interruption is passed on to the processes once."""
        while True:
            done, _ = concurrent.futures.wait(running, timeout=_POLL_S, return_when=concurrent.futures.FIRST_COMPLETED)
            if done:
                return done
            if self._interrupt.requested and not self._told:
                self._told = True
                self._signal(signal.SIGINT)

    def _once(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        # In a session of its own, as Ctrl-C in a terminal would otherwise reach it twice.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=dict(environment), start_new_session=True)
        with self._lock:
            self._running.add(process)
            if self._told:  # while it was being started
                process.send_signal(signal.SIGINT)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
            assert process.stdin is not None
            process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(index) for index in range(count)] if named is None else named.split(",")[:count]


def job_command() -> list[str]:
    """The command that runs one job; the job's folder follows it."""
    return [sys.executable, "-m", "dnas", "study", "job"]


def _environment(job: Job, share: _Share, has_gpus: bool) -> dict[str, str]:
    """The environment of a job's process."""
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if has_gpus else {}
    return {**os.environ, "OMP_NUM_THREADS": str(job.cores), **gpus}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
