import copy
import dataclasses
import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnas.errors import UserError
from dnas.latency import Effort, LatencyTable, Measurement, OperatorSpec, make_setup
from dnas.latency.provenance import differences, start_provenance
from dnas.latency.table_file import checksum

numbers = st.integers(1, 4096)


@pytest.fixture(scope="module")
def table_provenance():
    return start_provenance(make_setup("cpu"), Effort(), space="small", input_size=(64, 128), command=None)


keys = st.builds(
    lambda operator, shapes, out, stride, extras: OperatorSpec(operator, shapes, out, stride, extras).key,
    st.sampled_from(["conv", "fuse", "dilated_conv"]),
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=3).map(tuple),
    numbers,
    st.integers(1, 2),
    st.dictionaries(st.sampled_from(["dilation", "groups", "kernel"]), numbers).map(
        lambda extras: tuple(sorted(extras.items()))
    ),
)
measurements = st.builds(
    lambda values, repetitions, rounds: Measurement(values[1], values[0], values[2], repetitions, rounds),
    st.tuples(*[st.floats(0, 1e6)] * 3).map(sorted),
    st.integers(1, 10**9),
    st.integers(1, 99),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, measurements, max_size=8))
def test_what_is_saved_is_loaded(table, tmp_path, entries):
    saved = LatencyTable(table.provenance, entries)
    saved.save(tmp_path / "t.json")
    loaded = LatencyTable.load(tmp_path / "t.json")
    assert loaded == saved
    assert loaded.source == tmp_path / "t.json"
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "t.json").read_bytes()


def test_a_table_is_doubted_by_the_median_spread_of_its_entries(table):
    steady, unsteady = Measurement(1.0, 0.95, 1.05, 9, 3), Measurement(1.0, 0.9, 1.15, 9, 3)
    assert LatencyTable(table.provenance, {}).doubt() is None
    assert LatencyTable(table.provenance, {"a": steady, "b": steady, "c": unsteady}).doubt() is None
    assert "25 % or more" in LatencyTable(table.provenance, {"a": steady, "b": unsteady, "c": unsteady}).doubt()


