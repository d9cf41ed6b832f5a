"""Damaged files of every kind that dnas reads; ``python -m scripts.faults`` tries many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.faults import Kind, kinds, run

SLOW = {"network.onnx": 6, "network.pt2": 6, "rates_architecture.yaml": 30, "retrained": 10, "rates": 8, "space": 30}
"""Fewer tries, by the name of the file or its folder, where a reader loads a runtime or builds a network."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return kinds(tmp_path_factory.mktemp("files"))


@pytest.mark.filterwarnings("ignore")  # of libraries about what they read
def test_damaged_files_of_every_kind_are_read_or_refused(files: dict[str, Kind]):
    failures = []
    for name, kind in files.items():
        count = SLOW.get(name, SLOW.get(Path(name).parts[0], 200) if "/" in name else 200)
        failures += [f"{name}: {failure}" for failure in run(kind, count, seed=0).failures if "took" not in failure]
    assert not failures
