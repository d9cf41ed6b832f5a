"""The four jobs for a search of dilation rates, through the command line."""

import json

import pytest
import torch

from derive import Architecture, DilatedArchitecture
from derive.dilated.snapshots import snapshots
from dnas.cli import main
from dnas.files import dump_yaml
from dnas.ops import fractional_layers
from dnas.runs import RunFolder
from dnas.workflows.derivation import deriver_of_run
from dnas.workflows.networks import load_network
from scripts.papers.rates import main as rates_table
from search_spaces import load_space
from tests.priced import priced_table

SPACE = {
    "space": "regseg",
    "task": {"input_size": [64, 64], "num_classes": 6},
    "network": {
        "name": "regseg_small",
        "options": {"rates": [[1, 1], [1, 1]], "width": 32, "split_equal": True},
    },
    "rates": {"layers": "backbone.blocks.*.dilated.branches.*", "initial": 1.5, "upper": 4},
    "search": {"epochs": 2, "batch_size": 2, "architecture_learning_rate": 5.0, "keep_predictions": 2},
    "retrain": {"epochs": 1, "batch_size": 2},
}
DATA = {"dataset": "rectangles", "size": [64, 64], "images": {"train": 4, "val": 2, "test": 2}}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A searched, derived and retrained network."""
    folder = tmp_path_factory.mktemp("rates")
    (folder / "space.yaml").write_text(dump_yaml(SPACE))
    (folder / "data.yaml").write_text(dump_yaml(DATA))
    space, data = str(folder / "space.yaml"), str(folder / "data.yaml")
    options = ["--data", data, "--device", "cpu"]
    assert main(["search", space, *options, "--out", str(folder / "search")]) == 0
    assert main(["derive", str(folder / "search"), "--out", str(folder / "a.yaml")]) == 0
    assert main(["retrain", str(folder / "a.yaml"), *options, "--out", str(folder / "net")]) == 0
    return folder


def test_derive_tells_rates_as_json(jobs, capsys):
    assert main(["derive", str(jobs / "search"), "--out", str(jobs / "b.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {
        *("rule", "rates", "searched_rates", "field_of_view", "branches"),
        *("latency_ms", "target_ms", "measured_ms"),
    }
    assert (found["rule"], found["branches"], found["latency_ms"]) == ("paper", [], None)
    last = RunFolder.open(jobs / "search").records("epoch")[-1]
    assert list(found["rates"]) == list(found["searched_rates"]) == list(last["rates"])
    assert found["searched_rates"] == pytest.approx(last["rates"], abs=1e-4)
    architecture = Architecture.load(jobs / "b.yaml")
    assert isinstance(architecture, DilatedArchitecture)
    assert architecture.rates == found["rates"]
    assert architecture.field_of_view() == found["field_of_view"]
    assert (architecture.num_classes, architecture.input_size) == (6, (64, 64))
    assert (jobs / "a.yaml").read_bytes() == (jobs / "b.yaml").read_bytes()


def test_the_retrained_network_is_evaluated_and_measured(jobs, capsys):
    assert main(["evaluate", str(jobs / "net"), "--data", str(jobs / "data.yaml"), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["miou"] <= 1
    for network in (jobs / "net", jobs / "a.yaml"):
        assert main(["benchmark", str(network), "--seconds", "0.05", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["input_size"] == [64, 64]
        assert found["parameters"] > 0


def test_the_report_plots_the_rates(jobs):
    arguments = ["report", "--out", str(jobs / "r.html"), "--search", str(jobs / "search"), "--pictures"]
    assert main([*arguments, str(jobs / "pictures")]) == 0
    page = (jobs / "r.html").read_text()
    for title in ("Dilation rates", "Sampling positions", "Field of view", "blocks.1"):
        assert title in page
    names = {path.name for path in (jobs / "pictures").iterdir()}
    assert names >= {"rates.png", "sampling_positions.png", "growth.png", "derived.png"}
    run = RunFolder.open(jobs / "search")
    taken = snapshots(run, deriver_of_run(jobs / "search")[1].space)
    assert [(snapshot.epochs, snapshot.step, list(snapshot.predictions)) for snapshot in taken] == [
        (0, 0, [0, 1]),
        (1, 2, [0, 1]),
        (2, 4, [0, 1]),
    ]
    # There are two validation images, so the kept predictions are those that the log scores.
    scores = [record["miou"]["network"] for record in run.records("epoch")]
    assert [snapshot.miou for snapshot in taken[1:]] == pytest.approx(scores)
    assert all(0 <= snapshot.top_right <= 1 for snapshot in taken)
    both = ["report", "--out", str(jobs / "r2.html"), "--search", str(jobs / "search"), "--student", str(jobs / "net")]
    assert main(both) == 0


def test_a_searched_rate_can_cost_latency(jobs, capsys):
    space, table, run = str(jobs / "space.yaml"), str(jobs / "table.json"), str(jobs / "priced")
    quick = ["--rounds", "1", "--time-per-entry", "0.005", "--threads", "1"]
    assert main(["latency", "build", space, "--out", table, *quick]) == 0
    options = ["--data", str(jobs / "data.yaml"), "--device", "cpu", "--set", "search.epochs=1"]
    assert main(["search", space, *options, "--table", table, "--out", run]) == 0
    record = RunFolder.open(run).records("step")[0]
    assert record["latency_ms"] > 0
    capsys.readouterr()
    assert main(["derive", run, "--out", str(jobs / "p.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["latency_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--which", "teacher"], "holds no architecture named teacher"),
        (["--branches", "8"], "leave --branches out"),
        (["--rule", "published-code"], "expected paper"),
    ],
)
def test_what_such_a_search_has_not(jobs, capsys, arguments, message):
    assert main(["derive", str(jobs / "search"), "--out", str(jobs / "x.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (jobs / "x.yaml").exists()


def test_fasterseg_wants_a_table(tmp_path, capsys):
    assert main(["search", "fasterseg_demo", "--data", "streets", "--out", str(tmp_path / "run")]) == 2
    assert "give --table" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_rates_are_led_to_a_latency_target(jobs, capsys):
    """With a handmade table whose latencies equal the rates: rounding alone would miss the target."""
    space = load_space(str(jobs / "space.yaml"))
    priced_table(space, lambda spec: float(dict(spec.extras).get("dilation", 40))).save(jobs / "made.json")
    # Four rates from 1 to 4: latencies of 40 to 52 ms.
    options = ["--data", str(jobs / "data.yaml"), "--device", "cpu", "--table", str(jobs / "made.json")]
    for target in (41.0, 46.0):
        run = str(jobs / f"to_{target}")
        changes = ["--set", f"latency_target_ms={target}", "--set", "search.latency_weight=0"]
        command = ["search", str(jobs / "space.yaml"), *options, *changes]
        assert main([*command, "--out", run]) == 0
        capsys.readouterr()
        assert main(["derive", run, "--out", str(jobs / "t.yaml"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["target_ms"] == target
        assert found["latency_ms"] == pytest.approx(target, rel=0.05)
        records = RunFolder.open(run).records("step")
        weights = [record["latency_weight"] for record in records]
        assert max(weights) > 0 if target < 45 else min(weights) < 0
    assert main(["search", str(jobs / "space.yaml"), *options, "--set", "latency_target_ms=60", "--out", run]) == 2
    assert "slowest network of the space takes 52.000 ms" in capsys.readouterr().err
    without = ["--data", str(jobs / "data.yaml"), "--set", "latency_target_ms=41", "--out", str(jobs / "none")]
    assert main(["search", str(jobs / "space.yaml"), *without]) == 2
    assert "no latency table" in capsys.readouterr().err


def test_the_search_itself_is_evaluated_with_fractional_and_with_rounded_rates(jobs, capsys):
    """RegSeg v3, Table 5. With the searched rates this is what the search logged after its last epoch."""
    command = ["evaluate", str(jobs / "search"), "--data", str(jobs / "data.yaml"), "--device", "cpu", "--json"]
    assert main(command) == 0
    logged = RunFolder.open(jobs / "search").records("epoch")[-1]["miou"]["network"]
    assert json.loads(capsys.readouterr().out)["miou"] == pytest.approx(logged)
    searched = load_network(str(jobs / "search")).network
    rounded = load_network(str(jobs / "search"), rounded=True).network
    assert dict(fractional_layers(searched))
    assert not dict(fractional_layers(rounded))
    rates = Architecture.load(jobs / "a.yaml").rates
    assert {name: rounded.get_submodule(name).dilation for name in rates} == {n: (r, r) for n, r in rates.items()}
    torch.testing.assert_close(*(network.get_submodule(next(iter(rates))).weight for network in (searched, rounded)))
    found = {}
    for kind in ("searched", "rounded"):
        assert main([*command, "--rates", kind]) == 0
        capsys.readouterr()
        assert main(["benchmark", str(jobs / "search"), "--rates", kind, "--seconds", "0.02", "--json"]) == 0
        found[kind] = json.loads(capsys.readouterr().out)
    assert found["searched"]["input_size"] == [64, 64]
    assert found["searched"]["parameters"] == found["rounded"]["parameters"] + len(rates)
    assert main([*command, "--rates", "integer"]) == 2
    assert "expected searched or rounded" in capsys.readouterr().err


def test_table_5_of_the_paper_from_a_search_and_a_retraining(jobs, capsys):
    command = [str(jobs / "search"), "--data", str(jobs / "data.yaml"), "--device", "cpu", "--seconds", "0.02"]
    assert rates_table([*command, "--retrained", str(jobs / "net")]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["fractional rates", "rounded, same weights", "rounded, retrained"]
    logged = RunFolder.open(jobs / "search").records("epoch")[-1]["miou"]["network"]
    assert float(rows[0][1]) == pytest.approx(100 * logged, abs=0.005)
    assert "at 18 FPS" in rows[0][3]
    assert rates_table([str(jobs / "none"), *command[1:]]) == 2
    assert capsys.readouterr().err.count("\n") == 1
