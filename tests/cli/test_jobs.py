"""The four jobs through the command line on small data, and the messages of all commands for user errors."""

import json
import os
import shutil

import onnx
import pytest

from derive import Architecture
from derive.multi_branch import latency_bounds
from dnas.cli import main
from dnas.latency import LatencyTable
from search_spaces import load_space

DATA = ["--data", "streets", "--data-set", "size=[64,96]", "--data-set", "images={train: 12, val: 4, test: 4}"]
SPACE = """
space: fasterseg
task: {input_size: [64, 96], num_classes: 11}
branch_selection: {reference_ms: 1.0}
network: {layers: 4, ratios: [1, 2], student_ratio: 1, teacher_ratio: 2}
search:
  pretrain_epochs: 1
  search_epochs: 1
  batch_size: 3
  architecture_learning_rate: 0.02
  validation_images: 2
retrain: {epochs: 2, batch_size: 4, learning_rate: 0.02}
"""


def run(capsys, *arguments):
    """Run a command that must succeed; returns what it printed on standard output."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def fail(capsys, *arguments):
    """Run a command that must fail with a user error; returns its one-line message."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("dnas: ")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A folder with the results of the four jobs."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "space.yaml").write_text(SPACE)
    space, table = str(folder / "space.yaml"), str(folder / "table.json")
    measure = ["--rounds", "1", "--time-per-entry", "0.001", "--threads", "1"]
    commands = [
        ["latency", "build", space, "--out", table, *measure],
        ["search", space, *DATA, "--table", table, "--out", str(folder / "search"), "--device", "cpu"],
    ]
    for which, teacher in (("teacher", []), ("student", ["--teacher", str(folder / "teacher")])):
        architecture, out = str(folder / f"{which}.yaml"), str(folder / which)
        commands += [
            ["derive", str(folder / "search"), "--out", architecture, "--which", which],
            ["retrain", architecture, *DATA, "--out", out, "--device", "cpu", *teacher],
        ]
    for command in commands:
        assert main(command) == 0, command
    return folder


def test_every_job_leaves_its_result(jobs):
    architecture = Architecture.load(jobs / "student.yaml")
    assert architecture.num_classes == 11
    assert architecture.input_size == (64, 96)
    assert architecture.provenance["which"] == "student"
    assert Architecture.load(jobs / "teacher.yaml").end_ratio == 2
    assert {path.name for path in (jobs / "student").iterdir()} >= {
        "configuration.yaml",
        "environment.json",
        "log.jsonl",
        "best.safetensors",
        "last.safetensors",
    }


def test_derive_json_holds_the_contract(jobs, tmp_path, capsys):
    out = tmp_path / "a.yaml"
    content = json.loads(run(capsys, "derive", jobs / "search", "--out", out, "--branches", "8,32", "--json"))
    assert content["rule"] == "paper"
    assert [branch["scale"] for branch in content["branches"]] == [8, 32]
    assert content["latency_ms"] > 0
    for branch in content["branches"]:
        for cell in branch["cells"]:
            assert cell["operator"] in ("skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2")
            assert cell["scale"] in (8, 16, 32)
            assert cell["channels"] == cell["scale"] * cell["ratio"]


def test_branches_are_chosen_by_the_papers_target(jobs, tmp_path, capsys):
    """ACC * (LAT / T) ** -0.07 (Appendix B), from the supernet's mIoU and the table's latencies."""
    content = json.loads(run(capsys, "derive", jobs / "search", "--out", tmp_path / "a.yaml", "--json"))
    for score in content["scores"]:
        assert score["score"] == pytest.approx(score["miou"] * (score["latency_ms"] / 1.0) ** -0.07)
    best = max(content["scores"], key=lambda score: score["score"])
    assert best["branches"] == [branch["scale"] for branch in content["branches"]]
    assert best["latency_ms"] == content["latency_ms"]


