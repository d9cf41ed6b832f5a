"""The file of a study, and the jobs that it stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.config import parse_config
from dnas.errors import UserError
from dnas.files import dump_yaml, parse_yaml
from dnas.workflows.study.config import StudyConfig, load_study
from dnas.workflows.study.graph import base_values, plan
from dnas.workflows.study.references import references, substitute

CURVE = """
base: fasterseg_demo
values:
  data: streets
  images: {size: [96, 192], seed: $seed}
vary:
  target: [2.0, 3.0]
  seed: [0, 1]
  kind: {plain: {}, single: {search.operator_sampling: single_path}}
jobs:
  speed: {command: benchmark $student}
  table:
    command: latency build $space
    options: {threads: 1}
  search:
    command: search $space
    options: {data: $data, data-set: $images, table: $table, set: [{network.layers: 6}, $kind], device: cpu}
  architecture:
    command: derive $search
    options: {target: $target}
  student:
    command: retrain $architecture
    options: {data: $data, transfer: false, tensorboard: true, seed: $seed}
  file:
    command: export $student
    options: {format: torch}
"""


def study_of(text):
    return parse_config(StudyConfig, parse_yaml(text, "study"), "study")


def jobs_of(text, **base):
    return {job.name: job for job in plan(study_of(text), base)}


@pytest.fixture(scope="module")
def curve():
    return jobs_of(CURVE, space="fasterseg_demo")


def test_a_job_runs_once_for_each_combination_that_it_depends_on(curve):
    kinds = [job.kind for job in curve.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "table": 1, "search": 4, "architecture": 8, "student": 8, "speed": 8, "file": 8,
    }  # fmt: skip


def test_jobs_follow_those_they_refer_to(curve):
    names = list(curve)
    for job in curve.values():
        assert all(names.index(before) < names.index(job.name) for before in job.after)
    student = curve["student-target=3.0-seed=1-kind=single"]
    assert student.after == ("architecture-target=3.0-seed=1-kind=single",)
    assert curve[student.after[0]].after == ("search-seed=1-kind=single",)
    assert student.values == {"target": "3.0", "seed": "1", "kind": "single"}


def test_the_command_line_of_a_job(curve):
    folder = "$study/jobs/search-seed=1-kind=single"
    assert curve["search-seed=1-kind=single"].words == (
        *("search", "fasterseg_demo", "--out", folder, "--data", "streets", "--data-set", "size=[96, 192]"),
        *("--data-set", "seed=1", "--table", "$study/jobs/table/table.json", "--set", "network.layers=6"),
        *("--set", "search.operator_sampling=single_path", "--device", "cpu", "--resume"),
    )
    name = "student-target=2.0-seed=0-kind=plain"
    architecture = "$study/jobs/architecture-target=2.0-seed=0-kind=plain/architecture.yaml"
    assert curve[name].words == (
        *("retrain", architecture, "--out", f"$study/jobs/{name}", "--data", "streets", "--tensorboard"),
        *("--seed", "0", "--resume"),
    )
    assert curve["file-target=2.0-seed=0-kind=plain"].words[-3:] == (
        "$study/jobs/file-target=2.0-seed=0-kind=plain/network.pt2", "--format", "torch",
    )  # fmt: skip


def test_resources_follow_from_the_command(curve):
    by_kind = {job.kind: job for job in curve.values()}
    assert {kind: job.alone for kind, job in by_kind.items() if job.alone} == {"table": True, "speed": True}
    assert {kind: job.gpus for kind, job in by_kind.items()} == {
        "table": 0, "search": 0, "architecture": None, "student": None, "speed": 0, "file": 0,
    }  # fmt: skip


def test_a_latency_table_for_each_type_of_device():
    text = "vary: {device: [orin, xavier]}\njobs: {table: {command: latency build x, resources: {$device: 1}}}"
    found = jobs_of(text)
    assert {name: job.resources for name, job in found.items()} == {
        "table-device=orin": {"orin": 1}, "table-device=xavier": {"xavier": 1},
    }  # fmt: skip


def test_a_list_of_mappings_gives_the_combinations_themselves():
    found = jobs_of("vary: [{a: 1, b: x}, {a: 2, b: x}]\njobs: {one: {command: search $a}, two: {command: search $b}}")
    assert list(found) == ["one-a=1", "one-a=2", "two-b=x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: {a: {command: search $b}}", "jobs.a: $b is unknown, known names: study, a"),
        ("jobs: {a: {command: search $b}, b: {command: derive $a}}", "a, b wait for each other"),
        ("jobs: {a: {command: serve x}}", "jobs.a: command 'serve x': expected one of latency build"),
        ("jobs: {a: {command: search x, options: {out: y}}}", "options.out: the study gives this option itself"),
        ("vary: {x: 3}\njobs: {a: {command: search $x}}", "vary.x: given 3, expected a list of values"),
        ("vary: {x: [a/b, a b]}\njobs: {a: {command: search $x}}", "vary.x: two values are called a_b"),
        ("vary: [{x: 1}, {y: 1}]\njobs: {a: {command: search $x}}", "vary.1: given y, expected a value for x"),
        ("jobs: {a: {command: search $1}}", "write $$ for a dollar sign"),
    ],
)
def test_mistakes_in_the_graph(text, message):
    with pytest.raises(UserError) as error:
        jobs_of(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: {}", "jobs: expected at least one job"),
        ("values: {a: 1}\njobs: {a: {command: search x}}", "jobs.a: the name is used twice, it is also in values"),
        ("base: x\nvalues: {space: y}\njobs: {a: {command: search x}}", "values.space: the name is used twice"),
        ("jobs: {a-b: {command: search x}}", "jobs.a-b: expected a name of letters"),
        ("jobs: {a: {command: search x, core: 2}}", "jobs.a.core: unknown key, known keys: command, options"),
    ],
)
def test_mistakes_in_the_file(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_study(tmp_path / "study.yaml")
    assert message in str(error.value)


def test_the_base_may_be_a_run(tmp_path):
    run = {"space": {"space": "fasterseg"}, "data": {"dataset": "streets"}, "preset": "p"}
    (tmp_path / "configuration.yaml").write_text(dump_yaml(run))
    assert base_values("fasterseg_demo", tmp_path) == {"space": "fasterseg_demo"}
    found = base_values(str(tmp_path), tmp_path / "study")
    assert found == {"space": "$study/base_space.yaml", "data": "$study/base_data.yaml"}
    assert parse_yaml((tmp_path / "study" / "base_data.yaml").read_text(), "") == run["data"]
    (tmp_path / "configuration.yaml").write_text(dump_yaml({**run, "data": {"dataset": "rectangles"}}))
    with pytest.raises(UserError, match="was begun with another base: the data of"):
        base_values(str(tmp_path), tmp_path / "study")
    (tmp_path / "configuration.yaml").unlink()
    assert base_values(str(tmp_path), tmp_path / "study") == found


@given(st.text(alphabet="a$ {}_1"), st.integers())
def test_a_text_without_references_stays_and_dollars_can_be_escaped(text, number):
    escaped = text.replace("$", "$$")
    assert list(references(escaped)) == []
    assert substitute({"x": [escaped]}, lambda name: number) == {"x": [text]}
    assert substitute("$name", lambda name: number) == number
    assert substitute(f"{escaped}=${{name}}", lambda name: number) == f"{text}={number}"
