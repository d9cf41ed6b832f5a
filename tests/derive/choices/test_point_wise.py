"""DWRSeg's study through the commands: search, report with the distributions of the point-wise weights, derivation."""

import pytest
import torch

from derive import Architecture
from derive.choices.point_wise import branch_weights
from dnas.cli import main
from dnas.files import dump_yaml

SPACE = {
    "space": "dwrseg",
    "task": {"input_size": [64, 64], "num_classes": 6},
    "network": {"modules": [1, 1, 1], "rates": [1, 3], "width": 0.25},
    "search": {
        "pretrain_epochs": 0,
        "search_epochs": 1,
        "batch_size": 4,
        "search_passes": ["sampled"],
        "pretrain_passes": ["sampled"],
    },
}
DATA = {"dataset": "rectangles", "size": [64, 64], "images": {"train": 16, "val": 2, "test": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dwrseg")
    (folder / "space.yaml").write_text(dump_yaml(SPACE))
    (folder / "data.yaml").write_text(dump_yaml(DATA))
    space, table = str(folder / "space.yaml"), str(folder / "t.json")
    quick = ["--rounds", "1", "--time-per-entry", "0.001", "--threads", "1"]
    search = ["--data", str(folder / "data.yaml"), "--table", table, "--out", str(folder / "run"), "--device", "cpu"]
    assert main(["latency", "build", space, "--out", table, *quick]) == 0
    assert main(["search", space, *search]) == 0
    return folder


def test_the_report_shows_the_weights_of_every_stage_and_branch(folder):
    arguments = ["--search", str(folder / "run"), "--networks", "0", "--out", str(folder / "r.html")]
    assert main(["report", *arguments, "--pictures", str(folder / "pictures")]) == 0
    page = (folder / "r.html").read_text()
    for text in ("Point-wise weights by branch", "low stage, 1/8", "high stage, 1/32", "Mean absolute weight"):
        assert text in page
    assert (folder / "pictures" / "point_wise_weights.png").exists()


def test_the_derived_network_keeps_the_likeliest_branches(folder):
    assert main(["derive", str(folder / "run"), "--out", str(folder / "a.yaml")]) == 0
    found = Architecture.load(folder / "a.yaml")
    assert set(found.options) == {"stage8", "stage16", "stage32"}
    network = found.build(6)
    kept = {name.split(".")[4] for name, _ in network.named_parameters() if ".branches." in name}
    assert kept == {rate for option in found.options.values() for rate in option.split("+")}


def test_weights_are_scaled_by_their_norm():
    name = "network.stages.1.2.branches.3"
    weights = {f"{name}.point_wise.weight": torch.tensor([[1.0, -2.0], [3.0, 4.0]])[:, :, None, None]}
    weights[f"{name}.norm.weight"] = torch.tensor([2.0, -1.0])
    assert branch_weights(weights)[1][3].tolist() == [2.0, 2.0, 6.0, 4.0]