def test_the_run_folder_keeps_the_choice_of_branches(jobs, tmp_path, capsys):
    kept = json.loads((jobs / "search" / "selection.json").read_text())
    for which in ("student", "teacher"):
        content = json.loads(
            run(capsys, "derive", jobs / "search", "--out", tmp_path / "a.yaml", "--json", "--which", which)
        )
        assert kept[which]["scores"] == content["scores"]
        assert kept[which]["chosen"] == [branch["scale"] for branch in content["branches"]]
        assert kept[which]["latency_ms"] == content["latency_ms"]
        assert content["target_ms"] is None
        assert all(score["reached"] is None and score["changes"] == [] for score in content["scores"])


@pytest.mark.parametrize("share", [0.1, 0.8])
def test_derive_leads_the_student_to_another_target(jobs, tmp_path, capsys, share):
    """A low and a high target between the fastest and the slowest network of the space."""
    table, space = LatencyTable.load(jobs / "table.json"), load_space(str(jobs / "space.yaml"))
    bounds = latency_bounds(space.plan(), table.lookup)
    fastest, slowest = min(p[0].latency_ms for p in bounds.values()), max(p[1].latency_ms for p in bounds.values())
    target = fastest + share * (slowest - fastest)
    out = tmp_path / "a.yaml"
    content = json.loads(run(capsys, "derive", jobs / "search", "--out", out, "--target", target, "--json"))
    assert content["target_ms"] == target
    # With latencies measured on a busy machine no network may be that close to the target; then it is said.
    for score in content["scores"]:
        assert score["reached"] == (abs(score["latency_ms"] / target - 1) <= 0.05)
    assert content["latency_ms"] == pytest.approx(
        target, rel=0.05 if any(s["reached"] for s in content["scores"]) else 0.3
    )
    argmax = json.loads(run(capsys, "derive", jobs / "search", "--out", out, "--target", "none", "--json"))
    before = {tuple(score["branches"]): score["latency_ms"] for score in argmax["scores"]}
    for score in content["scores"]:
        assert score["argmax_ms"] == pytest.approx(before[tuple(score["branches"])])
        assert (score["lost_log_probability"] > 0) == bool(score["changes"])


def test_derive_measures_what_it_derived(jobs, tmp_path, capsys):
    out = tmp_path / "a.yaml"
    content = json.loads(run(capsys, "derive", jobs / "search", "--out", out, "--measure", "--json"))
    assert content["measured_ms"] > 0
    assert float(Architecture.load(out).provenance["measured_ms"]) == pytest.approx(content["measured_ms"], abs=1e-6)


def test_evaluate_json_holds_the_contract(jobs, capsys):
    content = json.loads(run(capsys, "evaluate", jobs / "student", *DATA, "--split", "test", "--json"))
    assert set(content) == {"miou", "iou", "pixel_accuracy", "images"}
    assert content["images"] == 4
    assert len(content["iou"]) == 11
    present = [value for value in content["iou"].values() if value is not None]
    assert content["miou"] == pytest.approx(sum(present) / len(present))


def test_benchmark_json_holds_the_contract(jobs, capsys):
    for target in (jobs / "student", jobs / "student.yaml"):
        content = json.loads(run(capsys, "benchmark", target, "--seconds", "0.05", "--threads", "1", "--json"))
        assert content["latency_ms"]["p10"] <= content["latency_ms"]["median"] <= content["latency_ms"]["p90"]
        assert content["input_size"] == [64, 96]
        assert content["parameters"] > 0
        assert content["multiply_adds"] > 0
        assert {"fps", "device", "backend", "precision"} <= set(content)


def test_export_then_benchmark_the_file(jobs, tmp_path, capsys):
    out = tmp_path / "student.onnx"
    run(capsys, "export", jobs / "student", "--format", "onnx", "--out", out)
    onnx.checker.check_model(onnx.load(out))
    content = json.loads(run(capsys, "benchmark", out, "--seconds", "0.05", "--json"))
    assert content["backend"] == "onnxruntime"
    assert content["input_size"] == [64, 96]


