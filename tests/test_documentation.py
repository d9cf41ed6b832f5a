"""The documentation: every command line in it runs, and the messages it explains are those of the code."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnas.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]

IMAGES = "images={train: 16, val: 4, test: 2}"
SPACE = ["--set", "network.layers=4", "--set", "network.ratios=[2]", "--set", "network.student_ratio=2"]
SPACE += ["--set", "network.teacher_ratio=2"]
SMALLER = {
    "latency build": [*SPACE, "--rounds", "1", "--time-per-entry", "0.001"],
    "latency check": [*SPACE, "--networks", "3", "--time-per-network", "0.02"],
    "search": [
        *(*SPACE, "--data-set", IMAGES, "--set", "search.epochs=1"),
        *("--set", "search.judged_networks=50", "--set", "search.judge_images=1"),
        *("--set", "search.validation_images=2"),
    ],
    "retrain": ["--data-set", IMAGES, "--set", "epochs=1"],
    "evaluate": ["--data-set", IMAGES],
    "benchmark": ["--seconds", "0.05"],
    "report": ["--networks", "2", "--examples", "1"],
}
"""Options that keep the commands of the pages short."""


def commands(page):
    return [shlex.split(line[2:]) for line in page.read_text().splitlines() if line.startswith("$ ")]


def save_folder(root, splits):
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for number in range(count):
            for kind, values in (("images", (24, 32, 3)), ("labels", (24, 32))):
                path = root / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                top = 256 if kind == "images" else 2
                Image.fromarray(generator.integers(0, top, values).astype(np.uint8)).save(path)
    (root / "classes.yaml").write_text("classes: [{name: road, colour: [9, 9, 9]}, {name: car, colour: [0, 0, 142]}]\n")


# Builds a table, searches and retrains at toy size: the four jobs, each once for the whole module.
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("documentation")
    save_folder(path / "photos", {"train": 4, "val": 2})
    save_folder(path / "scans", {".": 5})
    return path


def test_every_command_of_the_pages_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for page in PAGES:
        for command in commands(page):
            assert command[0] == "dnas"
            job = " ".join(command[1:3]) if command[1] in ("latency", "data") else command[1]
            # A machine under load measures other latencies, which no network of these targets may have.
            given = [re.sub("latency_target_ms=.*", "latency_target_ms=null", one) for one in command[1:]]
            if "--target" in given:
                given[given.index("--target") + 1] = "none"
            if "--out" in given:
                remove(folder / given[given.index("--out") + 1])
            assert main([*given, *SMALLER.get(job, [])]) == 0, (page.name, command, capsys.readouterr().err)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def test_explained_messages_are_those_of_the_code():
    sources = "\n".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        for package in ("dnas", "derive", "search_spaces")
        for path in sorted((ROOT / package).rglob("*.py"))
    )
    page = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text()
    messages = re.findall(r'\*\*"([^*]*)"\*\*', page)
    assert len(messages) > 10
    assert [message for message in messages if message not in sources] == []
