"""Trials of sampled values (extra ``optuna``): sampling, pruning by the validation curve, resuming."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.files import read_json, write_json
from dnas.json_lines import read_lines
from dnas.workflows.study.config import Optimisation, Range, StudyConfig, ranges_of
from dnas.workflows.study.graph import Job, Trials, base_values, plan
from dnas.workflows.study.job import STOP, is_done, result_of

TRIALS = "trials.json"
_STORAGE = "optuna.log"
_POLL_S = 0.5

RunJobs = Callable[[Sequence[Job]], Sequence[str]]
"""Runs the jobs that are not done yet, and returns the messages of those that failed."""


def read_trials(folder: Path) -> Trials:
    """The values of the trials of a study so far, by number."""
    path = folder / TRIALS
    return {row["trial"]: row["values"] for row in read_json(path, "trials of a study")} if path.exists() else {}


def run_trials(study: StudyConfig, out: Path, run: RunJobs) -> tuple[list[Job], list[str]]:
    """Sample values and run their jobs until all trials are done; returns all jobs, and messages of failed ones."""
    wanted = study.optimise
    assert wanted is not None
    sampler = _Sampler(wanted, ranges_of(study), out)
    base, failed = base_values(study.base, out), list[str]()
    while sampler.ask():
        jobs = plan(study, base, sampler.values())
        running = {row["trial"]: _of_trial(jobs, row["trial"]) for row in sampler.running()}
        with _Pruning(sampler, wanted, running, out):
            failed += run(
                [job for job in jobs if job.values.get("trial") is None or int(job.values["trial"]) in running]
            )
        for number, members in running.items():
            score = _score(wanted, members, out)
            sampler.tell(number, score, pruned=score is None and _is_pruned(members, out))
    return plan(study, base, sampler.values()), failed


class _Sampler:
    """Optuna's study in a journal, and our list of trials, whose numbers do not change when a study is resumed."""

    def __init__(self, wanted: Optimisation, ranges: Mapping[str, Range], out: Path) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise UserError("ranges in vary need optuna: pip install 'dnas[optuna]'") from None
        self._optuna: Any = optuna
        self._wanted, self._ranges, self._path = wanted, ranges, out / TRIALS
        self._rows: list[dict[str, Any]] = read_json(self._path, "trials") if self._path.exists() else []
        for row in self._rows:
            if row["state"] == "fail":  # to be tried again
                row["state"] = "running"
        self._trials: dict[int, Any] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study: Any = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(out / _STORAGE))),
            study_name="study",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(wanted.startup_trials, wanted.warm_up_epochs),
        )

    def ask(self) -> bool:
        """Sample the next trials, after those of a killed study; False if all are done."""
        for row in self.running():
            # A killed study left them open; the same values become a new trial of optuna.
            self._study.tell(row["number"], state=self._optuna.trial.TrialState.FAIL, skip_if_finished=True)
            self._study.enqueue_trial(row["values"])
            self._begin(row)
        while len(self.running()) < self._wanted.parallel and len(self._rows) < self._wanted.trials:
            row = {"trial": len(self._rows), "state": "running", "score": None}
            self._rows.append(row)
            self._begin(row)
        write_json(self._path, self._rows)
        return bool(self.running())

    def _begin(self, row: dict[str, Any]) -> None:
        # With the number of the trial in the seed, a resumed study samples what an uninterrupted one would.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self._wanted.seed + 7919 * row["trial"], n_startup_trials=self._wanted.startup_trials
        )
        trial = self._study.ask({name: self._distribution(one) for name, one in self._ranges.items()})
        self._trials[row["trial"]] = trial
        row.update(number=trial.number, values=dict(trial.params))

    def _distribution(self, one: Range) -> Any:
        low, high = one.range
        if one.integer:
            return self._optuna.distributions.IntDistribution(int(low), int(high), log=one.log)
        return self._optuna.distributions.FloatDistribution(low, high, log=one.log)

    def values(self) -> Trials:
        """The values of all trials."""
        return {row["trial"]: row["values"] for row in self._rows}

    def running(self) -> list[dict[str, Any]]:
        """The trials that are not finished."""
        return [row for row in self._rows if row["state"] == "running"]

    def report(self, number: int, epoch: int, score: float) -> bool:
        """Note the score of a running trial after an epoch; returns whether to prune it."""
        trial = self._trials[number]
        trial.report(score, epoch)
        return bool(trial.should_prune())

    def tell(self, number: int, score: float | None, *, pruned: bool) -> None:
        """Finish a trial; without a score it failed, unless it was pruned."""
        states = self._optuna.trial.TrialState
        state = states.PRUNED if pruned else states.FAIL if score is None else states.COMPLETE
        self._study.tell(self._trials[number], score if state == states.COMPLETE else None, state=state)
        self._rows[number].update(state=state.name.lower(), score=score)
        write_json(self._path, self._rows)