def test_latency_show_and_check(jobs, tmp_path, capsys):
    shown = json.loads(run(capsys, "latency", "show", jobs / "table.json", "--space", jobs / "space.yaml", "--json"))
    assert shown["summary"]["entries"] > 50
    assert sum(shown["sensitivities"]["weights"].values()) == pytest.approx(1)
    arguments = ["--networks", "3", "--rounds", "1", "--time-per-network", "0.01"]
    figure = tmp_path / "check.svg"
    checked = json.loads(
        run(
            capsys,
            *("latency", "check", jobs / "table.json", jobs / "space.yaml"),
            *arguments,
            *("--figure", figure, "--json"),
        )
    )
    assert set(checked) >= {"networks", "pearson", "spearman", "mape"}
    assert checked["networks"] == 3
    assert figure.read_text().lstrip().startswith("<?xml")
    assert checked["table"]["space"] == str(jobs / "space.yaml")


def test_derived_networks_are_checked_too(jobs, tmp_path, capsys):
    twin = tmp_path / "student.yaml"
    twin.write_text((jobs / "student.yaml").read_text())
    checked = json.loads(
        run(
            capsys,
            *("latency", "check", jobs / "table.json", jobs / "space.yaml", "--networks", "0", "--json"),
            *("--rounds", "1", "--time-per-network", "0.01"),
            *("--network", jobs / "student.yaml", "--network", jobs / "teacher.yaml", "--network", twin),
        )
    )
    names = [row["name"] for row in checked["latencies"]]
    assert names == [str(jobs / "student.yaml"), "teacher", str(twin)]
    assert checked["latencies"][0]["predicted_ms"] == checked["latencies"][2]["predicted_ms"]
    derived = json.loads(
        run(capsys, "derive", jobs / "search", "--out", tmp_path / "a.yaml", "--which", "teacher", "--json")
    )
    assert checked["latencies"][1]["predicted_ms"] == pytest.approx(derived["latency_ms"])


def test_report_of_the_runs_is_one_page(jobs, tmp_path, capsys):
    out = tmp_path / "report.html"
    run(
        capsys,
        *("report", "--out", out, "--search", jobs / "search", "--student", jobs / "student"),
        *("--teacher", jobs / "teacher", "--networks", "2", "--examples", "1", "--pictures", tmp_path / "pictures"),
    )
    page = out.read_text()
    for heading in ("Teacher and student", "Derived architecture", "Search", "How decided", "Retraining"):
        assert heading in page
    assert (tmp_path / "pictures" / "architecture_student.png").stat().st_size > 1000


