"""Jobs on a Ray cluster (extra ``ray``), which waits for dependencies, places jobs, and repeats those that died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.runs import Interrupt
from dnas.workflows.study.engine import Report, Runner, outcome_of
from dnas.workflows.study.graph import Job
from dnas.workflows.study.process import JobDied, last_status, run_task

_POLL_S = 0.5


class RayEngine:
    """Hands all jobs over to Ray as tasks; all nodes see the study's folder and Python under the same paths."""

    def __init__(self, address: str | None = None) -> None:
        """``address``: that of a running cluster, or ``auto``; None starts one on this machine."""
        try:
            import ray
        except ImportError:
            raise UserError("--on ray needs Ray: pip install 'dnas[ray]'") from None
        self._ray: Any = ray
        self._address = address

    def run(self, jobs: Sequence[Job], study: Path, runner: Runner, report: Report) -> bool:
        """See :class:`~dnas.workflows.study.engine.Engine`."""
        started = not self._ray.is_initialized()
        if started:
            self._connect()
        try:
            return self._run(jobs, study, runner, report)
        finally:
            if started:
                self._ray.shutdown()

    def _connect(self) -> None:
        try:
            self._ray.init(
                address=self._address, log_to_driver=False, include_dashboard=False if not self._address else None
            )
        except (ConnectionError, ValueError) as error:
            raise UserError(f"--on ray:{self._address}: no Ray cluster there: {error}") from None

    def _run(self, jobs: Sequence[Job], study: Path, runner: Runner, report: Report) -> bool:
        pending: dict[Any, Job] = {}
        references: dict[str, Any] = {}
        for job in jobs:  # which are in the order of their dependencies
            task = self._ray.remote(run_task).options(**self._options(job))
            after = [references[name] for name in job.after if name in references]
            reference = task.remote(tuple(runner), str(job.folder(study)), job.cores, str(Path.cwd()), *after)
            references[job.name], pending[reference] = reference, job
        failed: set[str] = set()
        with Interrupt() as interrupt:
            while pending and not interrupt.requested:
                ended, _ = self._ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
                for reference in ended:
                    job = pending.pop(reference)
                    status = last_status(job.folder(study))
                    if status:
                        failed.add(job.name)
                    if not failed.intersection(job.after):
                        report(job, outcome_of(job.folder(study), status))
            for reference in pending:
                self._ray.cancel(reference, force=False)
            if pending:
                self._ray.wait(list(pending), num_returns=len(pending), timeout=60)
        return not pending

    def _options(self, job: Job) -> dict[str, Any]:
        """Resources and retries of a job's task."""
        nodes: list[Mapping[str, float]] = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        has_gpus = any(node.get("GPU", 0) for node in nodes)
        options: dict[str, Any] = {
            "name": job.name,
            "num_cpus": max(node.get("CPU", 0) for node in nodes) if job.alone else job.cores,
            "num_gpus": job.gpus if job.gpus is not None else int(has_gpus),
            "resources": dict(job.resources),
            "max_retries": job.retries,
            "retry_exceptions": [JobDied],
        }
        if job.memory_gb is not None:
            options["memory"] = int(job.memory_gb * 1e9)
        return options
