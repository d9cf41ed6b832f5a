"""The studies of the scripts and of the documentation."""

import argparse
from pathlib import Path

from dnas.workflows.study.config import load_study
from dnas.workflows.study.graph import plan
from scripts import compare_searches


def test_the_comparison_of_searches_is_one_study():
    options = argparse.Namespace(
        kinds=["plain", "bf16"], seeds=2, layers=4, images=9, pretrain_epochs=1, search_epochs=2, retrain_epochs=3
    )
    jobs = plan(compare_searches.study(options), {"space": "fasterseg_demo"})
    kinds = [job.kind for job in jobs]
    assert {kind: kinds.count(kind) for kind in kinds} == {"table": 1, "search": 4, "architecture": 4, "student": 4}
    search = next(job for job in jobs if job.name == "search-seed=1-kind=bf16")
    words = list(search.words)
    settings = {words[index + 1] for index, word in enumerate(words) if word == "--set"}
    assert settings == {
        *("network.layers=4", "search.pretrain_epochs=1", "search.search_epochs=2", "search.decoupling=solved"),
        *("search.precision=bf16", "search.momentum_precision=bf16"),
    }
    assert 'images={"train": 9, "val": 24, "test": 8}' in words
    assert len(plan(load_study(compare_searches.STUDY), {"space": "x"})) == 1 + 3 * 5 * 3


def test_the_example_in_the_documentation():
    jobs = plan(load_study(Path(__file__).parents[3] / "docs/examples/curve.yaml"), {"space": "fasterseg_demo"})
    assert len(jobs) == 1 + 3 + 5 * 9
    by_kind = {job.kind: job for job in reversed(jobs)}
    assert by_kind["train_student"].after == ("student-target=2.5-seed=0",)
    assert by_kind["student"].after == ("search-seed=0",)