def test_resuming_a_finished_run_changes_nothing(jobs, capsys):
    before = (jobs / "student" / "best.safetensors").read_bytes()
    run(
        capsys,
        *("retrain", jobs / "student.yaml", *DATA, "--out", jobs / "student", "--device", "cpu"),
        *("--teacher", jobs / "teacher", "--resume"),
    )
    assert (jobs / "student" / "best.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_resuming_a_finished_run_without_its_weights_is_refused(jobs, tmp_path, capsys, damage):
    """One line, and nothing but the record of the environment is changed."""
    finished = tmp_path / "student"
    shutil.copytree(jobs / "student", finished)
    path = finished / "best.safetensors"
    content = path.read_bytes()[:500]
    path.unlink()
    if damage == "damaged":
        path.write_bytes(content)
    before = sorted((file.name, file.stat().st_size) for file in finished.iterdir() if file.suffix != ".json")
    again = ["retrain", str(jobs / "student.yaml"), *DATA, "--out", str(finished), "--device", "cpu"]
    assert main([*again, "--teacher", str(jobs / "teacher"), "--resume"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dnas: ")]
    assert "best.safetensors" in line
    assert damage in line
    assert sorted((file.name, file.stat().st_size) for file in finished.iterdir() if file.suffix != ".json") == before


def test_paths_that_are_not_utf8(jobs, tmp_path, capsys):
    """What is derived from such a run to such a file is read again; data in such a folder are refused in one line."""
    odd = os.fsdecode(b"\xff\xe9")
    shutil.copytree(jobs / "search", tmp_path / odd)
    architecture = tmp_path / f"{odd}.yaml"
    run(capsys, "derive", tmp_path / odd, "--out", architecture)
    loaded = Architecture.load(architecture)
    assert loaded.provenance["run"].endswith(r"\udcff\udce9")
    assert loaded.summary() == Architecture.load(jobs / "student.yaml").summary()
    (tmp_path / f"images{odd}").mkdir()
    for command in (
        ["search", "regseg_demo", "--data", f"folder:{tmp_path}/images{odd}", "--out", str(tmp_path / "run")],
        ["data", "init", str(tmp_path / f"images{odd}"), "--out", str(tmp_path / "data")],
        ["data", "init", str(tmp_path), "--out", str(tmp_path / odd)],
    ):
        line = fail(capsys, *command)
        assert "not valid UTF-8" in line
        assert r"\udcff" in line
    assert not (tmp_path / "run").exists()


def test_networks_json_holds_the_contract(capsys):
    rows = {row["name"]: row for row in json.loads(run(capsys, "networks", "--json"))}
    assert {"regseg", "dwrseg_b", "eseg_s", "fasterseg_student"} <= set(rows)
    assert rows["regseg"]["input_size"] == [1024, 2048]
    assert round(rows["regseg"]["multiply_adds"] / 1e9, 1) == 39.1


def test_a_mistake_is_one_line_and_status_two(jobs, tmp_path, capsys):
    """For every command: missing, truncated and foreign files, unknown keys and names, wrong numbers of classes."""
    space, table, out = jobs / "space.yaml", jobs / "table.json", tmp_path / "out"
    cut = tmp_path / "cut.json"
    cut.write_bytes(table.read_bytes()[:-100])
    broken = tmp_path / "broken.yaml"
    broken.write_text("space: [")
    other_classes = [*DATA[2:], "--data", "rectangles"]
    search = ["search", space, "--out", out, "--table", table]
    cases = [
        (["latency", "build", "nowhere", "--out", out], "unknown search space"),
        (["latency", "build", space, "--out", table], "--resume"),
        (["latency", "build", space, "--out", out, "--set", "network.depth=3"], "network.depth: unknown key"),
        (["latency", "build", space, "--out", out, "--device", "tpu"], "tpu"),
        (["latency", "build", space, "--out", out, "--backend", "magic"], "magic"),
        (["latency", "show", tmp_path / "none.json"], "none.json"),
        (["latency", "show", cut], "cut.json"),
        (["latency", "check", cut, space], "cut.json"),
        (["latency", "check", table, broken], "broken.yaml"),
        ([*search, "--data", "nothing"], "unknown data"),
        ([*search, *other_classes], "6 classes"),
        ([*search, *DATA, "--set", "search.epochz=1"], "search.epochz: unknown key"),
        ([*search, *DATA, "--set", "network.ratios=[1, 2, 3]"], "dnas latency build"),
        ([*search, *DATA, "--set", "task.input_size=[96, 96]"], "input size"),
        ([*search, *DATA, "--set", "latency_target_ms=0.0001"], "the fastest network of the space takes"),
        ([*search, *DATA, "--set", "latency_target_ms=1000000"], "the slowest network of the space takes"),
        (["search", space, "--out", jobs / "search", "--table", table, *DATA], "--resume"),
        (["search", space, "--out", out, "--table", cut, *DATA], "cut.json"),
        (["derive", tmp_path, "--out", out], "no run folder"),
        (["derive", jobs / "student", "--out", out], "retrain"),
        (["derive", jobs / "search", "--out", out, "--branches", "8,64"], "8,64"),
        (["derive", jobs / "search", "--out", out, "--which", "nobody"], "nobody"),
        (["derive", jobs / "search", "--out", out, "--rule", "guess"], "guess"),
        (["derive", jobs / "search", "--out", out, "--rule", "published-code"], "at least 8 layers"),
        (["derive", jobs / "search", "--out", out, "--target", "fast"], "expected a latency in ms"),
        (["derive", jobs / "search", "--out", out, "--target", "3", "--which", "teacher"], "for the student"),
        (["derive", jobs / "search", "--out", out, "--target", "0.0001"], "the fastest network of the space takes"),
        (["derive", jobs / "search", "--out", out, "--target", "1e6"], "the slowest network of the space takes"),
        (["retrain", tmp_path / "none.yaml", *DATA, "--out", out], "none.yaml"),
        (["retrain", broken, *DATA, "--out", out], "broken.yaml"),
        (["retrain", jobs / "student.yaml", *other_classes, "--out", out], "6 classes"),
        (["retrain", jobs / "student.yaml", *DATA, "--out", out, "--teacher", jobs / "search"], "search"),
        (["evaluate", jobs / "search", *DATA], "search"),
        (["evaluate", jobs / "student", *other_classes], "6 classes"),
        (["evaluate", jobs / "student", *DATA, "--split", "best"], "best"),
        (["export", tmp_path / "none", "--out", out], "none"),
        (["export", jobs / "student", "--out", out, "--format", "bmp"], "bmp"),
        (["benchmark", "nothing"], "networks: "),
        (["benchmark", jobs / "student", "--size", "wide"], "HEIGHTxWIDTH"),
        (["report", "--out", out], "--search"),
        (["demo", "--out", jobs], "exists"),
        (["unheard"], "unheard"),
        (["derive"], "Missing argument"),
    ]
    for command, expected in cases:
        line = fail(capsys, *command)
        assert expected in line, (command, line)
    assert not out.exists() or not any(out.iterdir())


def test_evaluate_with_every_option_of_the_prediction(jobs, tmp_path, capsys):
    command = ["evaluate", jobs / "student", *DATA, "--device", "cpu"]
    plain = json.loads(run(capsys, *command, "--json"))
    assert plain.keys() == {"miou", "iou", "pixel_accuracy", "images"}
    options = ["--input-size", "48x64", "--scales", "0.75,1", "--flip", "--window", "32x48", "--stride", "24x32"]
    figure = tmp_path / "confusion.svg"
    scores = ["--boundary", "0.02", "--without", "sky, road", "--confusion", figure]
    found = json.loads(run(capsys, *command, *options, *scores, "--json"))
    kept = [value for name, value in found["iou"].items() if name not in ("sky", "road") and value is not None]
    assert found["miou_without"] == pytest.approx(sum(kept) / len(kept))
    assert 0 <= found["boundary_miou"] <= 1
    assert found["boundary_iou"].keys() == found["iou"].keys()
    assert "bicyclist" in figure.read_text()
    lines = run(capsys, *command, *scores).splitlines()
    assert "boundary" in lines[0]
    assert "without sky, road" in lines[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scales", "1,x"], "--scales '1,x': expected numbers"),
        (["--stride", "8x8"], "there is no window"),
        (["--boundary", "2"], "--boundary 2: expected a share"),
        (["--without", "train"], "--without: no class 'train', expected some of sky"),
        (["--confusion", "matrix.jpg"], "ends in .svg or .png"),
        (["--split", "all"], "unknown split 'all'"),
    ],
)
def test_evaluate_names_wrong_options(jobs, capsys, options, message):
    assert message in fail(capsys, "evaluate", jobs / "student", *DATA, *options)


def test_a_search_of_branches_is_no_network_to_evaluate(jobs, capsys):
    assert "derive a network" in fail(capsys, "evaluate", jobs / "search", *DATA)
