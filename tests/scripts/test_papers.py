"""The papers' tables: every row can be built, and one table for each recipe runs at toy size."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from dnas.config import parse_config
from dnas.data.config import DatasetName
from dnas.errors import UserError
from dnas.networks import list_networks, network_by_name
from dnas.training.recipes import load_recipe
from scripts.papers.__main__ import main
from scripts.papers.config import TOY_RECIPE, Table, load_table, table_names
from scripts.papers.figure import against, measured_points, printed_points
from scripts.papers.run import markdown, run_folder

TABLES = {name: load_table(name) for name in table_names()}
BY_RECIPE = {table.recipe: name for name, table in sorted(TABLES.items(), key=lambda item: len(item[1].columns))}
"""A table for each recipe, the one with most columns; the others differ from it in values alone."""


@pytest.mark.parametrize("name", TABLES)
def test_every_row_names_a_network_and_a_valid_recipe(name: str):
    table = TABLES[name]
    assert table.data in get_args(DatasetName)
    if table.trains:
        assert load_recipe(table.recipe).data in (table.data, "camvid", "cityscapes")
    for label in table.rows:
        assert table.described(label)["name"] in list_networks()
        if table.trains:
            config = table.retraining(label)
            changed = table.retraining(label, TOY_RECIPE)
            assert (changed.epochs, changed.batch_size) == (1, 2)
            assert changed.learning_rate == config.learning_rate


def test_the_options_of_all_rows_fit_their_networks():
    """Built without memory; networks without options are tested as registered networks."""
    options = [TABLES[name].described(label) for name in TABLES for label in TABLES[name].rows]
    distinct = {json.dumps(found, sort_keys=True) for found in options if found["options"]}
    for text in sorted(distinct):
        description = json.loads(text)
        with torch.device("meta"):
            network_by_name(description["name"], 19, description["options"])


@pytest.mark.parametrize("recipe", [recipe for recipe in BY_RECIPE if recipe])
def test_a_table_of_each_recipe_runs_at_toy_size(recipe: str, tmp_path: Path, capsys):
    name = BY_RECIPE[recipe]
    assert main([name, "--toy", "--out", str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table, label = TABLES[name], next(iter(TABLES[name].rows))
    row = next(line for line in lines if line.startswith(f"| {label} |")).split(" | ")
    assert len(row) == 1 + 2 * len(table.columns)
    result = json.loads((tmp_path / "results.jsonl").read_text())
    assert (result["label"], result["seed"]) == (label, 0)
    for column in table.columns:
        # The toy images have none of the classes that the reduced mIoU leaves out.
        assert column == "reduced_miou" or result[column] is not None


def test_a_table_without_trainings_is_counted_and_continued(tmp_path: Path, capsys):
    command = ["dwrseg_table1", "--out", str(tmp_path)]
    assert main([*command, "--rows", "DWRSeg-B"]) == 0
    assert "| DWRSeg-B | 2.54 | 2.54 | 13.62 | 13.62 |" in capsys.readouterr().out
    before = (tmp_path / "results.jsonl").read_text()
    assert main(command) == 0
    assert "| DWRSeg-L | 3.53 | 3.53 | 16.40 | 16.42 |" in capsys.readouterr().out
    assert (tmp_path / "results.jsonl").read_text().startswith(before)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


def test_rows_of_several_seeds_have_mean_and_deviation():
    table = TABLES["regseg_v1_table9"]
    results = [
        {"label": "RegSeg", "seed": seed, "miou": miou, "fps": 10.0, "parameters": 3334951, "multiply_adds": None}
        for seed, miou in enumerate((0.77, 0.79))
    ]
    assert "| RegSeg | 78.00 ± 1.41 | 78.13 ± 0.48 | 10.00 | 30 | 3.33 | 3.34 |  | 39.1 |" in list(
        markdown(table, results)
    )


def test_every_training_has_a_folder_of_its_own():
    for table in TABLES.values():
        trained = [label for label, row in table.rows.items() if row.trained is None]
        assert len({run_folder(table, label, 0) for label in table.rows}) == len(trained)
        assert run_folder(table, trained[0], 0) != run_folder(table, trained[0], 1)


def test_a_row_may_use_the_training_of_another():
    table = TABLES["dwrseg_table3"]
    assert table.described("DWRSeg-B75") == table.described("DWRSeg-B50") == {"name": "dwrseg_b", "options": {}}
    assert table.retraining("DWRSeg-B75") == table.retraining("DWRSeg-B50")
    assert table.rows["DWRSeg-B75"].inference.input_size == (768, 1536)
    values = {"paper": "P", "title": "t", "network": "regseg", "recipe": "regseg_v1_cityscapes", "columns": ["miou"]}
    with pytest.raises(UserError, match="'b' is not a row with a training of its own"):
        parse_config(Table, {**values, "rows": {"a": {"trained": "b"}, "b": {"trained": "a"}}}, "table")
    with pytest.raises(UserError, match="need a recipe"):
        parse_config(Table, {**values, "recipe": None, "rows": {"a": {}}}, "table")


def test_mistakes_are_one_line_and_the_tables_are_listed(tmp_path: Path, capsys):
    for arguments, message in (
        (["table99", "--out", "x"], "no such table, expected one of dwrseg_table1"),
        (["eseg_table4"], "give --out"),
        (["eseg_table4", "--out", str(tmp_path)], "give --root, the folder of cityscapes, or --toy"),
        (["eseg_table4", "--out", str(tmp_path), "--rows", "ESeg-XL"], "row 'ESeg-XL': expected some of ESeg-S"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TABLES)


def test_the_figure_has_the_points_of_the_rows_and_of_the_paper():
    """DWRSeg, Fig. 1: mIoU over FPS."""
    table = TABLES["dwrseg_table3"]
    results = [
        {"label": "DWRSeg-B50", "seed": seed, "miou": miou, "fps": 10.0} for seed, miou in enumerate((0.7, 0.72))
    ]
    assert printed_points(table, "fps", "miou")["DWRSeg-L75"] == (123.4, 76.3)
    assert measured_points(table, results, "fps", "miou") == {"DWRSeg-B50": (10.0, pytest.approx(71.0))}
    axes = against(table, results, "fps").axes[0]
    assert [len(points.get_offsets()) for points in axes.collections] == [4, 1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("FPS", "mIoU (%)")
    with pytest.raises(UserError, match="--against field_of_view: DWRSeg, Table 3 has the columns miou, fps"):
        against(table, results, "field_of_view")


FIGURES = {
    "RegSeg, version 1": (10, 7),
    "RegSeg, version 3": (9, 9),
    "FasterSeg": (7, 7),
    "DWRSeg": (4, 8),
    "ESeg": (8, 4),
}
"""Number of tables and of figures of each paper."""


def test_the_documentation_has_a_line_for_every_table_and_figure():
    text = (Path(__file__).parents[2] / "docs" / "PAPERS.md").read_text()
    sections = dict(re.findall(r"^## (.+?) \(.*?\)$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert sections.keys() == FIGURES.keys()
    for paper, (tables, figures) in FIGURES.items():
        lines = re.findall(r"^\| ((?:Tables?|Figs?\.) [^|]+) \|", sections[paper], re.MULTILINE)
        named = {
            (part[0], number)
            for line in lines
            for part in re.findall(r"(T|F)[a-z.]+ ([\d, ]+)", line)
            for number in map(int, part[1].replace(" ", "").strip(",").split(","))
        }
        assert named == {("T", n + 1) for n in range(tables)} | {("F", n + 1) for n in range(figures)}, paper


def test_the_documentation_names_every_command_and_no_other():
    text = (Path(__file__).parents[2] / "docs" / "PAPERS.md").read_text()
    assert set(re.findall(r"python -m scripts\.papers (\w+_\w+)", text)) == set(TABLES)
    for script in re.findall(r"python (scripts/\w+\.py)", text):
        assert (Path(__file__).parents[2] / script).is_file()
    for module in re.findall(r"python -m (scripts\.[\w.]+)", text):
        assert importlib.util.find_spec(module) is not None
    for recipe in re.findall(r"--recipe (\w+)", text):
        assert load_recipe(recipe)
    anchors = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(
            r"^#+ (.+)$", (Path(__file__).parents[2] / "docs" / "RESULTS.md").read_text(), re.MULTILINE
        )
    }
    assert set(re.findall(r"RESULTS\.md#([\w-]+)", text)) <= anchors
