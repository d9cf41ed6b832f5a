"""An external search space, known only by its entry points, through all commands."""

import json
import sys
from pathlib import Path

import pytest
import torch

from derive import Architecture, deriver_of
from dnas.cli import main
from dnas.files import dump_yaml
from dnas.latency import LatencyTable
from search_spaces import load_space, space_names

PLUGIN = Path(__file__).parents[1] / "plugin"
SPACE = {
    "space": "stacked",
    "task": {"input_size": [64, 64], "num_classes": 6},
    "search": {"pretrain_epochs": 1, "search_epochs": 2, "batch_size": 2, "architecture_learning_rate": 0.2},
    "retrain": {"epochs": 1, "batch_size": 2},
}
DATA = {"dataset": "rectangles", "size": [64, 64], "images": {"train": 8, "val": 2, "test": 2}}


@pytest.fixture(autouse=True, scope="module")
def plugin():
    """Makes the package importable as if it were installed."""
    sys.path.insert(0, str(PLUGIN))
    yield
    sys.path.remove(str(PLUGIN))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table, a search with a latency target in the middle of the space's range, and a retrained network."""
    folder = tmp_path_factory.mktemp("stacked")
    (folder / "data.yaml").write_text(dump_yaml(DATA))
    (folder / "free.yaml").write_text(dump_yaml(SPACE))
    quick = ["--rounds", "2", "--time-per-entry", "0.005", "--threads", "1"]
    assert main(["latency", "build", str(folder / "free.yaml"), "--out", str(folder / "t.json"), *quick]) == 0
    space, table = load_space(str(folder / "free.yaml")), LatencyTable.load(folder / "t.json")
    fastest, slowest = deriver_of(space).latency_bounds(table)["logits"]
    (folder / "space.yaml").write_text(dump_yaml({**SPACE, "latency_target_ms": (fastest + slowest) / 2}))
    options = ["--data", str(folder / "data.yaml"), "--device", "cpu"]
    search = ["search", str(folder / "space.yaml"), *options, "--table", str(folder / "t.json")]
    assert main([*search, "--out", str(folder / "run")]) == 0
    assert main(["derive", str(folder / "run"), "--out", str(folder / "a.yaml")]) == 0
    assert main(["retrain", str(folder / "a.yaml"), *options, "--out", str(folder / "net")]) == 0
    return folder


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_is_listed_beside_the_others():
    assert space_names() == ("dwrseg", "dwrseg_modules", "eseg", "fasterseg", "fasterseg_dilated", "regseg", "stacked")


def test_the_derived_network_is_led_to_the_target(folder, capsys):
    found = printed(capsys, "derive", folder / "run", "--out", folder / "b.yaml", "--json")
    bounds = deriver_of(load_space(str(folder / "free.yaml"))).latency_bounds(LatencyTable.load(folder / "t.json"))
    assert found["target_ms"] == pytest.approx(sum(bounds["logits"]) / 2)
    assert bounds["logits"][0] < found["latency_ms"] < bounds["logits"][1]
    assert Architecture.load(folder / "b.yaml").kind == "stacked"
    steps = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    weights = {step["latency_weight"] for step in steps if step.get("phase") == "search" and step["kind"] == "step"}
    assert len(weights) > 1  # the controller changes it


def test_it_is_scored_exported_and_checked(folder, capsys):
    found = printed(capsys, "evaluate", folder / "net", "--data", folder / "data.yaml", "--json")
    assert 0 <= found["miou"] <= 1
    capsys.readouterr()
    assert main(["export", str(folder / "net"), "--out", str(folder / "net.onnx")]) == 0
    quick = ["--rounds", "1", "--time-per-network", "0.01"]
    checked = printed(
        capsys, "latency", "check", folder / "t.json", folder / "space.yaml", "--networks", "4", *quick, "--json"
    )
    assert checked["networks"] == 4


def test_the_report_shows_search_and_network(folder):
    arguments = ["report", "--search", folder / "run", "--student", folder / "net", "--networks", "3"]
    arguments += ["--out", folder / "r.html", "--pictures", folder / "pictures"]
    assert main([str(argument) for argument in arguments]) == 0
    page = (folder / "r.html").read_text()
    for text in ("Search", "Derived architecture", "5x5", "target (ms)"):
        assert text in page
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert {"search.png", "architecture_student.png"} <= names


def test_random_networks_within_a_range_of_latencies(folder):
    table = LatencyTable.load(folder / "t.json")
    deriver = deriver_of(load_space(str(folder / "free.yaml")))
    fastest, slowest = deriver.latency_bounds(table)["logits"]
    middle = (fastest, (fastest + slowest) / 2)
    found = deriver.random_architectures(4, 0, middle, table)
    assert len({architecture.kernels for architecture in found}) == 4
    assert all(middle[0] <= deriver.predict_ms(architecture, table) <= middle[1] for architecture in found)


def test_a_network_with_inherited_weights_is_the_supernet_s(folder):
    deriver = deriver_of(load_space(str(folder / "free.yaml")))
    problem = deriver.space.problem(LatencyTable.load(folder / "t.json"), seed=0)
    architecture = deriver.draw(1, 3)[0]
    one_hot = torch.tensor([[float(k == kernel) for k in (1, 3, 5)] for kernel in architecture.kernels])
    images = torch.randn(2, 3, 64, 64)
    network = deriver.inherit(problem, architecture).eval()
    problem.weights.eval()
    torch.testing.assert_close(network(images), problem.weights(images, one_hot))


def test_a_space_without_its_other_half_is_told(folder, capsys, monkeypatch):
    monkeypatch.setattr("derive.registry.DERIVER_ENTRY_POINTS", "nowhere")
    arguments = ["derive", str(folder / "run"), "--out", str(folder / "c.yaml")]
    assert main(arguments) == 2
    assert "has no entry point stacked in the group nowhere" in capsys.readouterr().err
