"""``dnas latency`` for existing tables, and durations."""

import csv
import dataclasses
import json

import pytest
import torch

from dnas.cli import main
from dnas.cli.common import parse_duration
from dnas.errors import UserError
from dnas.latency import Effort, LatencyTable, Measurement, OperatorSpec, make_setup
from dnas.latency.provenance import start_provenance
from dnas.workflows.tables import find_table


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def fail(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


def entry(median, repetitions=100):
    return Measurement(median, 0.9 * median, 1.2 * median, repetitions, 5)


def key(operator, channels, **extras):
    return OperatorSpec(operator, ((channels, 8, 16),), 4, 1, tuple(sorted(extras.items()))).key


@pytest.fixture
def tables(tmp_path):
    """Tables a and b: in b convolutions take twice as long and skips half as long; each has one entry of its own."""
    provenance = start_provenance(make_setup("cpu"), Effort(), space="small", input_size=(64, 128), command=None)
    first = {key("conv", c, dilation=2): entry(c) for c in (1, 2, 3)} | {key("skip", c): entry(c) for c in (1, 2)}
    second = {name: entry(found.median * (2 if "conv" in name else 0.5), 200) for name, found in first.items()}
    LatencyTable(provenance, {**first, key("stem", 3): entry(7)}).save(tmp_path / "a.json")
    LatencyTable(provenance, {**second, key("head", 3): entry(9)}).save(tmp_path / "b.json")
    other = dataclasses.replace(provenance, precision="bf16")
    LatencyTable(other, second).save(tmp_path / "bf16.json")
    return tmp_path


def test_diff_gives_ratios_by_operator(tables, capsys):
    figure = tables / "diff.svg"
    found = json.loads(
        run(capsys, "latency", "diff", tables / "a.json", tables / "b.json", "--json", "--figure", figure)
    )
    assert found["operators"] == {
        "conv": {"entries": 3, "median": 2, "p10": 2, "p90": 2},
        "skip": {"entries": 2, "median": 0.5, "p10": 0.5, "p90": 0.5},
    }
    assert found["entries"] == 5
    assert found["median_relative_difference"] == 1  # |2 - 1| of three, |0.5 - 1| of two
    assert found["only_first"] == [key("stem", 3)]
    assert found["only_second"] == [key("head", 3)]
    assert found["measured_differently"] == []
    assert {row["ratio"] for row in found["largest"]} == {2, 0.5}
    assert figure.read_text().lstrip().startswith("<?xml")


def test_diff_for_people_says_what_differs(tables, capsys):
    text = run(capsys, "latency", "diff", tables / "a.json", tables / "bf16.json", "--largest", "1")
    assert "median relative difference 100.00 %" in text
    assert "measured differently: precision: fp32 and bf16" in text
    assert text.splitlines()[-1].split()[:4] == ["1.0000", "ms", "2.0000", "ms"]
    same = run(capsys, "latency", "diff", tables / "a.json", tables / "a.json")
    assert "median relative difference 0.00 %" in same


def test_diff_of_three_tables_is_a_matrix(tables, capsys):
    names = [tables / name for name in ("a.json", "b.json", "a.json")]
    found = json.loads(run(capsys, "latency", "diff", *names, "--json"))
    assert found["entries"] == [[6, 5, 6], [5, 6, 5], [6, 5, 6]]
    assert found["ratio"][0] == [1.0, 2.0, 1.0]
    printed = run(capsys, "latency", "diff", *names).splitlines()
    assert printed[0].split() == ["1", str(names[0])]
    assert "Spearman correlation" in printed
    assert "--figure compares two tables" in fail(capsys, "latency", "diff", *names, "--figure", tables / "x.svg")


def test_merge_joins_and_takes_the_better_measured(tables, capsys):
    out = tables / "merged.json"
    found = json.loads(run(capsys, "latency", "merge", tables / "a.json", tables / "b.json", "--out", out, "--json"))
    assert found == {"entries": 7, "first": 6, "second": 6, "shared": 5}
    merged = LatencyTable.load(out)
    assert merged.entries[key("conv", 3, dilation=2)].median == 6


def test_merge_refuses_another_provenance(tables, capsys):
    out = tables / "merged.json"
    text = fail(capsys, "latency", "merge", tables / "a.json", tables / "bf16.json", "--out", out)
    assert "precision: fp32 and bf16" in text
    assert not out.exists()


def test_export_holds_every_digit(tables, capsys):
    out = tables / "t.csv"
    run(capsys, "latency", "export", tables / "a.json", "--format", "csv", "--out", out)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    table = LatencyTable.load(tables / "a.json")
    assert {row["key"]: float(row["latency_ms"]) for row in rows} == {k: e.median for k, e in table.entries.items()}
    assert {row["key"]: float(row["p90_ms"]) for row in rows} == {k: e.p90 for k, e in table.entries.items()}
    first = next(row for row in rows if row["key"] == key("conv", 2, dilation=2))
    assert (first["operator"], first["inputs"], first["extras"]) == ("conv", "2x8x16", "dilation=2")
    assert "expected csv" in fail(capsys, "latency", "export", tables / "a.json", "--format", "xls", "--out", out)


def test_show_draws_the_table(tables, capsys):
    for name, first in (("show.svg", b"<?xml"), ("show.png", b"\x89PNG")):
        run(capsys, "latency", "show", tables / "a.json", "--figure", tables / name)
        assert (tables / name).read_bytes().startswith(first)
    assert ".svg or .png" in fail(capsys, "latency", "show", tables / "a.json", "--figure", tables / "show.gif")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400), (" 2 m ", 120), ("1", 1)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3m", "0", "0.5s", "1e3", "20 minutes", "20M", "nan", "9999h", "1m30s"])
