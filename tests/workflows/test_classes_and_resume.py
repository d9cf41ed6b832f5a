"""Evaluation, distillation and resumption go by class names, and a resumed run is the same run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dnas.cli import main
from dnas.runs import RunFolder

NAMES = ("ground", "left", "right")
COLOURS = np.array([[90, 90, 90], [200, 40, 40], [40, 40, 200]], np.uint8)
RETRAIN = [
    *("retrain", "regseg_small", "--device", "cpu", "--set", "batch_size=4", "--set", "validate_every=4"),
    *("--network-set", "rates=[[1, 1]]", "--network-set", "width=32"),
    *("--set", "learning_rate=0.05", "--set", "augmentation={crop: [32, 64], flip: 0.0}"),
]


def write_data(root, names) -> None:
    """Images whose colours show the class, with the class indices in the order of ``names``."""
    indices = np.array([names.index(name) for name in NAMES], np.uint8)
    for split, count in (("train", 8), ("val", 2)):
        for number in range(count):
            true = np.zeros((32, 64), np.uint8)
            true[4 + number : 20 + number, 4:24], true[8:28, 34 + number : 56] = 1, 2
            for folder, pixels in (("images", COLOURS[true]), ("labels", indices[true])):
                (root / split / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / split / folder / f"{number}.png")
    listed = ", ".join(f"{{name: {name}}}" for name in names)
    (root / "classes.yaml").write_text(f"classes: [{listed}]\n")


def run(capsys, *arguments) -> str:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def fail(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the same images in two orders of the classes, and a network trained on the first."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder / "data", NAMES)
    write_data(folder / "other", NAMES[::-1])
    assert (
        main([*RETRAIN, "--data", f"folder:{folder / 'data'}", "--out", str(folder / "run"), "--set", "epochs=8"]) == 0
    )
    return folder


def test_evaluation_goes_by_names(trained, capsys):
    scores = [
        json.loads(run(capsys, "evaluate", trained / "run", "--data", f"folder:{trained / name}", "--json"))
        for name in ("data", "other")
    ]
    assert scores[0]["miou"] > 0.4
    assert scores[1] == scores[0]


def test_other_names_are_refused_everywhere(trained, tmp_path, capsys):
    shutil.copytree(trained / "data", tmp_path / "data")
    (tmp_path / "data" / "classes.yaml").write_text("classes: [{name: ground}, {name: left}, {name: up}]")
    data = ["--data", f"folder:{tmp_path / 'data'}"]
    message = "missing right; not expected up"
    assert message in fail(capsys, "evaluate", trained / "run", *data)
    assert message in fail(capsys, *RETRAIN, *data, "--out", tmp_path / "out", "--teacher", trained / "run")
    resumed = [*RETRAIN, *data, "--out", trained / "run", "--set", "epochs=8", "--resume"]
    assert message in fail(capsys, *resumed)


def test_distillation_goes_by_names(trained, tmp_path, capsys):
    """The distillation loss of the first step is the same for the classes in another order."""
    first = []
    for name in ("data", "other"):
        arguments = [*RETRAIN, "--data", f"folder:{trained / name}", "--teacher", trained / "run"]
        run(capsys, *arguments, "--out", tmp_path / name, "--set", "epochs=1", "--set", "learning_rate=1e-9")
        first.append(RunFolder.open(tmp_path / name).records("step")[0])
    wrong = abs(first[0]["loss_distillation"] - first[1]["loss_distillation"])
    # The student's own classes begin with other random weights, so that only the teacher's share is equal.
    assert wrong < 0.2 * first[0]["loss_distillation"]


def test_a_teacher_that_would_teach_nothing_is_refused(trained, tmp_path, capsys):
    arguments = [*RETRAIN, "--data", f"folder:{trained / 'data'}", "--teacher", trained / "run"]
    message = fail(capsys, *arguments, "--out", tmp_path / "out", "--set", "distillation_weight=0")
    assert "distillation_weight is 0" in message
    assert not (tmp_path / "out").exists()


@pytest.fixture
def begun(trained, tmp_path):
    """A run of one epoch, as if it had been interrupted, and the command that continues it."""
    out = tmp_path / "begun"
    data = f"folder:{trained / 'data'}"
    assert main([*RETRAIN, "--data", data, "--out", str(out), "--set", "epochs=1"]) == 0
    return out, [*RETRAIN, "--out", str(out), "--set", "epochs=1", "--resume"]


def test_workers_and_a_moved_root_do_not_matter(trained, begun, tmp_path, capsys):
    _, resume = begun
    shutil.copytree(trained / "data", tmp_path / "moved")
    run(capsys, *resume, "--data", f"folder:{tmp_path / 'moved'}", "--set", "workers=1")


def test_the_classes_in_another_order_resume_the_same_run(trained, begun, capsys):
    out, resume = begun
    run(capsys, *resume, "--data", f"folder:{trained / 'other'}")
    assert RunFolder.open(out).configuration["classes"] == list(NAMES)


def test_other_images_and_another_number_of_processes_are_refused(trained, begun, tmp_path, capsys, monkeypatch):
    _, resume = begun
    shutil.copytree(trained / "data", tmp_path / "data")
    for folder in ("images", "labels"):
        (tmp_path / "data" / "train" / folder / "7.png").unlink()
    line = fail(capsys, *resume, "--data", f"folder:{tmp_path / 'data'}")
    assert "cannot resume" in line
    assert "images.train is" in line
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = fail(capsys, *resume, "--data", f"folder:{trained / 'data'}")
    assert "processes 1 in the run, now 2" in line
    monkeypatch.delenv("WORLD_SIZE")
    assert "retrain.learning_rate" in fail(
        capsys, *resume, "--data", f"folder:{trained / 'data'}", "--set", "learning_rate=0.01"
    )
