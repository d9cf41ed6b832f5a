"""Passes side by side: every weight takes them in their order, and one that fails holds up none of the others."""

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dnas.errors import UserError
from dnas.ops import GradientMemory, forget_memory, joint_conv2d
from dnas.ops.turns import expect_gradient, in_turn, turn_back
from dnas.search.passes import PassPool, _own_memory_mb, can_fork
from dnas.search.sharing import share, shared_like

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux, where there is no accelerator")

PATIENCE_S = 20.0


@contextlib.contextmanager
def pool(passes, weights=(), processes=3, finish=None):
    """Runs ``passes``, which take the request, in several processes."""

    @contextlib.contextmanager
    def prepare(request):
        yield [functools.partial(one, request) for one in passes]

    threads = torch.get_num_threads()
    made = PassPool(prepare, processes=processes, weights=weights, finish=finish)
    yield made
    made.close()
    assert torch.get_num_threads() == threads


def bounded(pool, request=None):
    """``pool.run(request)``, or a failure where it hangs."""
    found = []

    def run():
        try:
            found.append(pool.run(request))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert found, "it hangs"
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def shared(*shape):
    return shared_like(torch.zeros(*shape))


def there_and_back(weights, places, pause):
    """What a pass does: the places among the weights that it uses, forwards; then, each in its turn, backwards."""
    for place in places:
        expect_gradient(weights[place])
    turn_back()
    time.sleep(pause)
    for place in reversed(places):
        with in_turn(weights[place]):
            yield place


@pytest.mark.parametrize("slowest", range(4))
def test_every_weight_takes_the_passes_in_their_order(slowest):
    weights = [shared(1) for _ in range(3)]
    used = [(0, 1, 2), (0, 2), (), (0, 1, 2)]
    taken, counts = shared(3, 4), shared(3)

    def one(index, request):
        for place in there_and_back(weights, used[index], 0.1 * (index == slowest)):
            taken[place, int(counts[place])] = index + 1
            counts[place] += 1
        return index + request

    with pool([functools.partial(one, index) for index in range(4)], weights) as made:
        for request in (0, 10):
            taken.zero_(), counts.zero_()
            assert bounded(made, request) == [request, request + 1, request + 2, request + 3]
            assert taken.tolist() == [[1, 2, 4, 0], [1, 4, 0, 0], [1, 2, 4, 0]]
            assert [any(weight is other for other in made.added()) for weight in weights] == [True] * 3


@pytest.mark.parametrize("slowest", range(4))
def test_a_weight_is_finished_once_by_whoever_adds_to_it_last(slowest):
    weights = [shared(1) for _ in range(3)]
    used = [(0, 1, 2), (0, 1), (1, 2), (1,)]
    sums, finished = shared(3), shared(3)

    def one(index, _):
        for place in there_and_back(weights, used[index], 0.1 * (index == slowest)):
            sums[place] += 1
            assert not finished[place]

    def finish(weight):
        (place,) = (place for place, other in enumerate(weights) if weight is other)
        assert sums[place] == (2, 4, 2)[place]
        finished[place] += 1

    with pool([functools.partial(one, index) for index in range(4)], weights, finish=finish) as made:
        for _ in range(2):
            sums.zero_(), finished.zero_()
            bounded(made)
            # That the last pass does not need the others is not known in time where it is the slowest.
            assert finished[1] == 1
            left = [any(weight is other for other in made.added()) for weight in weights]
            assert [not one for one in left] == finished.bool().tolist()
            assert finished.max() == 1


@pytest.mark.parametrize("slow", [0, 1])
def test_who_has_no_pass_left_finishes_what_others_add_to(slow):
    weights, finishers, helped, finished = [shared(1) for _ in range(5)], shared(5), shared(1), shared(1)

    def one(index, _):
        for place in there_and_back(weights, range(5) if index == slow else [4], 0):
            if index == slow and place < 4:
                wait_for(helped)  # until the other process has none left
        if index == slow:
            wait_for(finished)  # afterwards this process would help, too
        return os.getpid()

    def finish(weight):
        (place,) = (place for place, other in enumerate(weights) if weight is other)
        assert not finishers[place]
        finishers[place] = os.getpid()
        finished.fill_(bool(finishers[:4].all()))

    with pool([functools.partial(one, index) for index in range(2)], weights, 2, finish) as made:
        turns = made._turns

        def watch():
            while not turns._ready[-1]:
                time.sleep(1e-3)
            helped.fill_(1)

        threading.Thread(target=watch, daemon=True).start()
        workers = bounded(made)
        assert made.added() == []
    assert finishers[:4].tolist() == [workers[1 - slow]] * 4
    assert int(finishers[4]) in workers


