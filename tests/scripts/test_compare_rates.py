"""The comparison of derived dilation rates with random ones."""

import argparse
import sys

import pytest

from derive.dilated import BaseNetwork, DilatedArchitecture
from dnas.config import to_mapping
from dnas.data import load_data_config
from dnas.errors import UserError
from dnas.networks import dilation_bounds, field_of_view
from scripts import compare_rates
from scripts.study.rates_table import rates_table, with_rates_tables
from scripts.study.rows import RATES, append_row, read_rows
from search_spaces import load_space

FOUR = {"rates": [[1], [1], [1], [1]], "width": 32}


def four_blocks(*rates):
    names = [f"backbone.blocks.{index}.dilated.branches.0" for index in range(4)]
    return DilatedArchitecture(
        network=BaseNetwork(name="regseg_small", options=FOUR),
        rates=dict(zip(names, rates, strict=True)),
        num_classes=2,
    )


@pytest.mark.parametrize("gaps", [False, True])
def test_random_rates_have_the_field_of_view_of_the_derived_ones(gaps):
    derived = four_blocks(1, 3, 9, 15)
    drawn = [derived.rates]
    for draw in range(3):
        drawn.append(compare_rates.random_rates(derived, drawn, 0, draw, 24, gaps=gaps))
    assert all(rates not in drawn[:number] for number, rates in enumerate(drawn))
    for rates in drawn[1:]:
        network = compare_rates._unmerged(compare_rates.with_rates(derived, rates))
        bounds = dilation_bounds(network)
        assert field_of_view(network) == derived.field_of_view()
        assert any(rate > bounds[name] for name, rate in rates.items()) == gaps
        assert max(rates.values()) <= 24


def test_a_field_of_view_that_only_rates_with_gaps_have():
    space = load_space("regseg_rectangles", [f"network.options={FOUR}", "rates.upper=32"])
    found = compare_rates.architectures(space, four_blocks(2, 5, 17, 22), 0, 2)
    assert list(found) == [("derived", 0), ("ones", 0), ("random_with_gaps", 0), ("random_with_gaps", 1)]


def test_every_seed_is_compared_with_as_many_random_networks_as_are_asked_for():
    space = load_space("regseg_rectangles", [f"network.options={FOUR}", "rates.upper=24"])
    found = compare_rates.architectures(space, four_blocks(1, 3, 9, 15), 0, 2)
    assert list(found)[2:] == [("random", 0), ("random_with_gaps", 0), ("random", 1), ("random_with_gaps", 1)]
    assert {one.field_of_view() for (name, _), one in found.items() if name != "ones"} == {15 + 28 * 16}


def test_what_has_a_row_is_neither_searched_nor_trained(tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(compare_rates, "run_study", lambda study, *_, **__: planned.append(list(study.jobs)))
    space = load_space("regseg_rectangles", [f"network.options={FOUR}", "rates.upper=24"])
    options = argparse.Namespace(out=tmp_path, results=tmp_path, seeds=1, draws=1, rf_next=False)
    done = {("derived", 0, 0): to_mapping(four_blocks(1, 3, 9, 15)), ("random", 0, 0): {}}
    compare_rates.train_all(
        space, load_data_config("rectangles"), options, done, lambda *_: pytest.fail("none has run")
    )
    assert planned == [["ones_0_seed0", "random_with_gaps_0_seed0"]]


def test_a_comparison_at_toy_size(tmp_path, monkeypatch):
    small = ["search.augmentation={}", "retrain.augmentation={}", "search.batch_size=4", "retrain.batch_size=4"]
    small += ["network.options.rates=[[1],[1]]", "network.options.width=16", "search.precision=fp32"]
    command = [
        "toy",
        "--out",
        str(tmp_path / "out"),
        "--results",
        str(tmp_path),
        "--seeds",
        "1",
        "--draws",
        "0",
        "--size",
        "64",
        "64",
    ]
    command += ["--search-epochs", "1", "--retrain-epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["compare_rates", *command, *(f"--set={change}" for change in small)])
    monkeypatch.setattr(compare_rates, "BUILT_IN_IMAGES", ("images.train=8", "images.val=4", "images.test=4"))
    for _ in range(2):  # the second time adds no row
        compare_rates.main()
        rows = read_rows(tmp_path / RATES, comparison="toy")
        assert sorted(row["rates"] for row in rows) == ["derived", "ones"]
    # Killed before the second row was written: the training is done and is not repeated.
    (tmp_path / RATES).write_text((tmp_path / RATES).read_text().splitlines(keepends=True)[0])
    compare_rates.main()
    assert read_rows(tmp_path / RATES, comparison="toy") == rows
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--set=retrain.learning_rate=0.1"])
    with pytest.raises(UserError, match="'toy' was compared with other settings; give another name"):
        compare_rates.main()
    monkeypatch.setattr(sys, "argv", [sys.argv[0], "other", *sys.argv[2:]])
    with pytest.raises(UserError, match=r"holds runs with another space\.yaml; give another folder"):
        compare_rates.main()
    assert all(0 <= row["test_miou"] <= 1 and 0 <= row["top_quarter"] <= 1 for row in rows)
    assert {row["rates"]: row["field_of_view"] for row in rows}["ones"] == 15 + 2 * 16


def test_the_table_compares_with_the_derived_networks(tmp_path):
    scores = {"derived": (0.9, 0.8), "random": (0.7, 0.86, 0.84)}
    for rates, values in scores.items():
        for seed, miou in enumerate(values):
            row = {"comparison": "bars", "rates": rates, "draw": 0, "seed": seed, "field_of_view": 500}
            append_row(tmp_path / RATES, {**row, "test_miou": miou, "top_quarter": None})
    document = with_rates_tables("<!-- begin: rates bars -->\nold\n<!-- end: rates bars -->", tmp_path)
    assert "| derived | 2 | 500 | 85.0 ± 7.1 | 80.0 to 90.0 |  |  |" in document
    assert (
        "| random, same field of view, no gaps (Eq. 3) | 3 | 500 | 80.0 ± 8.7 | 70.0 to 86.0 | 2 of 3 | +5.0 ("
        in document
    )
    assert rates_table("other", tmp_path) == "*No rows yet.*"
