"""The tables that ship: whole, of a preset, checked, and without anything private. None may ship."""

import json
import re

import pytest

import latency_tables
from dnas.cli import main
from dnas.latency import LatencyTable
from search_spaces import load_space, preset_names

NAMES = latency_tables.table_names()


@pytest.fixture(params=NAMES or [None])
def name(request):
    if request.param is None:
        pytest.skip("no table ships")
    return request.param


@pytest.fixture
def table(name):
    with latency_tables.table_file(name) as path:
        return LatencyTable.load(path)


def test_it_holds_the_whole_inventory_of_its_space(name, table):
    provenance = table.provenance
    assert provenance.space in preset_names()
    assert name.startswith(f"{provenance.space}-")
    assert name.endswith(f"-{provenance.backend}-{provenance.precision}")
    space = load_space(provenance.space)
    assert tuple(provenance.input_size) == space.input_size
    assert table.missing([item.spec for item in space.inventory()]) == []


def test_its_command_can_be_repeated_anywhere(name, table):
    command = table.provenance.command
    assert command.startswith(f"dnas latency build {table.provenance.space} --out latency_tables/{name}.json ")
    with latency_tables.table_file(name) as path:
        assert not re.search(r"/(home|root|tmp|Users)\b", path.read_text())


def test_its_check_lies_beside_it(name, table):
    with latency_tables.check_file(name) as path:
        check = json.loads(path.read_text())
    assert check["table"]["space"] == table.provenance.space
    assert check["table"]["device"] == table.provenance.device.name
    assert check["table"]["date"] == table.provenance.date
    assert check["networks"] >= 30
    assert len(check["latencies"]) == check["networks"]
    assert check["noise"]["mape"] >= 0
    best = check["correction"]["agreement"] if "correction" in check else check
    assert best["mape"] <= 5
    predicted = [network["predicted_ms"] for network in check["latencies"]]
    if max(predicted) > 1.2 * min(predicted):  # latencies that hardly differ correlate with nothing but the noise
        assert check["pearson"] >= 0.993


def test_it_is_found_by_its_name(name, capsys):
    assert main(["latency", "show", name, "--slowest", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["entries"] > 0


def test_a_check_is_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(latency_tables.resources, "files", lambda _: tmp_path)
    for file in ("a.json", "a.check.json", "b.json", "README.md"):
        (tmp_path / file).write_text("{}")
    assert latency_tables.table_names() == ("a", "b")
    with latency_tables.check_file("a") as path:
        assert path == tmp_path / "a.check.json"