def test_what_a_failed_pass_did_not_come_to_is_not_finished():
    first, second, third = (shared(1) for _ in range(3))

    def one(index, _):
        for weight in (first, second, third)[index:]:
            expect_gradient(weight)
        turn_back()
        for weight in (third, second):
            with in_turn(weight):
                if index and weight is second:
                    raise ValueError("on its way back")
        with in_turn(first):
            pass

    finished = shared(1)
    passes = [functools.partial(one, index) for index in range(2)]
    with pool(passes, [first, second, third], 2, lambda weight: finished.add_(weight is second)) as made:
        with pytest.raises((ValueError, RuntimeError), match="on its way back"):
            bounded(made)
        assert not finished
        assert any(weight is second for weight in made.added())


def test_every_process_begins_with_the_pass_of_its_number():
    started = shared(1)

    def one(index, _):
        if index == 1:  # would be taken by the first process, were it the first to come
            started.fill_(1)
        else:
            wait_for(started)
        return os.getpid()

    with pool([functools.partial(one, index) for index in range(2)], [], 2) as made:
        found = {tuple(bounded(made)) for _ in range(5)}
        ((first, other),) = found
        assert first == os.getpid() != other


def test_what_an_earlier_pass_does_not_use_is_not_waited_for():
    first, second, met = shared(1), shared(1), shared(1)

    def earlier(_):
        expect_gradient(first)
        turn_back()
        with in_turn(first):
            end = time.monotonic() + PATIENCE_S / 2
            while not met and time.monotonic() < end:  # only the later pass, which needs another weight, can end this
                time.sleep(0.01)
        return bool(met)

    def later(_):
        expect_gradient(second)
        turn_back()
        with in_turn(second):
            met.fill_(1)
        return True

    with pool([earlier, later], [first, second], 2) as made:
        assert bounded(made) == [True, True]


def test_a_pass_that_comes_to_a_weight_twice_adds_both_before_the_next():
    weight, taken = shared(1), shared(6)

    def one(index, _):
        for _ in range(2):
            expect_gradient(weight)
        turn_back()
        expect_gradient(weight)  # a recomputation, for the same two
        for _ in range(2):
            time.sleep(0.05 * (2 - index))
            with in_turn(weight):
                taken[int((taken > 0).sum())] = index + 1
        return True

    with pool([functools.partial(one, index) for index in range(3)], [weight]) as made:
        assert bounded(made) == [True] * 3
    assert taken.tolist() == [1, 1, 2, 2, 3, 3]


def test_a_process_that_cannot_be_forked_is_a_message(monkeypatch):
    def fails(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fails)
    with pool([lambda _: 1] * 2, [], 2) as made, pytest.raises(UserError, match=r"search\.passes_at_once=1"):
        made.run(None)


def test_more_passes_than_can_be_told_apart_are_refused():
    with pool([lambda _: 1] * 300, [], 2) as made, pytest.raises(ValueError, match="300 passes"):
        bounded(made)


def test_a_daemon_has_no_forks(monkeypatch):
    assert can_fork()
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    assert not can_fork()


