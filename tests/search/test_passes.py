"""How the passes of a step run, side by side or not, and where their gradients are gathered: it changes no result."""

import pytest
import torch

from dnas.search import CoSearch, bilevel
from dnas.search.bilevel import passes_at_once
from dnas.search.descent import SupernetSGD
from dnas.search.sharing import shared_like
from dnas.search.split import EVERYTHING, SplitWeight
from dnas.supernet import run_cell, run_cell_plainly


def alone_and_side_by_side(tiny, tmp_path, **settings):
    """What a search ends with, by passes one after the other and by three at once, with one thread each."""
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)  # how many threads share a convolution decides about rounding
    try:
        for number in (1, 3):
            config = tiny.config(passes_at_once=number, **settings)
            problem = tiny.problem(config)
            tiny.run(tmp_path / str(number), config, problem=problem)
            found.append({**problem.weights.state_dict(), **problem.architecture.state_dict()})
    finally:
        torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("join_passes", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("operator_sampling", ["mixed", "single_path"])
def test_passes_side_by_side_end_in_the_same_bits(tiny, tmp_path, recompute, join_passes, precision, operator_sampling):
    settings = {"recompute": recompute, "join_passes": join_passes, "operator_sampling": operator_sampling}
    alone, together = alone_and_side_by_side(tiny, tmp_path, precision=precision, **settings)
    assert all(torch.equal(values, together[name]) for name, values in alone.items())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("operator_sampling", ["mixed", "single_path"])
def test_weights_that_descend_while_passes_run_end_in_the_same_bits(
    tiny, tmp_path, monkeypatch, recompute, precision, operator_sampling
):
    """As they do without clipping, each as soon as it has all of its gradient."""
    descend, early = SupernetSGD.descend, shared_like(torch.zeros(1))  # which forks write to, too
    monkeypatch.setattr(SupernetSGD, "descend", lambda self, weight: (early.add_(1), descend(self, weight)))
    settings = {"recompute": recompute, "operator_sampling": operator_sampling, "gradient_clipping": None}
    precisions = {"precision": precision, "momentum_precision": precision}
    alone, together = alone_and_side_by_side(tiny, tmp_path, **settings, **precisions)
    assert early
    assert all(torch.equal(values, together[name]) for name, values in alone.items())


@pytest.mark.parametrize("clipping", [None, 5.0])
def test_split_weights_search_like_whole_ones(tiny, tmp_path, monkeypatch, clipping):
    """But for ties, in which autocast rounds to even: here they are moved to that side, by 1 of 2**24 parts."""
    write = SplitWeight.write

    def write_without_ties(self, values, part=EVERYTHING):
        bits = values.view(torch.int32)
        write(self, bits.sub_(((bits & 0x1FFFF) == 0x8000).int()).view(torch.float32), part)

    def whole(*arguments, **options):
        return SupernetSGD(*arguments, **{**options, "compute_precision": torch.float32})

    monkeypatch.setattr(SplitWeight, "write", write_without_ties)
    found = []
    for make in (SupernetSGD, whole):
        monkeypatch.setattr(bilevel, "SupernetSGD", make)
        config = tiny.config(precision="bf16", momentum_precision="bf16", gradient_clipping=clipping, passes_at_once=1)
        problem = tiny.problem(config)
        tiny.run(tmp_path / make.__name__, config, problem=problem)
        found.append({**problem.weights.state_dict(), **problem.architecture.state_dict()})
    split, anew = found
    for name, values in split.items():
        torch.testing.assert_close(values, anew[name], rtol=1e-5, atol=1e-7, msg=name)


def test_as_many_passes_as_threads_run_at_a_time(tiny, monkeypatch):
    threads, cpu = torch.get_num_threads(), torch.device("cpu")
    monkeypatch.setattr(bilevel, "can_fork", lambda: True)
    try:
        for number, expected in ((1, 1), (2, 2), (3, 3), (16, 4)):
            torch.set_num_threads(number)
            assert passes_at_once(tiny.config(), cpu) == expected
    finally:
        torch.set_num_threads(threads)
    assert passes_at_once(tiny.config(passes_at_once=2), cpu) == 2
    assert passes_at_once(tiny.config(passes_at_once=9), cpu) == 4
    assert passes_at_once(tiny.config(passes_at_once=2), torch.device("cuda")) == 1
    monkeypatch.setattr(bilevel, "can_fork", lambda: False)
    assert passes_at_once(tiny.config(passes_at_once=2), cpu) == 1


class Doubled(CoSearch):
    """Computes in float64."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.weights.double(), self.architecture.double()

    def outputs(self, images, forward):
        return super().outputs(images.double(), forward)


@pytest.mark.parametrize("operator_sampling", ["mixed", "single_path"])
@pytest.mark.parametrize(("number", "run"), [(1, run_cell), (3, run_cell), (1, run_cell_plainly)])
def test_gradients_gathered_in_momenta_are_sgd(tiny, tmp_path, operator_sampling, number, run):
    """As they are without clipping; with a limit that is never reached they are gathered apart."""
    found = []
    for clipping in (None, 1e9):
        config = tiny.config(gradient_clipping=clipping, passes_at_once=number, operator_sampling=operator_sampling)
        problem = tiny.problem(config, kind=Doubled)
        problem.run_cell = run
        tiny.run(tmp_path / str(clipping), config, problem=problem)
        found.append(dict(problem.weights.named_parameters()))
    mine, plain = found
    for name, weight in plain.items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("passes_at_once", [1, 2])
def test_passes_as_one_batch_search_like_apart(tiny, tmp_path, passes_at_once):
    found = []
    for join in (True, False):
        config = tiny.config(join_passes=join, passes_at_once=passes_at_once)
        problem = tiny.problem(config, kind=Doubled)
        tiny.run(tmp_path / str(join), config, problem=problem)
        found.append({**problem.weights.state_dict(), **problem.architecture.state_dict()})
    mine, apart = found
    for name, values in apart.items():
        torch.testing.assert_close(mine[name], values, rtol=1e-9, atol=1e-9, msg=name)
    logs = [tiny.lasting(tmp_path / str(join)) for join in (True, False)]
    for one, other in zip(*([r for r in log if r["kind"] == "step"] for log in logs), strict=True):
        assert one["loss_weights"] == pytest.approx(other["loss_weights"])


def test_which_passes_are_one_batch(tiny):
    for join, expected in ((True, ["student", "teacher+student", "student"]), (False, ["student", "teacher"])):
        problem = tiny.problem(tiny.config(join_passes=join))
        passes = problem.weight_passes("search", torch.Generator().manual_seed(0))
        assert [one.architecture for one in passes][: len(expected)] == expected
        assert sum(one.count for one in passes) == 4
    assert tiny.config().joins_passes  # crops are small
    assert not tiny.config(augmentation={"crop": (400, 500)}).joins_passes
    assert tiny.config(augmentation={"crop": (400, 500)}, batch_size=1).joins_passes
    assert not tiny.config(augmentation={"crop": None}).joins_passes
