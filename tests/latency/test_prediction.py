"""Predicting a table from few measurements: exact where a method's model holds, and honest about its error."""

import numpy as np
import pytest

from dnas.errors import UserError
from dnas.latency import Effort, LatencyTable, Measurement, make_setup
from dnas.latency.matrix import diff_matrix
from dnas.latency.prediction import choose_entries, predict_entries
from dnas.latency.provenance import start_provenance
from dnas.workflows.prediction import predict_table
from search_spaces import load_space

KEYS = [
    f"{operator} in={width}x{size}x{size} out={width} stride=1"
    for operator in ("conv", "skip", "zoomed_conv")
    for width in (8, 16, 32, 64)
    for size in (8, 16, 24, 32, 48, 64, 96, 128)
]


def random_latencies(seed):
    generator = np.random.default_rng(seed)
    return {key: float(np.exp(generator.normal(0, 1.2))) for key in KEYS}


FIRST, SECOND = random_latencies(0), random_latencies(1)
MODELS = {
    "linear map": lambda key: 0.7 * FIRST[key] + 0.4 * SECOND[key] + 0.05,
    "monotone map": lambda key: FIRST[key] ** 1.7,
    "factor by operator": lambda key: FIRST[key] * {"c": 0.5, "s": 3.0, "z": 1.2}[key[0]],
}


@pytest.mark.parametrize("model", MODELS)
def test_the_method_whose_model_holds_is_chosen(model):
    truth = {key: MODELS[model](key) for key in KEYS}
    chosen = choose_entries([FIRST, SECOND], 0.3)
    found = predict_entries({key: truth[key] for key in chosen}, [FIRST, SECOND])
    assert found.method == model
    assert found.latencies.keys() == set(KEYS) - set(chosen)
    actual = np.mean([abs(value / truth[key] - 1) for key, value in found.latencies.items()])
    assert actual < 0.05
    assert found.error < 0.08


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_the_reported_error_is_that_of_entries_that_were_not_measured(noise):
    generator = np.random.default_rng(3)
    truth = {key: FIRST[key] * float(np.exp(generator.normal(0, noise))) for key in KEYS}
    chosen = choose_entries([FIRST], 0.3)
    found = predict_entries({key: truth[key] for key in chosen}, [FIRST])
    actual = np.mean([abs(value / truth[key] - 1) for key, value in found.latencies.items()])
    assert found.error == pytest.approx(actual, rel=0.5)


def test_the_measured_entries_are_spread_over_operators_and_latencies():
    chosen = choose_entries([FIRST], 0.1)
    assert len(chosen) == 10
    assert {key.split()[0] for key in chosen} == {"conv", "skip", "zoomed_conv"}
    assert len(choose_entries([FIRST], 0.5)) == 48
    latencies = [FIRST[key] for key in choose_entries([FIRST], 0.5)]
    assert min(latencies) < np.percentile(list(FIRST.values()), 10)
    assert max(latencies) > np.percentile(list(FIRST.values()), 90)


@pytest.fixture(scope="module")
def space():
    return load_space("fasterseg_demo", ["network.layers=4"])


def table_of(space, latency, keys=None, source=None):
    """A table of the space with latency(key) in ms."""
    setup = make_setup("cpu", threads=1)
    provenance = start_provenance(setup, Effort(), space=space.name, input_size=space.input_size, command=None)
    keys = [item.spec.key for item in space.inventory()] if keys is None else keys
    entries = {key: Measurement(latency(key), 0.9 * latency(key), 1.1 * latency(key), 100, 5) for key in keys}
    return LatencyTable(provenance, entries, source)


def cost(key):
    """A latency that depends on the whole signature."""
    return 0.01 * (1 + sum(map(ord, key)) % 97)


def test_a_predicted_table_is_complete_and_says_what_is_predicted(space, tmp_path):
    asked = []

    def measure(items, path):
        asked.extend(item.spec.key for item in items)
        return table_of(space, lambda key: 2 * cost(key), asked, path)

    table, found = predict_table(space, [table_of(space, cost)], tmp_path / "t.json", measure)
    everything = {item.spec.key for item in space.inventory()}
    loaded = LatencyTable.load(tmp_path / "t.json")
    assert loaded.entries.keys() == everything == table.entries.keys()
    assert len(asked) == max(10, round(0.1 * len(everything)))
    assert {key for key, entry in loaded.entries.items() if entry.repetitions} == set(asked)
    assert all(entry.median == pytest.approx(2 * cost(key)) for key, entry in loaded.entries.items())
    assert f"{len(everything) - len(asked)} of {len(everything)} entries are predicted" in loaded.provenance.notes
    assert found.error == pytest.approx(0, abs=1e-6)


def test_a_device_that_is_unlike_the_others_is_refused(space, tmp_path):
    def measure(items, path):
        return table_of(space, lambda key: cost(key[::-1] + key), [item.spec.key for item in items], path)

    with pytest.raises(UserError, match=r"not written: .* error of .* % .*, more than 5 %; measure more with a larger"):
        predict_table(space, [table_of(space, lambda key: 1 / cost(key))], tmp_path / "t.json", measure)
    assert not (tmp_path / "t.json").exists()
    partial = table_of(space, cost, [item.spec.key for item in space.inventory()][:5])
    with pytest.raises(UserError, match=r"5 of its \d+ entries are in all of the other tables"):
        predict_table(space, [partial], tmp_path / "t.json", measure)


def test_tables_are_compared_as_a_matrix(space):
    first = table_of(space, cost)
    tables = [first, table_of(space, lambda key: 2 * cost(key)), table_of(space, cost, [])]
    found = diff_matrix(tables)
    size = len(first)
    assert found["entries"] == [[size, size, 0], [size, size, 0], [0, 0, 0]]
    assert found["ratio"] == [[1.0, 2.0, None], [0.5, 1.0, None], [None, None, None]]
    assert found["spearman"][0][:2] == pytest.approx([1.0, 1.0])
