"""Jobs on a Slurm cluster, by submitit (extra ``slurm``)."""

from __future__ import annotations

import graphlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.runs import Interrupt
from dnas.workflows.study.engine import Report, Runner, outcome_of
from dnas.workflows.study.graph import Job
from dnas.workflows.study.job import is_done
from dnas.workflows.study.process import Repeated, last_status

LOGS = "slurm"
"""Folder of submitit's scripts and logs in that of the study."""

_POLL_S = 5.0


class SlurmEngine:
    """Hands all jobs over to Slurm, with their dependencies; all nodes see the study's folder under the same path."""

    def __init__(self, parameters: Mapping[str, Any] | None = None, cluster: str | None = None) -> None:
        """``parameters``: of submitit, such as ``timeout_min`` or ``slurm_partition``.

        ``cluster``: ``local`` for processes of this machine, which submitit offers for tests; these are started once
        the jobs that they wait for are done.
        """
        try:
            import submitit
        except ImportError:
            raise UserError("--on slurm needs submitit: pip install 'dnas[slurm]'") from None
        self._parameters = dict(parameters or {})
        self._submitit = submitit
        self._cluster = cluster or "slurm"
        if self._cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise UserError("--on slurm: this machine has no srun; run dnas study on a login node of the cluster")

    def run(self, jobs: Sequence[Job], study: Path, runner: Runner, report: Report) -> bool:
        """See :class:`~dnas.workflows.study.engine.Engine`."""
        by_name = {job.name: job for job in jobs}
        after = {job.name: [name for name in job.after if name in by_name] for job in jobs}
        pending: dict[str, Any] = {}
        hands_over = self._cluster == "slurm"
        for job in jobs if hands_over else ():  # which are in the order of their dependencies
            ids = [pending[name].job_id for name in after[job.name]]
            pending[job.name] = self._submit(job, study, runner, ids)
        sorter = graphlib.TopologicalSorter({} if hands_over else after)
        sorter.prepare()
        with Interrupt() as interrupt:
            while not interrupt.requested:
                for name in sorter.get_ready():
                    pending[name] = self._submit(by_name[name], study, runner, [])
                if not pending:
                    return True
                for name in [name for name, task in pending.items() if task.done()]:
                    folder = by_name[name].folder(study)
                    status = 0 if pending.pop(name).exception() is None else last_status(folder)
                    if all(is_done(by_name[before].folder(study)) for before in after[name]):
                        report(by_name[name], outcome_of(folder, status))
                    if status == 0 and not hands_over:
                        sorter.done(name)
                time.sleep(_POLL_S if hands_over else 0.1)
            for task in pending.values():
                task.cancel()
        return False

    def _submit(self, job: Job, study: Path, runner: Runner, after: Sequence[str]) -> Any:
        """Submit one job that waits for the Slurm jobs ``after``."""
        executor = self._submitit.AutoExecutor(folder=study / LOGS, cluster=self._cluster)
        parameters = {"name": job.name, "cpus_per_task": job.cores, **self._parameters}
        if job.alone:
            parameters["slurm_exclusive"] = True
        if job.gpus is not None:
            parameters["gpus_per_node"] = job.gpus
        if job.memory_gb is not None:
            parameters["mem_gb"] = job.memory_gb
        if after:
            parameters["slurm_dependency"] = f"afterok:{':'.join(after)}"
            parameters["slurm_additional_parameters"] = {
                **self._parameters.get("slurm_additional_parameters", {}),
                "kill_on_invalid_dep": "yes",
            }
        try:
            executor.update_parameters(**parameters)
        except (NameError, TypeError, AssertionError) as error:
            raise UserError(f"--on slurm: submitit does not accept these options: {error}") from None
        task = Repeated(tuple(runner), str(job.folder(study)), job.cores, str(Path.cwd()), job.retries)
        return executor.submit(task)