class Odd(Exception):
    """Cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("of a pass"), (ValueError, RuntimeError)),
        (UserError("of a pass"), UserError),
        (Odd("of a", "pass"), Exception),
    ],
)
def test_a_pass_that_fails_is_raised_and_ends_what_waits_for_it(error, expected):
    weight, taken = shared(1), shared(2)

    def fails(_):
        expect_gradient(weight)
        time.sleep(0.1)
        raise error

    def waits(_):
        expect_gradient(weight)
        turn_back()
        time.sleep(0.1)
        with in_turn(weight):
            taken[0] += 1

    def late(fail, request):
        return fails(request) if fail else waits(request)

    for order in ([True, False], [False, True]):
        with pool([functools.partial(late, fail) for fail in order], [weight], 2) as made:
            with pytest.raises(expected, match="of a pass"):
                bounded(made)
            with pytest.raises(expected, match="of a pass"):  # and the processes are there still
                bounded(made)
    assert taken[0] == 4


def test_a_process_that_is_killed_ends_the_step_with_a_message():
    weight, owner = shared(1), os.getpid()

    def one(_):
        expect_gradient(weight)
        time.sleep(0.1)
        turn_back()
        if os.getpid() != owner:
            os.kill(os.getpid(), signal.SIGKILL)
        with in_turn(weight):
            return True

    with pool([one, one], [weight], 2) as made, pytest.raises(UserError, match="ended with status -9"):
        bounded(made)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_is_for_the_first(number):
    started = shared(1)

    def one(_):
        started.fill_(1)
        time.sleep(0.3)
        return os.getpid()

    def both(request):
        return os.getpid(), one(request)

    with pool([both, both], [], 2) as made:
        (fork,) = {pid for pair in bounded(made) for pid in pair} - {os.getpid()}
        started.zero_()
        thread = threading.Thread(target=lambda: (wait_for(started), os.kill(fork, number)))
        thread.start()
        assert {pid for pair in bounded(made) for pid in pair} == {fork, os.getpid()}
        thread.join()
        assert {pid for pair in bounded(made) for pid in pair} == {fork, os.getpid()}


def wait_for(flag):
    end = time.monotonic() + PATIENCE_S
    while not flag and time.monotonic() < end:
        time.sleep(0.01)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_processes_end_with_the_one_that_forked_them(tmp_path):
    """Even where that is killed in the middle of a step."""
    process = os.fork()
    if process == 0:
        try:

            def one(_):
                (tmp_path / str(os.getpid())).touch()
                time.sleep(0.5)

            with pool([one, one], [], 2) as made:
                while True:
                    made.run(None)
        finally:
            os._exit(1)
    end = time.monotonic() + PATIENCE_S
    while len(found := {int(path.name) for path in tmp_path.iterdir()}) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    (fork,) = found - {process}
    while is_running(fork):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.05)


def test_a_program_ends_although_its_pool_was_not_closed():
    program = """
import contextlib, os
from dnas.search.passes import PassPool

pool = PassPool(lambda _: contextlib.nullcontext([os.getpid] * 2), processes=2)
pool.run(None)
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, timeout=2 * PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_pool_that_nobody_holds_leaves_no_process():
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(pool([lambda _: time.sleep(0.1) or os.getpid()] * 2, [], 2))
        (fork,) = set(bounded(made)) - {os.getpid()}
        assert is_running(fork)
        stack.pop_all()
    del made, stack
    gc.collect()
    assert not is_running(fork)


def test_processes_give_back_what_they_no_longer_hold():
    def one(request):
        if request == "hold":
            pieces = [torch.ones(1000) for _ in range(20_000)]
            del pieces[:-1]  # 80 MB in pieces below one that stays for now
        return _own_memory_mb()

    with pool([one, one], processes=2) as made:
        before = bounded(made, "look")[1]
        held = bounded(made, "hold")[1]
        assert held > before + 50
        assert bounded(made, "look")[1] > before + 50
        made.give_back()
        assert bounded(made, "look")[1] < before + 50
        assert made.peak_mb > before + 50


def test_processes_use_their_share_of_the_threads():
    """Also where the one that forks has run operations with several threads, which OpenMP does not survive easily."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.randn(600, 600) @ torch.randn(600, 600)

        def one(_):
            torch.relu(torch.randn(1 << 20))
            return float((torch.ones(600, 600) @ torch.ones(600, 600)).sum()), torch.get_num_threads()

        with pool([one] * 4, [], 2) as made:
            assert bounded(made) == [(600.0**3, 2)] * 4
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_are_those_of_passes_one_after_the_other_bit_by_bit(layout):
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = [torch.nn.Parameter(torch.randn(6, 6, 3, 3).to(memory_format=layout)) for _ in range(8)]
    before = [weight.detach().clone() for weight in weights]
    share(weights)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(weights, before, strict=True))
    images = [torch.randn(2, 6, 9, 9) for _ in range(4)]

    def one(index, _):
        x = images[index]
        for weight in weights:
            x = joint_conv2d(x, [weight], 1, [6 if index % 2 else 5])[:, :6]
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 6 - x.shape[1])).tanh()
        turn_back()
        x.sum().backward()

    passes = [functools.partial(one, index) for index in range(4)]
    found = []
    try:
        for processes in (1, 2, 3):
            memories = [GradientMemory(weight, shared_like(weight.detach())) for weight in weights]
            with pool(passes, weights, processes) as made:
                made.run(None)
                assert len(made.added()) == (len(weights) if processes > 1 else 0)
            found.append([memory.tensor for memory in memories])
        assert all(weight.grad is None for weight in weights)
        forget_memory(weights)
        with pool(passes, processes=1) as made:
            made.run(None)
        found.append([weight.grad for weight in weights])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
