"""The file of a study: what varies, and the jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dnas.config import Field, config, parse_config
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.workflows.study.references import STUDY, TRIAL


@config
class JobConfig:
    """A kind of job; the study runs it once for each combination of the varied values that it depends on.

    command: a command of dnas with its arguments, such as ``search $space``. options: its options by name, without
        hyphens; a mapping repeats an option as KEY=VALUE, a list repeats it, true is a flag. The study itself gives
        ``out``, ``resume`` and ``json``.
    after: names of jobs to wait for, besides those that the command and the options refer to.
    cores: CPU cores, and threads of PyTorch. gpus: GPUs; by default one for a command that uses a GPU if there is one.
        A search or a training with several runs in a process for each.
    alone: nothing else runs on the machine; by default for commands that measure latencies.
    memory_gb: memory to reserve, in GB (Ray, Slurm). resources: further resources of a Ray cluster, whose names may be
        references: with ``{$device: 1}`` a job runs on a node that offers the device.
    retries: how often a job that died is started again; default: that of the study.
    """

    command: str
    options: dict[str, Any] = Field(default_factory=dict)
    after: tuple[str, ...] = ()
    cores: int = Field(default=1, ge=1)
    gpus: int | None = Field(default=None, ge=0)
    alone: bool | None = None
    memory_gb: float | None = Field(default=None, gt=0)
    resources: dict[str, float] = Field(default_factory=dict)
    retries: int | None = Field(default=None, ge=0)


@config
class Range:
    """A range in ``vary``, from which optuna samples; ``log``: evenly on a logarithmic scale. ``integer``: integers."""

    range: tuple[float, float]
    log: bool = False
    integer: bool = False


@config
class Optimisation:
    """How values are sampled from ranges.

    trials: number of samples. score: the kind of job (search, retrain or evaluate) whose mIoU is maximised, its mean
        over the other varied values. parallel: trials that are sampled at a time. seed: of the sampler.
    prune: stop a trial whose mIoU after an epoch is below the median of the trials before; not in the first
        ``startup_trials`` trials, which are sampled at random, and ``warm_up_epochs`` epochs.
    """

    trials: int = Field(ge=1)
    score: str
    parallel: int = Field(default=1, ge=1)
    seed: int = 0
    prune: bool = True
    startup_trials: int = Field(default=5, ge=1)
    warm_up_epochs: int = Field(default=0, ge=0)


@config
class StudyConfig:
    """A study.

    base: a preset, a space's file, or the run folder of a search whose configuration the study starts from. It defines
        ``$space``, and ``$data`` if it is a run folder.
    values: constants by name. vary: lists of values by name, of which all combinations are run; values may be named, as
        in ``kind: {plain: {}, single: {search.operator_sampling: single_path}}``. A list of mappings gives the
        combinations themselves. With ``optimise`` a mapping of the key ``range`` is a :class:`Range`.
    optimise: how values are sampled from ranges. retries: default for jobs.
    jobs: the jobs by name. Texts refer to values as ``$name`` and to the result of another job by the job's name;
        ``$study`` is the study's folder, ``$$`` is a dollar sign.
    """

    base: str | None = None
    values: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, Any] | tuple[dict[str, Any], ...] = Field(default_factory=dict)
    optimise: Optimisation | None = None
    retries: int = Field(default=1, ge=0)
    jobs: dict[str, JobConfig]


def load_study(path: str | Path) -> StudyConfig:
    """Read the file of a study; raises :class:`UserError` for invalid keys and names."""
    path = Path(path)
    return check_names(parse_config(StudyConfig, read_yaml(path, "study file"), str(path)), str(path))


def check_names(study: StudyConfig, source: str) -> StudyConfig:
    """The study, if all names are plain and different, otherwise :class:`UserError`."""
    varied = study.vary if isinstance(study.vary, dict) else dict.fromkeys(name for one in study.vary for name in one)
    based = {"space": None} if study.base is not None else {}
    built_in = {STUDY: "built in", TRIAL: "built in"}
    seen: dict[str, str] = {**built_in, **dict.fromkeys(based, "defined by base")}
    for kind, names in (("values", study.values), ("vary", varied), ("jobs", study.jobs)):
        for name in names:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
                raise UserError(f"{source}: {kind}.{name}: expected a name of letters, digits and underscores")
            if name in seen:
                raise UserError(f"{source}: {kind}.{name}: the name is used twice, it is {seen[name]}; choose another")
            seen[name] = f"also in {kind}"
    if bool(ranges_of(study)) != (study.optimise is not None):
        raise UserError(f"{source}: ranges in vary and optimise belong together; give both or none")
    if study.optimise is not None and study.optimise.score not in study.jobs:
        raise UserError(f"{source}: optimise.score: {study.optimise.score} is no job, known: {', '.join(study.jobs)}")
    if not study.jobs:
        raise UserError(f"{source}: jobs: expected at least one job")
    return study


def ranges_of(study: StudyConfig) -> dict[str, Range]:
    """The ranges in ``vary``, by name; :class:`UserError` for invalid ones."""
    if not isinstance(study.vary, dict):
        return {}
    found = {name: value for name, value in study.vary.items() if isinstance(value, dict) and "range" in value}
    ranges = {name: parse_config(Range, value, f"vary.{name}") for name, value in found.items()}
    for name, one in ranges.items():
        low, high = one.range
        if not low < high or (one.log and low <= 0) or (one.integer and (low % 1 or high % 1)):
            raise UserError(
                f"vary.{name}: given the range {low:g} to {high:g}, expected a lower and a higher number, "
                "above 0 if log, whole if integer"
            )
    return ranges
