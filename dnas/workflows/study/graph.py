"""The jobs of a study: every kind of job once for each combination of the varied values that it depends on."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.files import dump_yaml, read_text, read_yaml, write_text
from dnas.workflows.study.commands import (
    COMMANDS,
    measures,
    option_words,
    result_name,
    split_command,
    uses_gpu,
)
from dnas.workflows.study.config import JobConfig, StudyConfig, ranges_of
from dnas.workflows.study.references import STUDY, TRIAL, as_text, references, substitute

JOBS = "jobs"
"""Folder of the jobs' folders in that of the study."""


@dataclass(frozen=True)
class Choice:
    """One of the values that vary: its label, and the value itself."""

    label: str
    value: Any


Point = Mapping[str, Choice]
"""A combination of varied values, by name."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job.

    name: that of its folder. kind: its name in the study file. words: the command line after ``dnas``, in which
    ``$study`` is the study's folder. result: file with the result in the job's folder, "" for the folder itself.
    values: labels of the varied values that it depends on. after: names of the jobs it waits for. gpus is None for one
    GPU if there is any. The other fields are those of :class:`~dnas.workflows.study.config.JobConfig`.
    """

    name: str
    kind: str
    command: str
    words: tuple[str, ...]
    result: str
    values: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    cores: int = 1
    gpus: int | None = 0
    alone: bool = False
    memory_gb: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    retries: int = 1

    def folder(self, study: Path) -> Path:
        """Its folder in that of the study."""
        return study / JOBS / self.name


Trials = Mapping[int, Mapping[str, Any]]
"""The sampled values of trials, by number and name."""


def plan(study: StudyConfig, base: Mapping[str, Any] | None = None, trials: Trials | None = None) -> list[Job]:
    """All jobs of a study, each after the jobs that it waits for; ``base``: values that its base defines.

    ``trials``: values that were sampled from the ranges in ``vary``; jobs that depend on them depend on ``trial``.

    Raises :class:`UserError` for references to unknown names and for jobs that wait for each other.
    """
    return _Planner(study, dict(base or {}), trials or {}).jobs()


def base_values(base: str | None, folder: Path) -> dict[str, Any]:
    """The values that ``base`` defines; the configuration of a run is copied to ``folder``, the study's.

    Raises :class:`UserError` if the study was begun with another base.
    """
    if base is None:
        return {}
    if not (Path(base) / "configuration.yaml").is_file():
        copied = (folder / "base_space.yaml").exists()  # and the run is not there any more
        return _copied_base() if copied else {"space": base}
    configuration = read_yaml(Path(base) / "configuration.yaml", "configuration of a run")
    for part in ("space", "data"):
        if not isinstance(configuration.get(part), dict):
            raise UserError(f"base {base}: expected a preset, a space's file or the run folder of a search")
        copy, text = folder / f"base_{part}.yaml", dump_yaml(configuration[part])
        if copy.exists() and read_text(copy) != text:
            raise UserError(f"{folder}: was begun with another base: the {part} of {base} differs; give another --out")
        write_text(copy, text)
    return _copied_base()


def _copied_base() -> dict[str, Any]:
    return {part: f"${STUDY}/base_{part}.yaml" for part in ("space", "data")}


