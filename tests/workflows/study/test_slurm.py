"""Studies by submitit, whose local executor stands for Slurm."""

import pytest

from dnas.config import parse_config
from dnas.errors import UserError
from dnas.files import parse_yaml
from dnas.workflows.study.config import StudyConfig
from dnas.workflows.study.engines import find_engine
from dnas.workflows.study.job import attempts
from dnas.workflows.study.running import run_study
from dnas.workflows.study.status import open_study, states

pytest.importorskip("submitit", reason="needs submitit")

TEXT = "jobs: {a: {command: search x}, b: {command: derive $a}}"


@pytest.fixture
def submitted(tmp_path, runner):
    from dnas.workflows.study.slurm import SlurmEngine

    def run(**behaviour):
        study = parse_config(StudyConfig, parse_yaml(TEXT, "study"), "study")
        engine = SlurmEngine({"timeout_min": 5}, cluster="local")
        run_study(study, tmp_path / "study", engine=engine, runner=runner(**behaviour))

    return run


def test_jobs_follow_each_other_and_those_that_died_are_started_again(submitted, tmp_path):
    submitted(a="die")
    folder = tmp_path / "study"
    found = {state.job.name: state for state in states(open_study(folder)[1], folder)}
    assert {name: (state.state, state.attempts) for name, state in found.items()} == {
        "a": ("done", 2),
        "b": ("done", 1),
    }
    assert attempts(folder / "jobs" / "a")[-1]["ended"] <= attempts(folder / "jobs" / "b")[0]["started"]


def test_a_failed_job_is_told(submitted):
    with pytest.raises(UserError, match=r"1 of 2 jobs failed; 1 jobs wait for them. First: a: .*RuntimeError"):
        submitted(a="always")


def test_engines_by_name():
    with pytest.raises(UserError, match="no srun"):
        find_engine("slurm")
    for on, message in (("cloud", "expected local, ray, ray:ADDRESS or slurm"), ("local:x", "expected local, ray")):
        with pytest.raises(UserError, match=message):
            find_engine(on)
    with pytest.raises(UserError, match="--on-set is for --on slurm, not for local"):
        find_engine("local", options={"timeout_min": 5})
    with pytest.raises(UserError, match="--cores is for --on local"):
        find_engine("ray", cores=2)
