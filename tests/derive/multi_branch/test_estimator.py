"""The additive model of what choices contribute, against brute force and textbook formulas."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from derive.multi_branch.decode import Likelihoods, scored_paths
from derive.multi_branch.estimator import ContributionModel, beta_logits
from search_spaces.fasterseg import Grid, NetworkPlan
from search_spaces.fasterseg.selection import FairSampler, Selection, branch_paths, joint_paths

PLAN = NetworkPlan(Grid(5, (8, 16, 32)), ("skip", "conv", "zoomed_conv"), (2, 4), 2, 5, (64, 96), 4)
TINY = NetworkPlan(Grid(3, (8, 16)), ("skip", "conv"), (2, 4), 1, 5, (64, 96), 4)


def drawn(plan, count, seed=0):
    return FairSampler(plan).draw(count, torch.Generator().manual_seed(seed))


def additive(plan, seed, noise=0.0):
    """A function that scores selections by random contributions."""
    model = ContributionModel(plan)
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=len(model.features(drawn(plan, 1)[0])))
    return lambda one: 0.4 + 0.01 * float(model.features(one) @ weights) + noise * generator.normal()


def every_selection(plan):
    """All selections of a tiny plan, with the choices of cells that no branch visits fixed."""
    places = list(plan.grid.cells())
    for branches in plan.combinations():
        for entered in joint_paths(plan.grid, branches):
            path = Selection(entered, {}, {}).places(plan.grid)
            searched = sorted(path)
            connections = [place for place in searched if place[1]]
            for names in itertools.product(plan.operators, repeat=len(searched)):
                for ratios in itertools.product(plan.ratios, repeat=len(connections)):
                    operators = dict.fromkeys(places, plan.operators[0])
                    widths = {place: plan.ratios[0] for place in places if place[1]}
                    yield Selection(
                        entered,
                        operators | dict(zip(searched, names, strict=True)),
                        widths | dict(zip(connections, ratios, strict=True)),
                    )


def test_every_choice_of_a_network_counts_once():
    """A shared cell has one operator; each branch enters each level once."""
    model = ContributionModel(PLAN)
    for one in drawn(PLAN, 20):
        row = model.features(one)
        cells = len(one.places(PLAN.grid))
        connections = sum(1 for _, layer in one.places(PLAN.grid) if layer)
        entries = sum(map(len, one.entered.values()))
        assert row.sum() == 3 * cells + 3 * connections + entries + 1


def test_additive_scores_are_recovered():
    score = additive(PLAN, seed=1)
    selections = drawn(PLAN, 600)
    found = ContributionModel(PLAN).fit(selections, [score(one) for one in selections])
    assert found.ridge.fit.tau > 0.97
    unseen = drawn(PLAN, 50, seed=9)
    predicted, true = [found.predict(one) for one in unseen], [score(one) for one in unseen]
    assert np.corrcoef(predicted, true)[0, 1] > 0.999


def test_the_likeliest_network_has_the_largest_sum():
    """The logits' argmax, of every combination of branches, is the best of all selections."""
    score = additive(TINY, seed=2, noise=0.002)
    selections = drawn(TINY, 80)
    found = ContributionModel(TINY).fit(selections, [score(one) for one in selections])
    likelihoods = Likelihoods(found.logits(ratios=True), TINY)
    for branches in TINY.combinations():
        best = max(found.predict(one) for one in every_selection(TINY) if one.branches == branches)
        assert found.predict(likelihoods.likeliest(branches)) == pytest.approx(best, abs=1e-9)


def test_log_probabilities_differ_like_contributions():
    """The loss that derivation minimises is the lost sum of contributions, in units of their uncertainty."""
    score = additive(PLAN, seed=3, noise=0.01)
    selections = drawn(PLAN, 200)
    found = ContributionModel(PLAN).fit(selections, [score(one) for one in selections])
    likelihoods = Likelihoods(found.logits(ratios=True), PLAN)
    unit = found.uncertainty()
    for one in selections[:5]:
        for place in sorted(one.places(PLAN.grid)):
            others = [replace(one, operators={**one.operators, place: name}) for name in PLAN.operators]
            if place[1]:
                others += [replace(one, ratios={**one.ratios, place: ratio}) for ratio in PLAN.ratios]
            for other in others:
                lost = likelihoods.loss(other) - likelihoods.loss(one)
                assert lost == pytest.approx((found.predict(one) - found.predict(other)) / unit, abs=1e-5)


