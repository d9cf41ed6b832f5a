"""Running a study on this machine: order, retries, resuming, interruption; the jobs are fakes without torch."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dnas.config import parse_config, to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml, parse_yaml, read_json, write_text
from dnas.progress import NoProgress
from dnas.runs import Interrupted
from dnas.workflows.study.config import StudyConfig
from dnas.workflows.study.graph import plan
from dnas.workflows.study.job import attempts, cpu_seconds, prepare, several_processes
from dnas.workflows.study.local import LocalEngine
from dnas.workflows.study.running import run_study
from dnas.workflows.study.status import STUDY_FILE, open_study, states

TEXT = """
vary: {seed: [0, 1]}
retries: 1
jobs:
  table: {command: latency build x}
  search: {command: search x, options: {table: $table, seed: $seed}}
  architecture: {command: derive $search}
  score: {command: evaluate $architecture}
"""


def study_of(text=TEXT):
    return parse_config(StudyConfig, parse_yaml(text, "study"), "study")


def state_of(folder):
    return {state.job.name: state for state in states(open_study(folder)[1], folder)}


def starts(folder):
    return {
        path.parent.name: sum("started" in one for one in attempts(path.parent))
        for path in folder.glob("jobs/*/job.json")
    }


def test_every_job_runs_once_after_those_it_waits_for(local):
    study = study_of()
    folder = local(study)
    found = state_of(folder)
    assert {state.state for state in found.values()} == {"done"}
    ended = {name: attempts(state.job.folder(folder))[-1]["ended"] for name, state in found.items()}
    for name, state in found.items():
        begun = attempts(state.job.folder(folder))[0]["started"]
        assert all(ended[before] <= begun for before in state.job.after), name
    local(study)
    assert set(starts(folder).values()) == {1}
    assert (folder / "jobs/architecture-seed=0/architecture.yaml").read_text().split()[1] == str(
        folder / "jobs/search-seed=0"
    )


def test_finished_is_called_for_the_jobs_that_end_now(tmp_path, runner):
    def run(text):
        found = []
        run_study(
            study_of(text),
            tmp_path,
            engine=LocalEngine(2, []),
            runner=runner(b="mistake"),
            finished=lambda job: found.append(job.name),
        )
        return found

    assert run("jobs: {a: {command: evaluate x}}") == ["a"]
    with pytest.raises(UserError, match="1 of 2 jobs failed"):
        run("jobs: {a: {command: evaluate x}, b: {command: evaluate y}}")
    assert run("jobs: {a: {command: evaluate x}, c: {command: evaluate y}}") == ["c"]


def test_the_processor_time_of_a_job(local):
    folder = local(study_of("{jobs: {a: {command: evaluate x}, b: {command: evaluate y}}}"), a="fail", b="die") / "jobs"
    seconds = sum(one.get("cpu_seconds", 0) for one in attempts(folder / "a"))
    assert 0 <= cpu_seconds(folder / "a") == pytest.approx(seconds)
    assert cpu_seconds(folder / "b") is None  # its first attempt was killed


def test_values_can_be_added_later(local):
    text = "vary: {seed: [0]}\njobs: {a: {command: search x}, b: {command: retrain $a, options: {seed: $seed}}}"
    folder = local(study_of(text))
    local(study_of(text.replace("[0]", "[0, 1]")))
    assert starts(folder) == {"a": 1, "b-seed=0": 1, "b-seed=1": 1}
    assert {state.state for state in state_of(folder).values()} == {"done"}


def test_a_job_with_another_command_line_is_refused(local):
    local(study_of("jobs: {a: {command: search x}}"))
    with pytest.raises(UserError, match="'x' is now 'y'; give the study its old settings"):
        local(study_of("jobs: {a: {command: search y}}"))


@pytest.mark.parametrize("what", ["fail", "die"])
def test_a_job_that_died_is_started_again(local, what):
    folder = local(study_of("jobs: {a: {command: search x}, b: {command: derive $a}}"), a=what)
    assert starts(folder) == {"a": 2, "b": 1}
    assert read_json(folder / "jobs/a/done.json")["attempts"] == 2


def test_a_training_with_several_gpus_has_a_process_for_each(tmp_path):
    study = study_of(
        "jobs: {a: {command: retrain x, gpus: 2}, b: {command: retrain x}, c: {command: export $a, gpus: 2}}"
    )
    several = {job.kind: several_processes(prepare(job, tmp_path), ["retrain", "x"]) for job in plan(study)}
    assert several["a"][1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dnas", "retrain", "x")
    ]
    assert several["b"] is None
    assert several["c"] is None


class Messages(NoProgress):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def test_jobs_that_wait_for_a_failed_one_are_left_out_and_the_rest_goes_on(local, tmp_path):
    messages = Messages()
    text = TEXT.replace(
        "architecture: {command: derive $search}", "architecture: {command: derive $search, retries: 2}"
    )
    with pytest.raises(UserError) as error:
        local(study_of(text), progress=messages, architecture="always")
    assert str(error.value).startswith("2 of 7 jobs failed; 2 jobs wait for them. First: architecture-seed=")
    assert "exit status 1 after 3 attempts: RuntimeError: architecture-seed=" in str(error.value)
    assert messages.lines[0] == "1/7 table"
    found = state_of(tmp_path / "study")
    assert found["architecture-seed=0"].state == "failed"
    assert found["architecture-seed=0"].attempts == 3
    assert found["architecture-seed=0"].message == "RuntimeError: architecture-seed=0 failed"
    assert found["score-seed=0"].state == "waiting"
    local(study_of(text))
    assert {state.state for state in state_of(tmp_path / "study").values()} == {"done"}


def test_a_mistake_of_the_user_is_not_repeated(local, tmp_path):
    with pytest.raises(UserError, match="exit status 2: a mistake"):
        local(study_of(), table="mistake")
    assert starts(tmp_path / "study")["table"] == 1


def test_measuring_jobs_run_alone(local):
    text = "vary: {n: [0, 1, 2]}\njobs: {a: {command: search $n}, b: {command: benchmark $n}}"
    folder = local(study_of(text))
    times = {}
    for name in starts(folder):
        records = attempts(folder / "jobs" / name)
        times[name] = (records[0]["started"], records[1]["ended"])
    for name, (start, end) in times.items():
        if name.startswith("b"):
            assert all(other == name or e <= start or s >= end for other, (s, e) in times.items())


def test_each_job_has_its_gpu_and_threads(tmp_path, local):
    script = tmp_path / "job.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "sys.stdin.close()\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "(folder / 'seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'] + ' ' + os.environ['OMP_NUM_THREADS'])\n"
        "(folder / 'done.json').write_text('{}')\n"
    )
    jobs = "a: {command: search $n, cores: 2}\n  b: {command: search $n, options: {device: cpu}}"
    study = study_of(f"vary: {{n: [0, 1]}}\njobs:\n  {jobs}\n  c: {{command: search $n, gpus: 2}}")
    run_study(study, tmp_path / "out", engine=LocalEngine(4, ["3", "5"]), runner=[sys.executable, str(script)])
    seen = {path.parent.name: path.read_text() for path in (tmp_path / "out").glob("jobs/*/seen")}
    assert {seen["a-n=0"], seen["a-n=1"]} <= {"3 2", "5 2"}
    assert (seen["b-n=0"], seen["c-n=1"]) == (" 1", "3,5 1") or seen["c-n=1"] == "5,3 1"
    with pytest.raises(UserError, match="job a: needs orin, which only a cluster offers"):
        local(study_of("jobs: {a: {command: search x, resources: {orin: 1}}}"))
    with pytest.raises(UserError, match="job a: gpus 3, this machine has 2"):
        run_study(
            study_of("jobs: {a: {command: search x, gpus: 3}}"), tmp_path / "b", engine=LocalEngine(4, ["3", "5"])
        )


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupted_study_stops_its_jobs_and_continues(local, tmp_path):
    folder = tmp_path / "study"
    # What Ctrl-C sends, once both slow jobs are running.
    begun = threading.Thread(
        target=lambda: (
            wait_until(lambda: len(list(folder.glob("jobs/search-*/attempts.jsonl"))) == 2),
            os.kill(os.getpid(), signal.SIGINT),
        )
    )
    begun.start()
    with pytest.raises(Interrupted, match="stopped: 1 of 7 jobs are done; the same command continues the study"):
        local(study_of(), search="slow")
    begun.join()
    assert {state_of(folder)[f"search-seed={seed}"].state for seed in (0, 1)} == {"stopped"}
    (folder / "go").touch()
    local(study_of(), search="slow")
    assert {state.state for state in state_of(folder).values()} == {"done"}
    assert starts(folder)["table"] == 1


def test_a_job_ends_when_the_process_that_started_it_is_killed(local, tmp_path, runner):
    """And while it runs, nothing else runs it: a second process waits, then finds it done."""
    study = study_of("jobs: {a: {command: search x}}")
    folder = prepare(plan(study)[0], tmp_path / "study")
    write_text(tmp_path / "study" / STUDY_FILE, dump_yaml(to_mapping(study)))
    command = [*runner(a="slow"), str(folder)]
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    parent = subprocess.Popen([sys.executable, "-c", code, *command])
    wait_until(lambda: attempts(folder))
    assert state_of(tmp_path / "study")["a"].state == "running"
    second = subprocess.Popen(command, stdin=subprocess.PIPE)
    parent.kill()
    parent.wait()
    wait_until(lambda: len(attempts(folder)) == 2)
    (tmp_path / "study" / "go").touch()
    assert second.wait(60) == 0
    second.stdin.close()
    assert state_of(tmp_path / "study")["a"].state == "done"
    local(study)
    assert ["ended" in record for record in attempts(folder)] == [False, False, True]
