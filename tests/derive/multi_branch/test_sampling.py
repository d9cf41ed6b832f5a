"""Sampled networks spread over the latencies of their space."""

from derive.multi_branch import sample_architectures
from dnas.ops import OPERATORS
from dnas.profile import count_multiply_adds
from search_spaces.fasterseg import Grid, NetworkPlan

PLAN = NetworkPlan(Grid(8), OPERATORS, (1, 2, 4), 2, 3, (64, 96), 2)


def test_a_seed_draws_the_same_networks():
    assert sample_architectures(PLAN, 6, seed=4) == sample_architectures(PLAN, 6, seed=4)
    assert sample_architectures(PLAN, 6, seed=4) != sample_architectures(PLAN, 6, seed=5)


def test_networks_are_valid_and_go_from_small_to_large():
    found = sample_architectures(PLAN, 12, seed=0)
    for architecture in found:
        architecture.check()
    assert {tuple(branch.scale for branch in a.branches) for a in found} == {(8, 16), (8, 32), (16, 32)}
    work = [count_multiply_adds(a.build(3), PLAN.image_size) for a in found]
    assert sum(work[-4:]) > 1.5 * sum(work[:4])
    assert max(work) > 2 * min(work)