@pytest.mark.parametrize(("level", "layers"), [(1, 2), (1, 6), (2, 5)])
def test_beta_gives_paths_their_scores(level, layers):
    grid = Grid(max(layers, 3), (8, 16, 32))
    generator = np.random.default_rng(level + layers)
    for scale in (0.01, 1.0, 30.0):
        entries = scale * generator.normal(size=grid.layers - level)
        betas = torch.tensor(beta_logits(entries, grid, level), dtype=torch.float64)
        logs = torch.log_softmax(betas, dim=1)
        found = np.array([logs[:, 1].sum(), *logs[:, 0]])
        assert np.allclose(found - found.mean(), entries - entries.mean(), atol=1e-6 * max(1.0, scale))
    assert beta_logits([0.3], grid, grid.layers - 1) == []


def test_predictions_without_one_network_are_those_of_a_model_of_the_others():
    score = additive(TINY, seed=4, noise=0.02)
    selections = drawn(TINY, 30)
    scores = np.array([score(one) for one in selections])
    model = ContributionModel(TINY)
    found = model.fit(selections, scores)
    x = np.stack([model.features(one) for one in selections])
    residuals = []
    for left_out in range(30):
        kept = [index for index in range(30) if index != left_out]
        mean = x[kept].mean(axis=0)
        gram = (x[kept] - mean).T @ (x[kept] - mean) + found.ridge.fit.penalty * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, (x[kept] - mean).T @ (scores[kept] - scores[kept].mean()))
        residuals.append(scores[left_out] - scores[kept].mean() - (x[left_out] - mean) @ weights)
    assert found.ridge.fit.error == pytest.approx(math.sqrt(np.mean(np.square(residuals))), rel=1e-9)


def test_the_uncertainty_is_that_of_bayesian_linear_regression():
    score = additive(TINY, seed=6, noise=0.02)
    selections = drawn(TINY, 40)
    model = ContributionModel(TINY)
    found = model.fit(selections, [score(one) for one in selections])
    x = np.stack([model.features(one) for one in selections])
    x -= x.mean(axis=0)
    covariance = found.ridge.fit.error**2 * np.linalg.inv(x.T @ x + found.ridge.fit.penalty * np.eye(x.shape[1]))
    variances = []
    for place in TINY.grid.cells():
        kinds = [("operator", TINY.operators)] + ([("ratio", TINY.ratios)] if place[1] else [])
        for kind, choices in kinds:
            rows = model.columns(kind, place, choices)
            variances += np.diag(rows @ covariance @ rows.T).tolist()
    assert found.uncertainty() == pytest.approx(math.sqrt(np.mean(variances)), rel=1e-6)


def test_noise_alone_decides_nothing():
    generator = np.random.default_rng(0)
    found = ContributionModel(PLAN).fit(drawn(PLAN, 300), generator.normal(0.3, 0.05, size=300))
    assert abs(found.ridge.fit.tau) < 0.3
    tables = [table for name, table in found.logits(ratios=True).items() if "beta" not in name]
    largest = max(torch.softmax(table, -1).max() for table in tables)
    assert largest < 0.9


def test_the_best_path_of_the_logits_is_that_of_the_contributions():
    score = additive(PLAN, seed=7)
    selections = drawn(PLAN, 300)
    found = ContributionModel(PLAN).fit(selections, [score(one) for one in selections])
    likelihoods = Likelihoods(found.logits(ratios=True), PLAN)
    for level, scale in ((1, 16), (2, 32)):
        sums = {
            path: sum(found.model.entry(found.ridge.weights, (i + 1, layer)) for i, layer in enumerate(path))
            for path in branch_paths(PLAN.grid, level)
        }
        assert scored_paths(likelihoods.entries, PLAN.grid, level)[0][1] == max(sums, key=sums.__getitem__)
        assert likelihoods.paths[scale][0][1] == max(sums, key=sums.__getitem__)
