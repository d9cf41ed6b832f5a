"""The tables in docs/RESULTS.md are those of the committed rows."""

import json

from scripts.study.config import load_study
from scripts.study.rows import (
    DERIVED,
    HAND_MADE,
    LENGTH,
    RANDOM,
    RESULTS,
    RETRAININGS,
    SUPERNETS,
    append_row,
    read_rows,
)
from scripts.study.tables import DOCUMENT, TABLES, with_tables


def test_tables_of_the_document_are_those_of_the_rows():
    document = DOCUMENT.read_text()
    assert with_tables(document, RESULTS) == document


def test_every_row_has_the_keys_of_the_benchmark():
    keys = {"space", "data", "recipe", "network", "seed", "predicted_ms", "measured_ms", "val_miou", "test_miou"}
    more = {RANDOM: set(), DERIVED: {"target_ms", "method", "search_seed"}, HAND_MADE: set(), LENGTH: {"epochs"}}
    for name, further in more.items():
        for row in read_rows(RESULTS / name) if (RESULTS / name).exists() else ():
            assert keys | further <= set(row), (name, row["network"])
            assert 0 < row["val_miou"] < 1
            assert 0 < row["test_miou"] < 1


def test_every_table_of_rows(tmp_path):
    study = load_study("camvid")
    common = {"space": study.space, "data": study.data, "recipe": study.recipe_key, "measured_ms": 7.1}
    for number in range(30):
        scores = {"val_miou": 0.4 + 0.002 * number, "test_miou": 0.3 + 0.002 * number}
        row = {**common, **scores, "network": str(number), "predicted_ms": 6.8 + 0.01 * number, "cpu_seconds": 60.0}
        for seed in range(3 if number < 4 else 1):
            append_row(tmp_path / RANDOM, {**row, "seed": seed, "epochs": 20})
        append_row(tmp_path / LENGTH, {**row, "seed": 0, "epochs": 40})
    derived = {**row, "method": "estimator", "target_ms": 7.0, "search_cpu_seconds": 200.0}
    for seed in range(3):
        append_row(tmp_path / DERIVED, {**derived, "search_seed": seed, "seed": seed})
    supernet = {
        **common,
        "setting": "20 epochs",
        "search_seed": 0,
        "search": {"epochs": 20},
        "networks": 30,
        "tau": 0.5,
    }
    supernet |= {"rho": 0.6, "search_cpu_seconds": 600.0, "bands": {"7": {"tau": 0.4}}}
    append_row(tmp_path / SUPERNETS, supernet)
    name = next(iter(study.hand_made))
    append_row(tmp_path / HAND_MADE, {**row, "network": name, "parameters": 10**6, "seed": 0})
    for way, gain in {"from scratch": 0.0, "inherited": 0.02}.items():
        for seed in range(2):
            scores = {"val_miou": 0.4 + 0.01 * seed + gain, "test_miou": 0.3}
            append_row(tmp_path / RETRAININGS, {**row, **scores, "way": way, "epochs": 20, "seed": seed})

    tables = {block: table(study, tmp_path) for block, table in TABLES.items()}
    assert "| all | 30 |" in tables["random"]
    assert "4 networks, 12 trainings" in tables["random"]
    assert "| 20 and 40 | 30 | 42.9 | 42.9 | 1.00 | 1.00 | 1.00 |" in tables["length"]
    assert "| 20, two seeds | 4 | 40.3 | 40.3 | 1.00 | 1.00 | 1.00 |" in tables["length"]
    assert tables["derived"].splitlines()[2].startswith("| estimator | 7 | 3 | 3 | 30 | 45.8 ± 0.0 |")
    assert f"| {name} | 1.00 | 7.10 | 1 |" in tables["hand-made"]
    assert "| inherited | 20 | 2 | 1.0 | 42.5 ± 0.7 | +2.0 ± 0.0 | 30.0 ± 0.0 | +0.0 ± 0.0 |" in tables["retrainings"]
    marked = "<!-- begin: study camvid random -->\nold\n<!-- end: study camvid random -->"
    assert tables["random"] in with_tables(marked, tmp_path)
    assert json.loads((tmp_path / RANDOM).read_text().splitlines()[0])["network"] == "0"