@settings(max_examples=50)
@given(st.dictionaries(keys, measurements, max_size=6), st.dictionaries(keys, measurements, max_size=6), st.data())
def test_a_comparison_loses_no_entry(table_provenance, first, second, data):
    """Merged in both orders and compared: no entry is lost, and the choice between two does not depend on the order."""
    shared = data.draw(st.lists(st.sampled_from(sorted(first)), unique=True)) if first else []
    second |= {key: first[key] for key in shared}
    one, other = LatencyTable(table_provenance, first), LatencyTable(table_provenance, second)
    merged, found = one.merge(other), one.diff(other)
    assert merged.entries.keys() == first.keys() | second.keys()
    assert all(merged.entries[key] in (first.get(key), second.get(key)) for key in merged.entries)
    assert {*found.only_first, *found.only_second, *found.latencies_ms} == {*merged.entries}
    assert sum(map(len, found.by_operator().values())) == len(found.latencies_ms)
    json.dumps(found.to_mapping(), allow_nan=False)
    for key in shared:
        assert found.latencies_ms[key] == (first[key].median,) * 2


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage a file: truncate it, flip a bit, change, drop or repeat bytes, or change the type of a value."""
    at, length = rng.randrange(len(data)), rng.randrange(1, 40)
    digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    digit = rng.choice(digits)
    odd = rng.choice(["NaN", "-1", "1e999", "1e7", '"3"', "null", "true", "[]", "{}", "Infinity", "-0.5", "9" * 5000])
    return rng.choice(
        [
            lambda: data[:at],
            lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
            lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            lambda: data[:at] + data[at + length :],
            lambda: data[:at] + data[at : at + length] * 2 + data[at + length :],
            lambda: data[:digit] + str(rng.randrange(10)).encode() + data[digit + 1 :],
            lambda: data[:digit] + odd.encode() + data[digit + 1 :],
            lambda: data[:at] + b"\\ud800" + data[at:],
            lambda: data[:at] + b"[" * 100_000 + data[at:],
        ]
    )()


def test_a_damaged_file_gives_the_table_or_a_clear_error(table, tmp_path):
    path = tmp_path / "t.json"
    table.save(path)
    data, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        path.write_bytes(mutate(data, rng))
        found = load_or_message(path)
        if isinstance(found, str):
            refused += 1
            assert str(path) in found
            assert "\n" not in found
        else:
            assert found == table
    assert refused > 800


def load_or_message(path):
    try:
        return LatencyTable.load(path)
    except UserError as error:
        return str(error)


def rewrite(path, change):
    """Change the parsed file and update its checksum, as another program might."""
    values = json.loads(path.read_text())
    change(values)
    values["checksum"] = checksum({name: values.get(name) for name in ("provenance", "entries")})
    path.write_text(json.dumps(values))


FIRST = "conv in=1x8x16 out=2 stride=2"


def set_entry(**values):
    return lambda document: document["entries"][FIRST].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry(latency_ms=-1.0), "latency_ms"),
        (set_entry(latency_ms="1"), "latency_ms"),
        (set_entry(latency_ms=True), "latency_ms"),
        (set_entry(latency_ms=2e6, p90_ms=3e6), "latency_ms"),
        (set_entry(latency_ms=5.0), "does not lie between"),
        (set_entry(repetitions=-1), "repetitions"),
        (set_entry(repetitions=1.5), "repetitions"),
        (set_entry(colour=1), "colour"),
        (lambda document: document["entries"][FIRST].pop("rounds"), "rounds"),
        (lambda document: document["entries"].update({"conv 3": document["entries"][FIRST]}), "no operator key"),
        (lambda document: document["provenance"].update(threads="many"), "threads"),
        (lambda document: document["provenance"].pop("device"), "device"),
        (lambda document: document.update(entries=[]), "entries"),
        (lambda document: document.update(provenance=None), "provenance"),
        (lambda document: document.update(schema_version=2), "schema version 2"),
        (lambda document: document.update(format="other"), "not a latency table"),
        (lambda document: document.update(extra=1), "extra"),
    ],
)
def test_a_wrong_value_is_named_even_under_a_right_checksum(table, tmp_path, change, message):
    path = tmp_path / "t.json"
    table.save(path)
    rewrite(path, change)
    with pytest.raises(UserError, match=message) as caught:
        LatencyTable.load(path)
    assert str(path) in str(caught.value)


def test_an_edited_figure_is_noticed(table, tmp_path):
    path = tmp_path / "t.json"
    table.save(path)
    text = path.read_text()
    path.write_text(text.replace('"latency_ms": 0.4', '"latency_ms": 0.5', 1))
    assert path.read_text() != text
    with pytest.raises(UserError, match="edited by hand"):
        LatencyTable.load(path)


def test_a_missing_file_and_other_json(tmp_path):
    with pytest.raises(UserError, match="no such latency table"):
        LatencyTable.load(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="not a latency table"):
        LatencyTable.load(tmp_path / "list.json")


def test_lookup(table):
    assert table.lookup(OperatorSpec("conv", ((3, 8, 16),), 6, 2)) == pytest.approx(0.3 + 1 / 3)
    with pytest.raises(UserError) as caught:
        table.lookup(OperatorSpec("conv", ((3, 8, 16),), 7, 2))
    assert "'conv in=3x8x16 out=7 stride=2'" in str(caught.value)
    command = "dnas latency build small --out FILE --device cpu --backend eager --precision fp32 --resume"
    assert command in str(caught.value)


def test_lookup_names_the_command_that_built_the_table(table):
    command = "dnas latency build my.yaml --out t.json --threads 2"
    mine = dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, command=command))
    with pytest.raises(UserError, match=r"dnas latency build my.yaml --out t.json --threads 2 --resume`"):
        mine.lookup(OperatorSpec("skip", ((3, 8, 16),), 6, 2))


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "compiled"},
        {"precision": "bf16"},
        {"input_size": (64, 64)},
        {"batch": 2},
        {"memory_format": "channels_last"},
        {"threads": 77},
    ],
)
def test_a_table_is_refused_for_anything_else(table, other):
    same = {"device": "cpu", "backend": "eager", "precision": "fp32", "input_size": (64, 128)}
    assert table.check_usable(**same) == []
    with pytest.raises(UserError, match="--allow-mismatch"):
        table.check_usable(**{**same, **other})
    assert len(table.check_usable(**{**same, **other}, allow_mismatch=True)) == 1


def test_a_table_of_another_machine_is_refused(table):
    away = dataclasses.replace(table.provenance.device, name="Another CPU")
    elsewhere = dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, device=away))
    with pytest.raises(UserError, match="Another CPU"):
        elsewhere.check_usable(device="cpu")


def test_a_cpu_of_the_same_name_is_told_apart_by_its_model_and_instructions(table):
    """Virtual machines give different CPUs of a maker one name."""
    mine = table.provenance
    like_before = dataclasses.replace(
        mine,
        device=dataclasses.replace(mine.device, model=None),
        software={name: version for name, version in mine.software.items() if name != "cpu_capability"},
    )
    dataclasses.replace(table, provenance=like_before).check_usable(device="cpu")
    assert differences(mine, like_before) == []
    for name, other in (
        ("CPU model", dataclasses.replace(mine, device=dataclasses.replace(mine.device, model="Maker 1 2"))),
        ("CPU capability", dataclasses.replace(mine, software={**mine.software, "cpu_capability": "VSX"})),
    ):
        elsewhere = dataclasses.replace(table, provenance=other)
        with pytest.raises(UserError, match=rf"{name} is .*, the table's is (Maker 1 2|VSX)"):
            elsewhere.check_usable(device="cpu")
        assert len(elsewhere.check_usable(device="cpu", allow_mismatch=True)) == 1
        assert len(differences(mine, other)) == 1
    # Of a device that is not this machine, the instructions are not known.
    unknown = dataclasses.replace(table, provenance=dataclasses.replace(mine, software={"cpu_capability": "VSX"}))
    unknown.check_usable(device=mine.device)


def test_summary_and_slowest(table):
    assert [key for key, _ in table.slowest(2)] == ["conv in=5x8x16 out=10 stride=2", "conv in=4x8x16 out=8 stride=2"]
    summary = table.summary()
    assert summary["entries"] == 5
    assert summary["operators"] == {"conv": 5}
    assert summary["median_ms"] == pytest.approx(0.3 + 1 / 3)
    assert summary["total_ms"] == pytest.approx(1.5 + 5 / 3)
    json.dumps(summary, allow_nan=False)
    json.dumps(table.to_mapping(), allow_nan=False)
    assert LatencyTable(table.provenance, {}).summary()["entries"] == 0


def test_entries_cannot_be_changed(table):
    with pytest.raises(TypeError):
        table.entries["x"] = None
    assert copy.deepcopy(dict(table.entries)) == table.entries


def test_merge_takes_the_better_measured(table):
    better = Measurement(9.0, 8.0, 10.0, 10_000, 5)
    other = LatencyTable(table.provenance, {FIRST: better, "skip in=1x2x3 out=1 stride=1": better})
    merged = table.merge(other)
    assert len(merged) == 6
    assert merged.entries[FIRST] == better == other.merge(table).entries[FIRST]
    foreign = dataclasses.replace(other, provenance=dataclasses.replace(table.provenance, precision="bf16"))
    with pytest.raises(UserError, match="precision: fp32 and bf16"):
        table.merge(foreign)


def test_diff(table):
    slower = {
        key: dataclasses.replace(entry, median=entry.median * 1.1) for key, entry in list(table.entries.items())[1:]
    }
    found = table.diff(LatencyTable(table.provenance, {**slower, "skip in=1x2x3 out=1 stride=1": table.entries[FIRST]}))
    assert found.only_first == (FIRST,)
    assert found.only_second == ("skip in=1x2x3 out=1 stride=1",)
    assert math.isclose(found.median_relative_difference, 0.1)
    assert table.diff(table).median_relative_difference == 0
