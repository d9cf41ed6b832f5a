"""A space of choices, ESeg's, through the commands to the end: candidates, retraining, export and report."""

import json

import onnx
import pytest

from derive import Architecture, Judge
from dnas.cli import main
from dnas.files import dump_yaml
from dnas.latency import LatencyTable
from dnas.workflows.derivation import deriver_of_run
from search_spaces import load_space

SPACE = {
    "space": "eseg",
    "task": {"input_size": [64, 64], "num_classes": 6},
    "network": {
        "widths": [[8, 16], [16], [24], [32]],
        "depths": [1, 1, 2, 1],
        "expansions": [2],
        "coarsest": [5, 6],
        "repeats": 1,
        "pyramid_widths": [16, 24],
    },
    "search": {
        "pretrain_epochs": 0,
        "search_epochs": 1,
        "batch_size": 4,
        "search_passes": ["sampled"],
        "kinds": {
            "expansion": {"sampler": "gumbel"},
            **{kind: {"sampler": "single_path"} for kind in ("levels", "link", "repeats")},
        },
    },
    "retrain": {"epochs": 1, "batch_size": 4, "warm_up_steps": 0},
}
DATA = {"dataset": "rectangles", "size": [64, 64], "images": {"train": 16, "val": 2, "test": 2}}


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eseg")
    (folder / "space.yaml").write_text(dump_yaml(SPACE))
    (folder / "data.yaml").write_text(dump_yaml(DATA))
    space, table, data = (str(folder / name) for name in ("space.yaml", "t.json", "data.yaml"))
    quick = ["--rounds", "1", "--time-per-entry", "0.001", "--threads", "1"]
    assert main(["latency", "build", space, "--out", table, *quick]) == 0
    search = ["search", space, "--data", data, "--table", table, "--out", str(folder / "search"), "--device", "cpu"]
    assert main(search) == 0
    return folder


def test_candidates_are_judged_by_the_supernet(folder, capsys):
    """The best by mIoU is derived, and a target is met with a proof."""
    command = ["derive", folder / "search", "--out", folder / "a.yaml", "--candidates", "3", "--device", "cpu"]
    found = json.loads(run(capsys, *command, "--json"))
    assert found["candidates"] == 3
    assert found["proven"] is None
    architecture = Architecture.load(folder / "a.yaml")
    assert architecture.provenance["candidates"] == "3"
    opened, deriver = deriver_of_run(folder / "search")
    judge = Judge.of_run(opened, deriver, LatencyTable.load(folder / "t.json"), device="cpu")
    assert judge.miou([architecture], "again", [{}]) == [found["supernet_miou"]]
    target = ["--target", str(found["latency_ms"]), "--out", folder / "b.yaml"]
    near = json.loads(run(capsys, "derive", folder / "search", *target, "--device", "cpu", "--json"))
    assert near["proven"] is True
    assert near["latency_ms"] == pytest.approx(found["latency_ms"], rel=0.05)


def test_retraining_export_and_report(folder, capsys):
    """To a file that computes what PyTorch does, and one page about the search and its network."""
    architecture, network = folder / "c.yaml", folder / "network"
    run(capsys, "derive", folder / "search", "--out", architecture)
    data = ["--data", folder / "data.yaml", "--device", "cpu"]
    run(capsys, "retrain", architecture, *data, "--out", network, "--inherit")
    run(capsys, "export", network, "--format", "onnx", "--out", folder / "network.onnx")
    shape = onnx.load(str(folder / "network.onnx")).graph.output[0].type.tensor_type.shape
    assert [size.dim_value for size in shape.dim] == [1, load_space(str(folder / "space.yaml")).num_classes, 64, 64]
    scored = [
        json.loads(run(capsys, "evaluate", model, *data, "--json")) for model in (network, folder / "network.onnx")
    ]
    assert scored[0]["miou"] == pytest.approx(scored[1]["miou"], abs=1e-3)
    run(
        capsys,
        *("report", "--out", folder / "r.html", "--search", folder / "search", "--student", network),
        *("--networks", "0", "--examples", "1"),
    )
    page = (folder / "r.html").read_text()
    for heading in ("Search", "Choices", "Derived architecture", "Retraining"):
        assert heading in page
