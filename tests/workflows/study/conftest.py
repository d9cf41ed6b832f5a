import sys
from pathlib import Path

import pytest

from dnas.files import dump_yaml
from dnas.workflows.study.local import LocalEngine
from dnas.workflows.study.running import run_study

FAKE_JOB = Path(__file__).with_name("fake_job.py")


@pytest.fixture
def runner(tmp_path):
    """A function from what goes wrong, by kind of job, to the command for one job."""

    def command(**behaviour):
        path = tmp_path / "behaviour.yaml"
        path.write_text(dump_yaml(behaviour))
        return [sys.executable, str(FAKE_JOB), str(path)]

    return command


@pytest.fixture
def local(tmp_path, runner):
    """A function that runs a study on two cores of this machine with fake jobs; returns the study's folder."""

    def run(study, out="study", progress=None, **behaviour):
        run_study(study, tmp_path / out, engine=LocalEngine(2, []), runner=runner(**behaviour), progress=progress)
        return tmp_path / out

    return run
