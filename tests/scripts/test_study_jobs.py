"""The jobs of the study of searches, and the rows that are made from their results."""

import argparse
import dataclasses

import pytest

from derive import architecture_from
from dnas.config import parse_config
from dnas.errors import UserError
from dnas.files import read_yaml, write_json
from dnas.json_lines import append_record
from dnas.runs import RunFolder
from dnas.workflows.study.config import StudyConfig as JobGraph
from dnas.workflows.study.graph import JOBS, plan
from scripts.study import hand_made, random_networks, retrainings, searches
from scripts.study.config import FOLDER, StudyConfig, load_study
from scripts.study.rows import RANDOM, RESULTS, RETRAININGS, read_rows
from scripts.study.training import Training, train_all, work_folder


def planned(jobs):
    return {job.name: job for job in plan(parse_config(JobGraph, {"jobs": jobs}, "study"))}


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(work=tmp_path / "work", root=None, on="local")


def test_a_derived_network_waits_for_its_search(tmp_path):
    study = load_study("camvid")
    method = study.methods["short estimator"]
    (search,) = searches.planned(study, ["short estimator"], 1)
    training = searches._training(study, search, 7.0, tmp_path)
    derive = {f"derive_{training.name}": {"command": f"derive ${search.job}", "options": {"target": 7.0}}}
    jobs = planned({**searches.search_jobs([search], study, method, tmp_path), **derive, **training.jobs})
    assert list(jobs) == [
        "search_short_estimator_seed0",
        "derive_short_estimator_seed0_7ms",
        "train_short_estimator_seed0_7ms",
        "test_short_estimator_seed0_7ms",
    ]
    assert [job.after for job in jobs.values()] == [(), *((name,) for name in list(jobs)[:-1])]
    assert (tmp_path / "spaces" / f"{search.job}.yaml").exists()


def test_a_hand_made_network_is_trained_by_its_name():
    study = load_study("camvid")
    jobs = planned(hand_made._training(study, "RegSeg x 0.25", 1).jobs)
    words = jobs["train_regseg_x_0_25_seed1"].words
    assert words[:2] == ("retrain", "regseg")
    assert "width=0.25" in words
    assert words[words.index("--seed") + 1] == "1"


def test_ways_to_train_begin_from_one_search(options):
    study = load_study("camvid")
    wanted = study.retrainings
    ways = {name: wanted.ways[name] for name in ("inherited", "distilled, weight 1")}
    trainings = [retrainings._training(study, options, name, way, 20, 1) for name, way in ways.items()]
    search = {"search_short_estimator_seed1": {"command": "search $study/a.yaml", "options": {"data": "streets"}}}
    trained = {name: job for training in trainings for name, job in training.jobs.items()}
    jobs = planned({**search, **retrainings._networks(study, wanted, 1), **trained})
    inherited, distilled = jobs["train_inherited_20_epochs_seed1"], jobs["train_distilled_weight_1_20_epochs_seed1"]
    assert "--inherit" in inherited.words
    assert "--scratch" not in inherited.words
    assert "epochs=20" in inherited.words
    assert "--scratch" in distilled.words
    assert "distillation_weight=1.0" in distilled.words
    assert "train_teacher_seed1" in distilled.after
    assert set(jobs["train_teacher_seed1"].after) == {"derive_teacher_seed1"}


def test_ways_to_train_are_compared_on_one_network(options, tmp_path):
    study = load_study("camvid")
    options.results = tmp_path
    folder = work_folder(study, options) / JOBS / "derive_student_seed1"
    architecture = architecture_from(read_rows(RESULTS / RANDOM, **study.keys)[0]["architecture"], "row")
    folder.mkdir(parents=True)
    architecture.save(folder / "architecture.yaml")
    training = retrainings._training(study, options, "from scratch", study.retrainings.ways["from scratch"], 20, 1)
    row = training.row()
    append_record(tmp_path / RETRAININGS, row | {"seed": 1})
    assert training.row() == row
    append_record(tmp_path / RETRAININGS, row | {"seed": 1, "network": "another"})
    with pytest.raises(UserError, match=r"seed 1 has rows of the network .*another.*, this search derived"):
        training.row()


def test_random_networks_are_the_same_in_every_sitting():
    study = load_study("camvid")
    names = [training.name for training in random_networks.trainings(study)]
    assert len(names) == len(set(names)) == 148
    assert names == [training.name for training in random_networks.trainings(study)]


def test_the_row_of_a_training_that_ended_before_the_command_was_killed(options, tmp_path):
    study = load_study("camvid")
    training = Training("a_seed3", "$study/a.yaml", 3, lambda: {"network": "a"})
    jobs = work_folder(study, options) / JOBS
    with RunFolder.create(jobs / "train_a_seed3", "retrain", {}, 3, device="cpu") as run:
        for epoch, miou in enumerate([None, 0.5]):
            run.log({"kind": "epoch", "epoch": epoch, "miou": miou})
    append_record(jobs / "train_a_seed3" / "attempts.jsonl", {"started": 1.0})
    append_record(jobs / "train_a_seed3" / "attempts.jsonl", {"ended": 2.0, "cpu_seconds": 7.25})
    write_json(jobs / "test_a_seed3" / "result.json", {"miou": 0.4})
    write_json(jobs / "test_a_seed3" / "done.json", {})
    train_all([training], study, options, tmp_path / "rows.jsonl", jobs={})
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert {key: row[key] for key in ("network", "seed", "epochs", "val_miou", "test_miou", "cpu_seconds")} == {
        "network": "a",
        "seed": 3,
        "epochs": 2,
        "val_miou": 0.5,
        "test_miou": 0.4,
        "cpu_seconds": 7.2,
    }


def test_a_setting_like_another_changes_what_it_names():
    settings = load_study("camvid").supernets
    base, changed = settings["10 epochs"].search, settings["batch of 4"].search
    assert changed == {**base, "batch_size": 4} != base
    methods = load_study("camvid").methods
    assert methods["gradient solved"].one_search_per_target is methods["gradient"].one_search_per_target is False


def test_a_setting_like_an_unknown_one_is_refused():
    values = read_yaml(FOLDER / "camvid.yaml", "study")
    values["supernets"] = {"longer": {"like": "shorter", "search": {"epochs": 50}}}
    with pytest.raises(UserError, match="longer: like: shorter is none of the settings before it"):
        parse_config(StudyConfig, values, "study")


def test_a_study_can_be_given_another_recipe():
    study = load_study("camvid")
    recipe = dataclasses.replace(study.recipe, epochs=40)
    other = dataclasses.replace(study, recipe=recipe)
    assert other.methods == study.methods
    assert other.recipe_key != study.recipe_key
