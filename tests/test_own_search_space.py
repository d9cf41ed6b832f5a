"""docs/own_search_space.md does what it says: its code, its files and its commands, from its own text."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from derive import Architecture, deriver_of
from dnas.cli import main
from dnas.files import dump_yaml
from dnas.latency import LatencyTable
from search_spaces import load_space, space_names

TEXT = (Path(__file__).parents[1] / "docs" / "own_search_space.md").read_text()
DATA = {"dataset": "rectangles", "size": [64, 64], "images": {"train": 16, "val": 2, "test": 2}}
MORE = {
    "latency build": ["--rounds", "1", "--time-per-entry", "0.001", "--threads", "1"],
    "latency check": ["--rounds", "1", "--time-per-network", "0.01"],
    "search": ["--device", "cpu"],
    "retrain": ["--device", "cpu"],
    "report": ["--networks", "2"],
}


def block(language, number=0):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)[number]


def commands():
    text = re.search(r"```\n(dnas .*?)```", TEXT, re.DOTALL).group(1)
    return [shlex.split(line)[1:] for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the document, installed as a package."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "inverted.py").write_text(block("python"))
    (folder / "inverted.yaml").write_text(block("yaml"))
    (folder / "data.yaml").write_text(dump_yaml(DATA))
    group, entry = re.search(r'entry-points\."(.*?)"\]\n(.*)\n', block("toml")).groups()
    info = folder / "inverted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inverted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("inverted", None)


@pytest.fixture(scope="module")
def done(folder):
    """The results of all commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands():
            name = words[0] if words[0] != "latency" else f"latency {words[1]}"
            if name == "search":
                space, table = load_space("inverted.yaml"), LatencyTable.load("table.json")
                fastest, slowest = deriver_of(space).latency_bounds(table)["logits"]
                target = fastest + 0.4 * (slowest - fastest)
            given = [word.replace("TARGET", str(target)) if "TARGET" in word else word for word in words]
            given = ["data.yaml" if word == "rectangles" else word for word in given]
            assert main([*given, *MORE.get(name, [])]) == 0, words
    return folder, target


def test_the_space_has_at_most_80_lines():
    assert len(block("python").splitlines()) + len(block("toml").splitlines()) + len(block("yaml").splitlines()) <= 80


def test_it_is_known_by_its_entry_point(folder):
    assert "inverted" in space_names()


def test_every_command_does_its_job(done):
    folder, target = done
    architecture = Architecture.load(folder / "architecture.yaml")
    assert architecture.kind == "choices"
    space, table = load_space(str(folder / "inverted.yaml")), LatencyTable.load(folder / "table.json")
    deriver = deriver_of(space)
    assert deriver.predict_ms(architecture, table) == pytest.approx(target, rel=0.05)
    signatures = architecture.signatures(space.num_classes, space.input_size)
    assert sum(map(table.lookup, signatures)) == pytest.approx(deriver.predict_ms(architecture, table))
    assert (folder / "network.onnx").stat().st_size > 0
    page = (folder / "report.html").read_text()
    for text in ("Choices", "width_0", "target (ms)"):
        assert text in page
    weights = {
        json.loads(line).get("latency_weight") for line in (folder / "search/log.jsonl").read_text().splitlines()
    }
    assert len(weights) > 3  # the controller changes it


def test_the_other_method_does_its_job(done):
    """With the settings of the document, but shorter."""
    folder, target = done
    preset = {**yaml.safe_load(block("yaml")), **yaml.safe_load(block("yaml", 1)), "latency_target_ms": target}
    preset["search"] |= {"epochs": 1, "judged_networks": 50, "judge_images": 2, "candidates": 2}
    (folder / "estimator.yaml").write_text(dump_yaml(preset))
    words = ["--data", "data.yaml", "--table", "table.json", "--out", "estimator", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["search", "estimator.yaml", *words]) == 0
        assert main(["derive", "estimator", "--out", "other.yaml"]) == 0
    architecture = Architecture.load(folder / "other.yaml")
    space, table = load_space(str(folder / "inverted.yaml")), LatencyTable.load(folder / "table.json")
    assert deriver_of(space).predict_ms(architecture, table) == pytest.approx(target, rel=0.05)
    assert float(architecture.provenance["supernet_miou"]) > 0


def test_a_network_with_inherited_weights_is_the_supernet_s(done):
    folder, _ = done
    space, table = load_space(str(folder / "inverted.yaml")), LatencyTable.load(folder / "table.json")
    deriver = deriver_of(space)
    problem = space.problem(table, seed=0)
    problem.weights.double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for architecture in deriver.draw(3, seed=1):
        network = deriver.inherit(problem, architecture)
        indices = architecture.indices(space)
        with torch.no_grad():
            expected = problem.weights(images, problem.network.one_hot(indices))
            torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-9)
        assert {n: p.shape for n, p in architecture.build(space.num_classes).named_parameters()} == {
            n: p.shape for n, p in network.named_parameters()
        }


def test_mistakes_in_an_architecture_file_are_one_line(done, capsys):
    folder, _ = done
    text = (folder / "architecture.yaml").read_text()
    for old, new, message in (
        ("space_version: 1", "space_version: 2", "the installed space inverted has version 1"),
        ("depth_0: ", "depth_9: ", "unknown choice"),
        ("depth_0: ", "depth_0: 1", "expected one of 0, 1, 2"),
    ):
        (folder / "wrong.yaml").write_text(text.replace(old, new, 1))
        capsys.readouterr()
        assert main(["benchmark", str(folder / "wrong.yaml")]) == 2
        assert message in capsys.readouterr().err
