"""Statistics of a study against brute force and known values."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from scripts.study.analysis import best_of, compare, highest_tau, means, noise, search_seconds, within_band


def row(network, score, seed=0, ms=7.0, **more):
    return {"network": network, "val_miou": score, "test_miou": score, "seed": seed, "predicted_ms": ms, **more}


def test_noise_separates_seeds_from_networks():
    generator = np.random.default_rng(0)
    rows = []
    for network in range(400):
        true = generator.normal(0.4, 0.03)
        rows += [row(str(network), generator.normal(true, 0.01), seed) for seed in range(3 if network < 200 else 1)]
    found = noise(rows, "val_miou")
    assert (found.networks, found.trainings) == (200, 600)
    assert found.within == pytest.approx(0.01, rel=0.1)
    assert found.between == pytest.approx(np.hypot(0.03, 0.01), rel=0.1)
    assert found.reliability == pytest.approx(0.9, abs=0.03)


def test_the_highest_tau_is_that_of_the_true_scores():
    generator = np.random.default_rng(0)
    true = generator.normal(0.4, 0.03, 1500)
    seeds = [1 if network % 2 else 3 for network in range(len(true))]
    rows = [
        row(str(network), generator.normal(true[network], 0.02), seed)
        for network in range(len(true))
        for seed in range(seeds[network])
    ]
    observed = [mean["val_miou"] for mean in means(rows, "val_miou")]
    expected = scipy.stats.kendalltau(true, observed).statistic
    assert highest_tau(rows, 0.02, "val_miou") == pytest.approx(expected, abs=0.02)


def test_noise_alone_cannot_be_ranked():
    rows = [row(str(network), 0.4 + 0.001 * network) for network in range(10)]
    assert highest_tau(rows, 0.02, "val_miou") == 0.0


def test_means_over_seeds_keep_one_row_a_network():
    rows = [row("a", 0.3), row("b", 0.5), row("a", 0.5, seed=1)]
    assert [(r["network"], r["val_miou"]) for r in means(rows, "val_miou")] == [("a", 0.4), ("b", 0.5)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_best_of_is_the_mean_over_all_subsets(count):
    values, scores = [0.3, 0.9, 0.1, 0.5, 0.2], [0.2, 0.1, 0.5, 0.4, 0.3]
    subsets = itertools.combinations(range(5), count)
    expected = np.mean([values[max(subset, key=scores.__getitem__)] for subset in subsets])
    assert best_of(values, scores, count) == pytest.approx(expected)


def test_best_of_more_than_there_are_is_the_best():
    assert best_of([0.3, 0.9], [0.1, 0.2], 10) == pytest.approx(0.9)


def test_derived_networks_are_compared_with_random_ones_of_their_latency():
    random = [row(str(i), 0.30 + 0.01 * i, ms=7.0 + 0.01 * i, cpu_seconds=100.0) for i in range(20)]
    derived = [row(f"d{i}", score, search_cpu_seconds=350.0) for i, score in enumerate((0.46, 0.47, 0.48))]
    found = compare(derived, within_band(random, 7.0, 0.05), "test_miou")
    assert (found.networks, found.seeds, found.trained) == (20, 3, 4)
    assert found.percentile == pytest.approx(17 / 20)
    assert found.difference == pytest.approx(0.47 - 0.395)
    assert found.low < found.difference < found.high
    assert found.low > 0
    assert 0.395 < found.best_of < 0.49


def test_the_time_of_an_interrupted_search_is_left_out():
    random = [row(str(i), 0.30 + 0.01 * i, cpu_seconds=100.0) for i in range(20)]
    interrupted = row("d1", 0.47, search_cpu_seconds=None, derive_cpu_seconds=50.0)
    known = row("d0", 0.46, search_cpu_seconds=300.0, derive_cpu_seconds=50.0)
    assert search_seconds([known, interrupted]) == pytest.approx(350.0)
    assert compare([known, interrupted], random, "test_miou").trained == 4
    unknown = compare([interrupted], random, "test_miou")
    assert unknown.trained == 0
    assert math.isnan(unknown.best_of)


def test_latency_bands_are_relative():
    rows = [row("a", 0.1, ms=6.6), row("b", 0.1, ms=6.7), row("c", 0.1, ms=7.34), row("d", 0.1, ms=7.4)]
    assert [r["network"] for r in within_band(rows, 7.0, 0.05)] == ["b", "c"]
