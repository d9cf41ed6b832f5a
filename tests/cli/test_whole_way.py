"""``dnas init`` and ``dnas auto``: the plan, its commands, and going on after an interruption."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer.main
from PIL import Image

from dnas.cli import main
from dnas.cli.main import app
from dnas.data import load_data_config
from dnas.errors import UserError
from dnas.workflows import planning
from dnas.workflows.planning import PlanRequest, make_plan, working_size
from dnas.workflows.schedule import Costs
from search_spaces import load_space
from tests.priced import priced_table

COSTS = Costs(entry=0.02, read=0.01, image=0.01, step=0.2, score=0.01, judge=0.005)
DATA = ["streets", "--data-set", "images={train: 12, val: 4}", "--space", "fasterseg_demo_gradient"]


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(planning, "measure_costs", lambda *_, **__: COSTS)


def plan(**values):
    config = load_data_config("streets", ["images={train: 12, val: 4}"])
    request = {"data": "streets", "config": config, "device": "cpu", "space": "fasterseg_demo_gradient", **values}
    return make_plan(PlanRequest(**request))


def test_the_plan_fits_data_budget_and_time():
    found = plan(budget_ms=7.5, time_s=3600.0).space
    assert found.input_size == (128, 256)
    assert found.num_classes == 11
    assert found.settings.latency_target_ms == 7.5
    assert found.search.batch_size <= 6
    assert found.retrain.batch_size <= 12
    assert found.retrain.augmentation.crop == (128, 256)
    short = plan(time_s=4.0).space
    assert short.settings.latency_target_ms is None
    assert short.retrain.epochs < found.retrain.epochs
    assert short.search.epochs <= found.search.epochs
    assert short.search.pretrain_epochs >= 1


def test_every_setting_of_the_data_is_given_once_and_that_of_the_user_stays():
    given = ("images={train: 12, val: 4}", "size=[96,192]", "cache=false")
    found = plan(config=load_data_config("streets", list(given)), data_settings=given).data_settings
    assert sorted(found) == ["cache=false", "images={train: 12, val: 4}", "size=[96,192]"]


def test_many_images_are_kept_on_a_disk_with_room(monkeypatch):
    cityscapes, size = load_data_config("cityscapes:DIR"), (1024, 2048)

    def cache(config, training, free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        return planning.choose_cache(config, training, 500, size)

    assert cache(cityscapes, 200, 0) == "true"
    assert cache(cityscapes, 2975, 60 * 10**9) == "disk"
    assert cache(cityscapes, 2975, 50 * 10**9) == "false"
    assert cache(load_data_config("streets"), 2975, 60 * 10**9) == "false"


@pytest.mark.parametrize(
    ("native", "most", "expected"),
    [
        ((360, 480), 240 * 320, (256, 320)),
        ((1024, 2048), 1024 * 2048, (1024, 2048)),
        ((3000, 4000), 240 * 320, (256, 320)),
        ((20, 500), 240 * 320, (64, 512)),
    ],
)
def test_the_working_size_keeps_the_shape(native, most, expected):
    assert working_size(native, most) == expected


def test_every_command_of_the_plan_is_one(tmp_path):
    """Options and arguments of each are accepted by its parser."""
    commands = plan(budget_ms=5.0).commands(tmp_path)
    assert [words[0] for words in commands] == [
        *("data", "latency", "search", "derive", "retrain", "derive", "retrain", "export", "report")
    ]
    for words in commands:
        command, rest = typer.main.get_command(app), list(words)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        (tmp_path / "table.json").touch()
        command.make_context("dnas", rest)


def test_a_space_without_a_teacher_has_one_network(tmp_path):
    """It is derived and trained once; a space of another kind of search is refused in one line."""
    commands = plan(space="dwrseg_camvid_small").commands(tmp_path)
    assert [words[0] for words in commands] == ["data", "latency", "search", "derive", "retrain", "export", "report"]
    assert commands[3][-2:] == ["--which", "network"]
    assert not any("--teacher" in words for words in commands)
    with pytest.raises(UserError, match="regseg_demo: the whole way needs a search that holds"):
        plan(space="regseg_demo")


def test_a_search_that_judges_networks_trains_no_teacher(tmp_path):
    """Few images make small batches, and little time judges the fewest networks."""
    found = plan(space="fasterseg_camvid_small", time_s=60.0, budget_ms=7.5)
    search = found.space.search
    assert search.method == "estimator"
    assert search.judged_networks == 50
    assert search.epochs <= 10
    assert search.batch_size == 8
    assert found.space.retrain.warm_up_steps <= 50
    assert list(found.networks()) == ["student"]
    assert "teacher" not in str(found.commands(tmp_path))


def test_the_written_file_is_the_space_with_its_commands(tmp_path: Path, capsys):
    path = tmp_path / "space.yaml"
    assert main(["init", *DATA, "--out", str(path), "--budget-ms", "6"]) == 0
    text = path.read_text()
    assert text.count("#   dnas ") == 9
    assert "# The latency that the student is led to, in ms" in text
    assert load_space(str(path)).settings.latency_target_ms == 6
    assert main(["init", *DATA, "--out", str(path)]) == 2
    assert main(["init", *DATA, "--out", str(tmp_path / "space")]) == 2
    assert "expected the name of a YAML file" in capsys.readouterr().err


SPACE = """
space: fasterseg
task: {input_size: [64, 64], num_classes: 6}
# A comment that stays.
latency_target_ms: 2.5
branch_selection: {reference_ms: 1.0}
network: {layers: 4, ratios: [1, 2], student_ratio: 1, teacher_ratio: 2}
search: {pretrain_epochs: 1, search_epochs: 1, batch_size: 2, validation_images: 2}
"""


def written(folder: Path, target: str = "2.5") -> tuple[Path, Path]:
    """A small space with a target, and a table in which every operator takes 0.1 ms."""
    space, table = folder / "space.yaml", folder / "table.json"
    space.write_text(SPACE.replace("2.5", target))
    priced_table(load_space(str(space)), lambda _: 0.1).save(table)
    return space, table


def test_a_budget_that_every_network_meets_is_no_target(tmp_path: Path):
    """The file keeps all but its target; a budget within the space's latencies changes nothing."""
    space, table = written(tmp_path, "100")
    text = space.read_text()
    line = planning.fit_budget(space, table)
    assert line is not None
    assert line.startswith("budget of 100 ms: the slowest network of the space takes 1.300 ms")
    assert space.read_text() == text.replace("latency_target_ms: 100", "latency_target_ms: null")
    assert load_space(str(space)).settings.latency_target_ms is None
    assert planning.fit_budget(space, table) is None
    space.write_text(SPACE.replace("2.5", "0.6"))
    assert planning.fit_budget(space, table) is None
    assert "latency_target_ms: 0.6" in space.read_text()