def test_other_text_is_no_duration(text):
    with pytest.raises(UserError, match="such as 90s, 20m or"):
        parse_duration(text)


def test_a_table_is_a_file_or_a_shipped_name(tmp_path, monkeypatch, capsys):
    import latency_tables

    for name in latency_tables.table_names():
        table = LatencyTable.load(find_table(name))
        assert table.entries
        assert table.doubt() is None
    with pytest.raises(UserError, match="one of the bundled tables"):
        find_table("nothing_of_this_name")
    assert "one of the bundled tables" in fail(capsys, "latency", "show", "nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("{}")
    assert find_table("plain").read_text() == "{}"
    assert find_table("none.json").name == "none.json"


def test_a_budget_and_all_settings_are_in_the_command_but_no_folder(tmp_path, capsys):
    space, out = tmp_path / "mine.yaml", tmp_path / "t.json"
    space.write_text(SPACE)
    options = ["--rounds", "2", "--time-per-entry", "0.001", "--budget", "90s", "--threads", "1"]
    run(capsys, "latency", "build", space, "--out", out, *options)
    text = out.read_text()
    assert str(tmp_path) not in text
    provenance = LatencyTable.load(out).provenance
    assert provenance.space == "mine.yaml"
    assert provenance.command == (
        "dnas latency build mine.yaml --out t.json --device cpu --backend eager --precision fp32 --threads 1 "
        "--rounds 2 --time-per-entry 0.001 --budget 90s"
    )
    wrong = ["--out", tmp_path / "u.json", "--budget", "soon"]
    assert "duration 'soon'" in fail(capsys, "latency", "build", space, *wrong)
    # The command for missing entries names the current path of the table.
    moved = out.rename(tmp_path / "moved.json")
    with pytest.raises(UserError) as caught:
        LatencyTable.load(moved).lookup(OperatorSpec("conv", ((3, 8, 16),), 7, 2))
    assert f"--out {moved} --device cpu" in str(caught.value)
    assert "--budget 90s --resume`" in str(caught.value)


SPACE = """
space: regseg
task: {input_size: [64, 64], num_classes: 2}
network: {name: regseg_small, options: {rates: [[1, 1], [1, 1]], width: 32, split_equal: true}}
rates: {layers: backbone.blocks.*.dilated.branches.*, upper: 4}
"""


def test_a_table_of_dilation_rates_is_checked_too(tmp_path, capsys):
    space, out = tmp_path / "mine.yaml", tmp_path / "t.json"
    space.write_text(SPACE)
    quick = ["--rounds", "1", "--time-per-entry", "0.001", "--threads", "1"]
    run(capsys, "latency", "build", space, "--out", out, *quick)
    found = json.loads(
        run(
            capsys,
            *("latency", "check", out, space, "--networks", "4", "--rounds", "5", "--time-per-network", "0.02"),
            *("--repeat", "--fit", "3", "--json"),
        )
    )
    assert found["networks"] == len(found["latencies"]) == 4
    assert found["noise"]["networks"] == 4
    assert all(row["repeated_ms"] > 0 for row in found["latencies"])
    assert found["correction"]["networks"] <= 3
    assert set(found["correction"]["agreement"]) == {"networks", "pearson", "spearman", "mape"}
    predicted = [row["predicted_ms"] for row in found["latencies"]]
    assert predicted == sorted(predicted)
    assert torch.get_num_threads() == 1
