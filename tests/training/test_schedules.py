from __future__ import annotations

import math

import pytest
import torch

from dnas.training import cosine_decay, exponential_decay, linear_warm_up, make_sgd, poly_decay, set_learning_rate


def test_poly_at_known_points():
    assert poly_decay(0, 1000) == 1
    assert poly_decay(500, 1000) == pytest.approx(0.5**0.9)
    assert poly_decay(500, 1000, power=2) == pytest.approx(0.25)
    assert poly_decay(1000, 1000) == poly_decay(1001, 1000) == 0


def test_cosine_at_known_points():
    assert [cosine_decay(step, 4) for step in range(6)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]
    )


def test_exponential_at_known_points():
    """FasterSeg, Appendix H: power 0.99."""
    assert exponential_decay(0) == 1
    assert exponential_decay(30) == pytest.approx(0.99**30)


def test_warm_up_runs_from_a_tenth_to_one():
    """RegSeg: "a linear warmup from 0.1lr to lr for the first 3000 iterations"."""
    assert linear_warm_up(0, 3000) == pytest.approx(0.1)
    assert linear_warm_up(1500, 3000) == pytest.approx(0.55)
    assert linear_warm_up(3000, 3000) == linear_warm_up(4000, 3000) == 1
    assert linear_warm_up(0, 0) == 1


def test_a_schedule_fits_lambda_lr():
    network = torch.nn.Linear(2, 2)
    optimizer = make_sgd(network, learning_rate=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly_decay(step, 4))
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.75**0.9)


def test_sgd_decays_only_what_it_should():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    network[0].bias.requires_grad_(False)
    groups = make_sgd(network, learning_rate=0.1, weight_decay=0.01).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.01), (2, 0.0)]
    assert groups[0]["params"][0] is network[0].weight
    everything = make_sgd(network, learning_rate=0.1, weight_decay=0.01, decay_norms_and_biases=True)
    assert [(len(group["params"]), group["weight_decay"]) for group in everything.param_groups] == [(3, 0.01)]
    set_learning_rate(everything, 0.3)
    assert everything.param_groups[0]["lr"] == 0.3
