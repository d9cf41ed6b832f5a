"""The execution of a step's passes and the place where gradients are accumulated do not change the result."""

import pytest
import torch

from dnas.search import bilevel
from dnas.search.optim import SplitBF16Weight, SupernetSGD
from dnas.search.optim.split_bf16 import EVERYTHING
from search_spaces.fasterseg import CoSearch, run_cell, run_cell_reference


@pytest.mark.parametrize("clipping", [None, 5.0])
def test_split_weights_search_like_whole_ones(tiny, tmp_path, monkeypatch, clipping):
    """Except for ties, which autocast rounds to even: here the last bit of ties is changed to round the same way."""
    write = SplitBF16Weight.write

    def write_without_ties(self, values, part=EVERYTHING):
        bits = values.view(torch.int32)
        write(self, bits.sub_(((bits & 0x1FFFF) == 0x8000).int()).view(torch.float32), part)

    def whole(*arguments, **options):
        return SupernetSGD(*arguments, **{**options, "split_bf16": False})

    monkeypatch.setattr(SplitBF16Weight, "write", write_without_ties)
    found = []
    for make in (SupernetSGD, whole):
        monkeypatch.setattr(bilevel, "SupernetSGD", make)
        config = tiny.config(precision="bf16", momentum_precision="bf16", gradient_clipping=clipping)
        problem = tiny.problem(config)
        tiny.run(tmp_path / make.__name__, config, problem=problem)
        found.append({**problem.weights.state_dict(), **problem.architecture.state_dict()})
    split, anew = found
    for name, values in split.items():
        torch.testing.assert_close(values, anew[name], rtol=1e-5, atol=1e-7, msg=name)


class Doubled(CoSearch):
    """Computes in float64."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.weights.double(), self.architecture.double()

    def outputs(self, images, forward):
        return super().outputs(images.double(), forward)


@pytest.mark.parametrize("operator_sampling", ["mixed", "single_path"])
@pytest.mark.parametrize("run", [run_cell, run_cell_reference])
def test_accumulating_gradients_in_momenta_is_sgd(tiny, tmp_path, operator_sampling, run):
    """Without clipping gradients are accumulated in the momenta; with a huge limit they have separate buffers."""
    found = []
    for clipping in (None, 1e9):
        config = tiny.config(gradient_clipping=clipping, operator_sampling=operator_sampling)
        problem = tiny.problem(config, kind=Doubled)
        problem.run_cell = run
        tiny.run(tmp_path / str(clipping), config, problem=problem)
        found.append(dict(problem.weights.named_parameters()))
    mine, plain = found
    for name, weight in plain.items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-9, atol=1e-9)


def test_passes_in_one_batch_search_like_single_ones(tiny, tmp_path):
    found = []
    for join in (True, False):
        config = tiny.config(batch_equal_passes=join)
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
        problem = tiny.problem(tiny.config(batch_equal_passes=join))
        passes = problem.weight_passes("search", torch.Generator().manual_seed(0))
        assert [one.architecture for one in passes][: len(expected)] == expected
        assert sum(one.count for one in passes) == 4
    assert tiny.config().batches_equal_passes  # crops are small
    assert not tiny.config(augmentation={"crop": (400, 500)}).batches_equal_passes
    assert tiny.config(augmentation={"crop": (400, 500)}, batch_size=1).batches_equal_passes
    assert not tiny.config(augmentation={"crop": None}).batches_equal_passes
