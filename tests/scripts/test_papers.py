"""The papers' tables: each runs at toy size, and docs/PAPERS.md names every table and figure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dnas.data.config import DatasetName
from dnas.networks import network_by_name
from dnas.profile import count_parameters
from scripts.papers.__main__ import main
from scripts.papers.config import TOY_RECIPE, load_table, table_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", table_names())
def test_every_row_has_a_network_a_recipe_and_data(name: str):
    """Networks are built without memory; a recipe with its changes is valid."""
    table = load_table(name)
    assert table.data in DatasetName.__args__
    for label in table.rows:
        description = table.described(label)
        with torch.device("meta"):
            network = network_by_name(description["name"], table.num_classes, description["options"])
        printed = table.rows[label].printed.get("parameters")
        if printed is not None:
            assert count_parameters(network) / 1e6 == pytest.approx(float(printed), rel=0.01)
        if table.trains:
            table.retraining(label)
            table.retraining(label, TOY_RECIPE)


@pytest.mark.parametrize("name", [name for name in table_names() if load_table(name).trains])
def test_every_table_runs_at_toy_size(name: str, tmp_path: Path, capsys):
    assert main([name, "--toy", "--out", str(tmp_path), "--device", "cpu"]) == 0