class _Planner:
    def __init__(self, study: StudyConfig, base: dict[str, Any], trials: Trials) -> None:
        self._study = study
        self._values = {**base, **study.values}
        self._sampled = ranges_of(study)
        given = (
            {name: one for name, one in study.vary.items() if name not in self._sampled}
            if isinstance(study.vary, dict)
            else study.vary
        )
        self._points = list(_points(given))
        self._varied = list(self._points[0])
        if self._sampled:
            chosen = [Choice(str(number), {**values, TRIAL: number}) for number, values in trials.items()]
            # Without a trial yet, the jobs that depend on none can be run.
            self._trials = chosen or [Choice("", dict.fromkeys([*self._sampled, TRIAL]))]
            self._points = [{**point, TRIAL: one} for one in self._trials for point in self._points]
            self._varied.append(TRIAL)
        self._order = self._sorted()

    def jobs(self) -> list[Job]:
        """All jobs, in the order of their dependencies."""
        found: dict[str, Job] = {}
        for kind in self._order:
            depends = self._depends(kind)
            distinct = {tuple(point[name].label for name in depends): point for point in reversed(self._points)}
            for labels in dict.fromkeys(tuple(point[name].label for name in depends) for point in self._points):
                job = self._job(kind, distinct[labels])
                if job.name in found:
                    raise UserError(f"two jobs are called {job.name}: give the values of vary names that differ")
                found[job.name] = job
        return [job for job in found.values() if job.values.get(TRIAL) != ""]

    def _job(self, kind: str, point: Point) -> Job:
        settings = self._study.jobs[kind]

        options = self._options(kind, point)
        words = [as_text(self._substitute(word, point)) for word in _words(kind, settings)]
        command, arguments = split_command(kind, words)
        name, known, result = self._name(kind, point), COMMANDS[command], result_name(command, options)
        path = "/".join(filter(None, [f"${STUDY}", JOBS, name, result]))
        out = ["--out", path] if known.writes else []
        return Job(
            name=name,
            kind=kind,
            command=command,
            words=(*command.split(), *arguments, *out, *option_words(kind, options), *known.options),
            result=result,
            values={varied: point[varied].label for varied in self._depends(kind)},
            after=tuple(self._name(before, point) for before in self._before(kind)),
            cores=settings.cores,
            gpus=settings.gpus if settings.gpus is not None else None if uses_gpu(command, options) else 0,
            alone=measures(command, options) if settings.alone is None else settings.alone,
            memory_gb=settings.memory_gb,
            resources={as_text(self._substitute(key, point)): one for key, one in settings.resources.items()},
            retries=self._study.retries if settings.retries is None else settings.retries,
        )

    def _options(self, kind: str, point: Point) -> dict[str, Any]:
        options: dict[str, Any] = self._substitute(self._study.jobs[kind].options, point)
        return options

    def _substitute(self, value: Any, point: Point) -> Any:
        def resolve(name: str) -> Any:
            if name == STUDY:
                return f"${STUDY}"
            if name in self._sampled or (name == TRIAL and TRIAL in point):
                return point[TRIAL].value[name]
            if name in point:
                return point[name].value
            if name in self._study.jobs:
                return self._result(name, point)
            return substitute(self._values[name], resolve)

        return substitute(value, resolve)

    def _result(self, kind: str, point: Point) -> str:
        """The path of another job's result."""
        command, _ = split_command(kind, _words(kind, self._study.jobs[kind]))
        result = result_name(command, self._options(kind, point))
        return "/".join(filter(None, [f"${STUDY}", JOBS, self._name(kind, point), result]))

    def _name(self, kind: str, point: Point) -> str:
        return "-".join([kind, *(f"{name}={point[name].label}" for name in self._depends(kind))])

    def _names(self, kind: str) -> list[str]:
        """All names that a job refers to, those in values included."""
        settings, found = self._study.jobs[kind], dict[str, None]()
        todo = [*settings.after, *references([_words(kind, settings), settings.options, list(settings.resources)])]
        while todo:
            name = todo.pop(0)
            known = {STUDY: None, **dict.fromkeys([*self._values, *self._varied, *self._sampled]), **self._study.jobs}
            if name not in known:
                raise UserError(f"jobs.{kind}: ${name} is unknown, known names: {', '.join(known)}")
            if name not in found:
                found[name] = None
                todo += references(self._values.get(name))
                todo += [TRIAL] * (name in self._sampled)
        return list(found)

    def _before(self, kind: str) -> list[str]:
        return [name for name in self._names(kind) if name in self._study.jobs]

    def _depends(self, kind: str) -> list[str]:
        """The varied names that a job depends on, itself or by the jobs it waits for, in the order of the study."""
        found = set(self._names(kind)) & set(self._varied)
        for before in self._before(kind):
            found |= set(self._depends(before))
        return [name for name in self._varied if name in found]

    def _sorted(self) -> list[str]:
        """The kinds of jobs, each after those it waits for, otherwise in the order of the file."""
        done: list[str] = []
        waiting = {kind: set(self._before(kind)) for kind in self._study.jobs}
        while waiting:
            ready = [kind for kind, before in waiting.items() if before <= set(done)]
            if not ready:
                raise UserError(f"jobs: {', '.join(waiting)} wait for each other; remove a reference")
            done.append(ready[0])
            del waiting[ready[0]]
        return done


def _words(kind: str, settings: JobConfig) -> list[str]:
    try:
        return shlex.split(settings.command)
    except ValueError as error:
        raise UserError(f"jobs.{kind}: command {settings.command!r}: {error}") from None


def _points(vary: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Iterator[Point]:
    """All combinations of the varied values."""
    if not isinstance(vary, Mapping):
        names = list(vary[0]) if vary else []
        for number, point in enumerate(vary):
            if set(point) != set(names):
                raise UserError(f"vary.{number}: given {', '.join(point)}, expected a value for {', '.join(names)}")
            yield {name: Choice(_label(point[name], name, number), point[name]) for name in names}
        return
    choices = [_choices(name, values) for name, values in vary.items()]
    for combination in itertools.product(*choices):
        yield dict(zip(vary, combination, strict=True))


def _choices(name: str, values: Any) -> list[Choice]:
    if isinstance(values, Mapping) and values:
        found = [Choice(_label(str(label), name, 0), value) for label, value in values.items()]
    elif isinstance(values, list) and values:
        found = [Choice(_label(value, name, number), value) for number, value in enumerate(values)]
    else:
        raise UserError(f"vary.{name}: given {values!r}, expected a list of values, or a mapping of names to values")
    labels = [choice.label for choice in found]
    if len(set(labels)) < len(labels):
        raise UserError(f"vary.{name}: two values are called {max(labels, key=labels.count)}; name them: a mapping")
    return found


def _label(value: Any, name: str, number: int) -> str:
    """A value as a part of a file name; a list or mapping is called by its number."""
    if isinstance(value, (list, tuple, Mapping)):
        return str(number)
    text = re.sub(r"[^A-Za-z0-9.+_-]+", "_", str(value)).strip("._")
    return text or f"{name}{number}"
