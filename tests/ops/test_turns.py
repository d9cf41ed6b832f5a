"""Passes side by side: every weight takes them in their order, and one that fails holds up none of the others."""

import functools
import threading
import time

import pytest
import torch

from dnas.ops import GradientMemory, PassPool, forget_memory, joint_conv2d
from dnas.ops.turns import expect_gradient, in_turn

PATIENCE_S = 10.0


@pytest.fixture
def pool():
    threads = torch.get_num_threads()
    pool = PassPool(3)
    yield pool
    pool.close()
    torch.set_num_threads(threads)


def bounded(run, passes):
    """``run(passes)``, or a failure where it hangs."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run(passes)), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert found, "it hangs, or it failed"
    return found[0]


@pytest.mark.parametrize("slowest", range(4))
def test_every_weight_takes_the_passes_in_their_order(pool, slowest):
    weights = [torch.zeros(1) for _ in range(3)]
    taken = {id(weight): [] for weight in weights}
    used = [weights, weights[::2], [], weights]  # the second does not need the middle one, the third needs none

    def one(index):
        for weight in used[index]:
            expect_gradient(weight)
        time.sleep(0.05 * (index == slowest))
        for weight in reversed(used[index]):
            with in_turn(weight):
                taken[id(weight)].append(index)
        return index

    assert bounded(pool.run, [functools.partial(one, index) for index in range(4)]) == [0, 1, 2, 3]
    assert list(taken.values()) == [[0, 1, 3], [0, 3], [0, 1, 3]]


def test_what_an_earlier_pass_does_not_use_is_not_waited_for(pool):
    first, second = torch.zeros(1), torch.zeros(1)
    met = threading.Event()

    def earlier():
        expect_gradient(first)
        with in_turn(first):
            return met.wait(PATIENCE_S / 2)  # only the later pass, which needs another weight, can end this

    def later():
        expect_gradient(second)
        with in_turn(second):
            met.set()
        return True

    assert bounded(pool.run, [earlier, later]) == [True, True]


def test_a_pass_that_fails_is_raised_and_ends_what_waits_for_it(pool):
    weight, taken = torch.zeros(1), []

    def fails():
        expect_gradient(weight)
        raise ValueError("of the first pass")

    def waits():
        expect_gradient(weight)
        with in_turn(weight):
            taken.append(True)

    with pytest.raises(ValueError, match="of the first pass"):
        pool.run([fails, waits])
    assert taken == [True]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_are_those_of_passes_one_after_the_other_bit_by_bit(pool, layout):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    weights = [torch.nn.Parameter(torch.randn(6, 6, 3, 3).to(memory_format=layout)) for _ in range(8)]
    images = [torch.randn(2, 6, 9, 9) for _ in range(4)]

    def one(index):
        x = images[index]
        for weight in weights:
            x = joint_conv2d(x, [weight], 1, [6 if index % 2 else 5])[:, :6]
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 6 - x.shape[1])).tanh()
        x.sum().backward()

    found = []
    for run in (PassPool(1).run, pool.run, pool.run):
        memories = [GradientMemory(weight) for weight in weights]
        run([functools.partial(one, index) for index in range(4)])
        found.append([memory.tensor for memory in memories])
    assert all(weight.grad is None for weight in weights)
    forget_memory(weights)
    PassPool(1).run([functools.partial(one, index) for index in range(4)])
    found.append([weight.grad for weight in weights])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
