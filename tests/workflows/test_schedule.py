"""Dividing the time of the whole way, on numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnas.data import load_data_config, open_dataset
from dnas.workflows.pace import measure_costs
from dnas.workflows.schedule import (
    FEWEST_JUDGED,
    FEWEST_RETRAIN,
    FEWEST_SEARCH,
    SHARES,
    Costs,
    Work,
    schedule,
    validate_every,
    validations,
)
from search_spaces import space_from

WORK = Work(entries=214, train=200, validation=40, batch=6, searched=100, scored=50, most_search=9, most_retrain=100)
ONE_SHOT = dataclasses.replace(WORK, searched=160, scored=40, most_judged=150, judging=88, networks=1)
COSTS = Costs(entry=0.6, read=0.01, image=0.02, step=1.5, score=0.05, judge=0.02)
SECONDS = st.floats(1e-4, 100.0)


@given(
    work=st.sampled_from([WORK, ONE_SHOT]),
    time_s=st.floats(10.0, 1e6),
    costs=st.builds(Costs, entry=SECONDS, read=SECONDS, image=SECONDS, step=SECONDS, score=SECONDS, judge=SECONDS),
)
def test_the_estimate_fits_unless_everything_is_at_its_shortest(work, time_s, costs):
    """Nothing is longer than the time allows; more time never gives fewer epochs or judged networks."""
    found = schedule(time_s, work, costs)
    partly = found.search_epochs == FEWEST_SEARCH or found.retrain_epochs == FEWEST_RETRAIN
    assert found.total_s <= time_s + 1e-6 or partly
    assert FEWEST_SEARCH <= found.search_epochs <= work.most_search
    assert FEWEST_RETRAIN <= found.retrain_epochs <= work.most_retrain
    longer = schedule(2 * time_s, work, costs)
    assert longer.search_epochs + longer.judged >= found.search_epochs
    assert longer.judged >= found.judged
    assert longer.retrain_epochs >= found.retrain_epochs


def test_judging_is_a_part_of_the_search():
    """No teacher is trained, and judging takes a third of the search's time until all networks are judged."""
    slow = dataclasses.replace(COSTS, judge=0.2)
    found = schedule(36000.0, ONE_SHOT, slow)
    assert found.judged == 150
    assert set(found.seconds) == {"table", "search", "student", "rest"}
    assert found.seconds["search"] > 150 * 88 * 0.2
    assert schedule(600.0, ONE_SHOT, slow).judged == FEWEST_JUDGED


def test_four_minutes_are_too_short_for_a_table_of_this_size():
    """The table alone takes 160 s, so the rest is at its shortest, and the estimate says how long it takes."""
    found = schedule(240.0, WORK, COSTS)
    assert found.table_s == 24.0
    assert found.seconds["table"] == pytest.approx(1.25 * 214 * 0.6)
    assert (found.search_epochs, found.retrain_epochs) == (FEWEST_SEARCH, FEWEST_RETRAIN)
    assert found.total_s > 240.0
    assert found.total_s == sum(found.seconds.values())


def test_with_enough_time_the_shares_are_used():
    """The search has all epochs of its preset; the retraining is as long as the teacher's share allows."""
    found = schedule(7200.0, WORK, COSTS)
    assert found.table_s == SHARES["table"] * 7200.0
    assert found.search_epochs == WORK.most_search
    assert found.retrain_epochs == WORK.most_retrain
    slow = schedule(7200.0, WORK, dataclasses.replace(COSTS, image=0.2))
    assert FEWEST_RETRAIN < slow.retrain_epochs < WORK.most_retrain
    assert slow.total_s <= 7200.0


@given(epochs=st.integers(1, 1000), most=st.integers(1, 20))
def test_there_are_at_most_so_many_validations(epochs, most):
    done = [epoch for epoch in range(1, epochs + 1) if epoch % validate_every(epochs, most) == 0 or epoch == epochs]
    assert len(done) == validations(epochs, most) <= most


def test_everything_is_timed():
    """Each cost of a small space is a positive number of seconds."""
    task = {"input_size": [64, 96], "num_classes": 11}
    network = {"layers": 4, "ratios": [1, 2], "student_ratio": 1, "teacher_ratio": 2}
    space = space_from({"space": "fasterseg", "task": task, "network": network}, "test")
    images = open_dataset(load_data_config("streets", ["size=[64, 96]", "images={train: 4, val: 2}"]), "train")
    found = measure_costs(
        space,
        images,
        crop=(64, 64),
        batch=2,
        trained_on=torch.device("cpu"),
        latencies_of="cpu",
        backend="eager",
    )
    assert all(0 < value < 60 for value in dataclasses.asdict(found).values())
