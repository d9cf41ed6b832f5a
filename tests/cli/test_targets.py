"""Searches with a latency target and any number of branches, from a handmade table to derived networks."""

import pytest

from derive import DeriveOptions
from derive.multi_branch import decode_as_published, latency_bounds
from derive.multi_branch.branches import SELECTION
from dnas.data import DataConfig
from dnas.files import read_json
from dnas.runs import RunFolder
from dnas.workflows.derivation import derive_network
from dnas.workflows.search import run_search
from search_spaces import space_from
from tests.priced import by_width, priced_table

SPACE = {
    "space": "fasterseg",
    "task": {"input_size": [64, 64], "num_classes": 6},
    "branch_selection": {"reference_ms": 1.0},
    "network": {"layers": 4, "ratios": [1, 2], "branches": 2, "student_ratio": 1, "teacher_ratio": 2},
    "search": {
        "pretrain_epochs": 1,
        "search_epochs": 3,
        "batch_size": 2,
        "validate_every": 9,
        "validation_images": 1,
        "architecture_learning_rate": 0.1,
        "augmentation": {"crop": [64, 64]},
    },
}
DATA = DataConfig(dataset="rectangles", size=(64, 64), images={"train": 8, "val": 1})


def space_of(**changes):
    """The space with values changed by dotted key."""
    values = {key: dict(part) if isinstance(part, dict) else part for key, part in SPACE.items()}
    for key, value in changes.items():
        *section, name = key.split("__")
        (values[section[0]] if section else values)[name] = value
    return space_from(values, "test")


@pytest.mark.parametrize("share", [0.15, 0.75])
def test_the_derived_student_has_the_latency_asked_for(tmp_path, share):
    """With a low and a high target the student is within 5 % of it, and the run folder says how it was reached."""
    free = space_of()
    table = priced_table(free, by_width)
    bounds = latency_bounds(free.plan(), table.lookup).values()
    fastest, slowest = min(pair[0].latency_ms for pair in bounds), max(pair[1].latency_ms for pair in bounds)
    target = fastest + share * (slowest - fastest)
    space = space_of(latency_target_ms=target)
    run_search(space, DATA, table, tmp_path / "run", seed=1, device="cpu")
    derivation = derive_network(tmp_path / "run", DeriveOptions())
    assert derivation.target_ms == target
    assert derivation.latency_ms == pytest.approx(target, rel=0.05)
    signatures = derivation.architecture.signatures(space.num_classes, space.input_size)
    assert derivation.latency_ms == pytest.approx(sum(map(table.lookup, signatures)))
    assert float(derivation.architecture.provenance["target_ms"]) == target
    kept = read_json(tmp_path / "run" / SELECTION, "selection")
    assert kept["student"]["latency_ms"] == derivation.latency_ms
    assert kept["student"]["target_ms"] == target
    assert kept["teacher"]["target_ms"] is None
    epochs = RunFolder.open(tmp_path / "run").records("epoch")
    assert all(epoch["derived"]["target_ms"] == target for epoch in epochs)
    assert epochs[-1]["derived"]["outputs"].keys() == {"8_16", "8_32", "16_32"}
    argmax = {"_".join(map(str, score.branches)): score.argmax_ms for score in derivation.scores}
    assert epochs[-1]["derived"]["outputs"] == pytest.approx(argmax)
    # Lambda is negative for a slow target and positive for a fast one.
    weights = [step["latency_weight"] for step in RunFolder.open(tmp_path / "run").records("step")]
    assert min(weights) < 0 if share > 0.5 else max(weights) > 0.01


@pytest.mark.parametrize(("count", "combinations"), [(1, {(8,), (16,), (32,)}), (3, {(8, 16, 32)})])
def test_one_and_three_branches_are_scored_too(tmp_path, count, combinations):
    """All other tests have two branches."""
    space = space_of(network__branches=count, search__search_epochs=1)
    table = priced_table(space, by_width)
    run_search(space, DATA, table, tmp_path / "run", device="cpu")
    kept = read_json(tmp_path / "run" / SELECTION, "selection")["student"]
    assert {tuple(score["branches"]) for score in kept["scores"]} == combinations
    for score in kept["scores"]:
        assert score["score"] == pytest.approx(score["miou"] * score["latency_ms"] ** -0.07)
    best = max(kept["scores"], key=lambda score: score["score"])
    assert kept["chosen"] == best["branches"]
    outputs = RunFolder.open(tmp_path / "run").records("epoch")[-1]["miou_outputs"]["student"]
    assert {"_".join(map(str, score["branches"])): score["miou"] for score in kept["scores"]} == outputs


def test_the_published_code_s_rule_decodes_a_run_of_its_grid(tmp_path):
    space = space_of(network__layers=8, search__search_epochs=1, search__pretrain_epochs=0)
    table = priced_table(space, by_width)
    run_search(space, DATA, table, tmp_path / "run", device="cpu")
    derivation = derive_network(tmp_path / "run", DeriveOptions(rule="published-code"))
    assert derivation.rule == derivation.architecture.provenance["rule"] == "published-code"
    tables = RunFolder.open(tmp_path / "run").load_weights("architecture")
    logits = {name.removeprefix("student."): x for name, x in tables.items() if name.startswith("student.")}
    plan = space.plan()
    ends = tuple(branch.scale for branch in derivation.architecture.branches)
    assert derivation.architecture.branches == decode_as_published(logits, plan, ends).branches
    assert derivation.latency_ms > 0
    assert derivation.architecture.build(6) is not None