class _Pruning:
    """Watches the validation curves of running trials in a thread, and stops trials that are below the median."""

    def __init__(
        self, sampler: _Sampler, wanted: Optimisation, running: Mapping[int, Sequence[Job]], out: Path
    ) -> None:
        self._sampler, self._wanted, self._running, self._out = sampler, wanted, running, out
        self._told: set[tuple[int, int]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pruning", daemon=True)

    def __enter__(self) -> None:
        if self._wanted.prune:
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._wanted.prune:
            self._thread.join()
            for _ in self._hopeless():
                pass  # the epochs since the last look belong to the curves that later trials are compared with

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            for members in self._hopeless():
                _stop(members, self._out)

    def _hopeless(self) -> Iterator[Sequence[Job]]:
        """Report the epochs that are new; the jobs of the trials that are to be pruned."""
        for number, members in self._running.items():
            for epoch, score in _curve(self._wanted, members, self._out):
                if (number, epoch) in self._told or _is_pruned(members, self._out):
                    continue
                self._told.add((number, epoch))
                if self._sampler.report(number, epoch, score):
                    yield members


def _of_trial(jobs: Sequence[Job], number: int) -> list[Job]:
    return [job for job in jobs if job.values.get("trial") == str(number)]


def _stop(members: Sequence[Job], out: Path) -> None:
    for job in members:
        if not is_done(job.folder(out)):
            (job.folder(out) / STOP).touch()


def _is_pruned(members: Sequence[Job], out: Path) -> bool:
    return any((job.folder(out) / STOP).exists() for job in members)


def _curve(wanted: Optimisation, members: Sequence[Job], out: Path) -> Iterator[tuple[int, float]]:
    """Epoch and mIoU, the mean over the jobs that are scored, for the epochs that all of them have finished."""
    logs = [_mious(job.folder(out)) for job in members if job.kind == wanted.score]
    for epoch in sorted(set.intersection(*map(set, logs))) if logs else ():
        yield epoch, statistics.fmean(log[epoch] for log in logs)


def _score(wanted: Optimisation, members: Sequence[Job], out: Path) -> float | None:
    """The score of a trial: the mean over its jobs of the best mIoU; None if one is not done."""
    scored = [job for job in members if job.kind == wanted.score]
    if not scored or not all(is_done(job.folder(out)) for job in scored):
        return None
    found = []
    for job in scored:
        result, log = result_of(job.folder(out)), _mious(job.folder(out))
        if "miou" not in result and not log:
            raise UserError(f"optimise.score: {job.name} has no mIoU; expected a search, retrain or evaluate job")
        found.append(float(result["miou"]) if "miou" in result else max(log.values()))
    return statistics.fmean(found)


def _mious(folder: Path) -> dict[int, float]:
    """The mIoU of every finished epoch in the log of a run; of a search that of its first architecture."""
    found = {}
    for line in read_lines(folder / "log.jsonl", "log of a run"):
        miou = (line.record or {}).get("miou")
        if isinstance(miou, Mapping):
            miou = next(iter(miou.values()), None)
        if line.record and line.record.get("kind") == "epoch" and miou is not None:
            found[int(line.record["epoch"])] = float(miou)
    return found
