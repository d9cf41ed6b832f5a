"""The file of a study: what varies, and the jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dnas.config import Field, config, parse_config
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.workflows.study.references import STUDY


@config
class JobConfig:
    """A kind of job; the study runs it once for each combination of the varied values that it depends on.

    command: a command of dnas with its arguments, such as ``search $space``. options: its options by name, without
        hyphens; a mapping repeats an option as KEY=VALUE, a list repeats it, true is a flag. The study itself gives
        ``out``, ``resume`` and ``json``.
    after: names of jobs to wait for, besides those that the command and the options refer to.
    cores: CPU cores, and threads of PyTorch. gpus: GPUs; by default one for a command that uses a GPU if there is one.
    alone: nothing else runs on the machine; by default for commands that measure latencies.
    memory_gb: memory to reserve, in GB (Ray, Slurm). resources: further resources of a Ray cluster.
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
class StudyConfig:
    """A study.

    base: a preset, a space's file, or the run folder of a search whose configuration the study starts from. It defines
        ``$space``, and ``$data`` if it is a run folder.
    values: constants by name. vary: lists of values by name, of which all combinations are run; values may be named, as
        in ``kind: {plain: {}, single: {search.operator_sampling: single_path}}``. A list of mappings gives the
        combinations themselves. retries: default for jobs.
    jobs: the jobs by name. Texts refer to values as ``$name`` and to the result of another job by the job's name;
        ``$study`` is the study's folder, ``$$`` is a dollar sign.
    """

    base: str | None = None
    values: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, Any] | tuple[dict[str, Any], ...] = Field(default_factory=dict)
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
    seen: dict[str, str] = {STUDY: "built in", **dict.fromkeys(based, "defined by base")}
    for kind, names in (("values", study.values), ("vary", varied), ("jobs", study.jobs)):
        for name in names:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
                raise UserError(f"{source}: {kind}.{name}: expected a name of letters, digits and underscores")
            if name in seen:
                raise UserError(f"{source}: {kind}.{name}: the name is used twice, it is {seen[name]}; choose another")
            seen[name] = f"also in {kind}"
    if not study.jobs:
        raise UserError(f"{source}: jobs: expected at least one job")
    return study