def test_a_budget_below_the_fastest_network_ends_before_the_search(tmp_path: Path, monkeypatch, capsys):
    """One line names the fastest latency; with a larger target in the file the next call goes on with the search."""
    out, ran = tmp_path / "out", []

    def fake(words):
        ran.append(words[0])
        if words[0] == "latency":
            written(out, "0.05")
        return 0

    monkeypatch.setattr(sys.modules["dnas.cli.main"], "main", fake)
    assert main(["auto", *DATA, "--out", str(out), "--budget-ms", "0.05"]) == 2
    assert ran == ["data", "latency"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "budget of 0.05 ms: the fastest network of the space takes 0." in last
    space = out / "space.yaml"
    space.write_text(space.read_text().replace("0.05", "0.6"))
    assert main(["auto", *DATA, "--out", str(out), "--resume"]) == 0
    assert ran[2] == "search"


def test_a_step_that_fails_stops_and_the_next_call_goes_on_with_it(tmp_path: Path, monkeypatch, capsys):
    ran: list[list[str]] = []
    failing = {"derive"}

    def fake(words):
        ran.append(list(words))
        return 2 if words[0] in failing else 0

    monkeypatch.setattr(sys.modules["dnas.cli.main"], "main", fake)
    out = tmp_path / "out"
    assert main(["auto", *DATA, "--out", str(out)]) == 2
    assert [words[0] for words in ran] == ["data", "latency", "search", "derive"]
    assert "stopped at step 4 of 9" in capsys.readouterr().err
    assert main(["auto", *DATA, "--out", str(out)]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    failing.clear()
    ran.clear()
    assert main(["auto", *DATA, "--out", str(out), "--resume"]) == 0
    assert [words[0] for words in ran] == ["derive", "retrain", "derive", "retrain", "export", "report"]
    assert not any("--resume" in words for words in ran)


def test_a_search_that_was_interrupted_is_resumed(tmp_path: Path, monkeypatch):
    ran: list[list[str]] = []

    def fake(words):
        ran.append(list(words))
        return 130 if words[0] == "search" and "--resume" not in words else 0

    monkeypatch.setattr(sys.modules["dnas.cli.main"], "main", fake)
    assert main(["auto", *DATA, "--out", str(tmp_path / "out")]) == 130
    ran.clear()
    assert main(["auto", *DATA, "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert ran[0][0] == "search"
    assert ran[0][-1] == "--resume"
    assert sum("--resume" in words for words in ran) == 1


def test_a_folder_as_it_is_will_do(tmp_path: Path, monkeypatch):
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 2, (64, 96), dtype=np.uint8)
        for folder, content in (("images", pixels * 90), ("masks", pixels)):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).convert("RGB" if folder == "images" else "L").save(
                tmp_path / "set" / folder / f"{n}.png"
            )
    ran: list[list[str]] = []
    monkeypatch.setattr(sys.modules["dnas.cli.main"], "main", lambda words: ran.append(list(words)) or 0)
    command = ["auto", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--space", "fasterseg_demo_gradient"]
    assert main(command) == 0
    assert ran[0][2] == str(tmp_path / "out" / "data" / "data.yaml")
    assert load_space(str(tmp_path / "out" / "space.yaml")).num_classes == 2
