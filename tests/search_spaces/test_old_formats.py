"""Configurations, overrides and run folders of earlier versions are understood."""

import pytest

from dnas.cli import main
from dnas.errors import OldFormatWarning
from dnas.files import dump_yaml, read_yaml
from dnas.search.optim import SupernetSGD
from search_spaces import load_space, space_from
from search_spaces.fasterseg import FasterSegSpace
from search_spaces.old_formats import upgraded, upgraded_overrides

OLD = {
    "space": "fasterseg",
    "target": {"input_size": [64, 64], "num_classes": 6, "target_ms": None, "select_ms": 1.0, "select_exponent": -0.1},
    "network": {"layers": 4, "ratios": [1, 2], "student_ratio": 1, "teacher_ratio": 2},
    "search": {
        "pretrain_epochs": 0,
        "search_epochs": 1,
        "batch_size": 2,
        "validation_images": 1,
        "join_passes": False,
        "passes_at_once": 2,
    },
}
DATA = {"dataset": "rectangles", "size": [64, 64], "images": {"train": 4, "val": 1}}


def test_every_old_key_has_its_place():
    values, notes = upgraded(OLD)
    assert values["task"] == {"input_size": [64, 64], "num_classes": 6}
    assert values["branch_selection"] == {"reference_ms": 1.0, "exponent": -0.1}
    assert values["latency_target_ms"] is None
    assert "target" not in values
    assert values["search"]["batch_equal_passes"] is False
    assert len(notes) == 7
    assert upgraded(values) == (values, [])


def test_old_files_and_overrides_are_read_with_a_note(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(dump_yaml(OLD))
    with pytest.warns(
        OldFormatWarning, match=r"target.select_ms was renamed to branch_selection.reference_ms"
    ) as notes:
        space = load_space(str(path), ["target.target_ms=3.0", "search.passes_at_once=1"])
    assert "search.passes_at_once is ignored" in str(notes[0].message)
    assert isinstance(space, FasterSegSpace)
    assert space.settings.latency_target_ms == 3.0
    assert upgraded_overrides(["a.b=1"]) == (["a.b=1"], [])


def test_a_typo_is_still_an_error():
    values = {**OLD, "target": {**OLD["target"], "target_msec": 3}}
    with pytest.raises(Exception, match="target: unknown key"):
        space_from(values, "x")


def test_an_old_run_is_derived_and_resumed(tmp_path, capsys):
    space, data, table, run = (tmp_path / name for name in ("space.yaml", "data.yaml", "t.json", "run"))
    space.write_text(dump_yaml(upgraded(OLD)[0]))
    data.write_text(dump_yaml(DATA))
    quick = ["--rounds", "1", "--time-per-entry", "0.001", "--threads", "1"]
    assert main(["latency", "build", str(space), "--out", str(table), *quick]) == 0
    search = ["search", str(space), "--data", str(data), "--table", str(table), "--out", str(run), "--device", "cpu"]
    assert main(search) == 0
    configuration = read_yaml(run / "configuration.yaml", "configuration")
    # As it was written before: other names, and keys that are gone.
    inner = configuration["space"]
    del inner["task"]["channels"]
    inner["target"] = {**inner.pop("task"), "target_ms": inner.pop("latency_target_ms")}
    selection = inner.pop("branch_selection")
    inner["target"] |= {"select_ms": selection["reference_ms"], "select_exponent": selection["exponent"]}
    inner["search"] = {
        **inner["search"],
        "join_passes": inner["search"].pop("batch_equal_passes"),
        "passes_at_once": None,
    }
    (run / "configuration.yaml").write_text(dump_yaml(configuration))
    assert main(["derive", str(run), "--out", str(tmp_path / "a.yaml")]) == 0
    capsys.readouterr()
    assert main([*search, "--resume"]) == 0
    assert "searched 1 epochs" in capsys.readouterr().err
    assert "task" in read_yaml(run / "configuration.yaml", "configuration")["space"]


def test_the_note_is_one_line_of_the_command_line(tmp_path, capsys):
    command = ["search", "fasterseg_demo", "--data", "streets", "--out", str(tmp_path / "r")]
    assert main([*command, "--set", "target.target_ms=3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dnas: note: fasterseg_demo: target.target_ms was renamed to latency_target_ms"
    assert len(lines) == 2


def test_the_optimiser_s_state_of_an_earlier_version():
    from dnas.ops import SuperConvBlock

    network = SuperConvBlock(4, (2, 6), depth=1)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "split_bf16": True}
    optimizer = SupernetSGD(network, **options)
    state = optimizer.state_dict()
    buffers = dict(enumerate({"momentum_buffer": values + 1} for values in state["others"]))
    old = {"superkernels": state["superkernels"], "rests": state["low_bits"], "others": {"state": buffers}}
    optimizer.load_state_dict(old)
    assert all((values == 1).all() for values in optimizer.state_dict()["others"])
