"""Values sampled from ranges by optuna: resuming, pruning, and the jobs that trials share."""

import pytest

from dnas.config import parse_config
from dnas.errors import UserError
from dnas.files import parse_yaml, read_json
from dnas.workflows.study.config import StudyConfig, check_names
from dnas.workflows.study.graph import plan
from dnas.workflows.study.status import open_study, states

pytest.importorskip("optuna", reason="needs optuna")

TEXT = """
vary: {x: {range: [0.001, 0.5], log: true}, seed: [0, 1]}
optimise: {trials: 3, score: train, startup_trials: 2}
jobs:
  table: {command: latency build x}
  train: {command: retrain $table, options: {x: $x, seed: $seed}}
  score: {command: benchmark $train}
"""


def study_of(text=TEXT):
    return parse_config(StudyConfig, parse_yaml(text, "study"), "study")


def test_trials_share_the_jobs_that_do_not_depend_on_them():
    found = plan(study_of(), {}, {0: {"x": 0.1}, 1: {"x": 0.2}})
    assert [job.name for job in found if job.kind != "score"] == [
        "table", *(f"train-seed={seed}-trial={trial}" for trial in (0, 1) for seed in (0, 1)),
    ]  # fmt: skip
    assert "0.2" in found[-3].words or "0.2" in found[3].words
    assert [job.name for job in plan(study_of())] == ["table"]


def test_a_hopeless_trial_is_pruned(local):
    folder = local(study_of(), train="trial")
    rows = read_json(folder / "trials.json")
    assert [row["state"] for row in rows] == ["complete", "complete", "pruned"]
    assert [row["score"] for row in rows[:2]] == pytest.approx([1 - row["values"]["x"] for row in rows[:2]])
    assert all(0.001 <= row["values"]["x"] <= 0.5 for row in rows)
    found = {state.job.name: state.state for state in states(open_study(folder)[1], folder)}
    assert {state for name, state in found.items() if name.endswith("trial=2")} == {"stopped", "waiting"}
    assert {state for name, state in found.items() if not name.endswith("trial=2")} == {"done"}


def test_a_resumed_study_samples_the_values_of_an_uninterrupted_one(local, tmp_path):
    text = TEXT.replace("seed: [0, 1]", "seed: [0]").replace("score: {command: benchmark $train}", "")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "go").touch()
    whole = read_json(local(study_of(text), out="whole", train="trial") / "trials.json")
    assert len({row["values"]["x"] for row in whole}) == 3
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "go").touch()
    local(study_of(text.replace("trials: 3", "trials: 1")), out="parts", train="trial")
    with pytest.raises(UserError, match="RuntimeError: train-seed=0-trial=1"):
        local(study_of(text.replace("trials: 3", "trials: 2")), out="parts", train="always")
    parts = read_json(local(study_of(text), out="parts", train="trial") / "trials.json")
    assert [(row["values"], row["score"]) for row in parts] == [(row["values"], row["score"]) for row in whole]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optimise: {trials: 3, score: train, startup_trials: 2}", "", "ranges in vary and optimise belong together"),
        ("score: train,", "score: other,", "optimise.score: other is no job, known: table, train, score"),
        ("[0.001, 0.5]", "[0, 0.5]", "vary.x: given the range 0 to 0.5, expected a lower and a higher number"),
        ("log: true", "step: 2", "vary.x: step: unknown key, known keys: range, log, integer"),
    ],
)
def test_mistakes(old, new, message):
    assert old in TEXT
    with pytest.raises(UserError) as error:
        check_names(study_of(TEXT.replace(old, new)), "study")
    assert message in str(error.value)
