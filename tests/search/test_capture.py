"""Passes as graphs: what surrounds a CUDA graph, with a recorder that runs on a CPU."""

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from dnas.errors import UserError
from dnas.search import bilevel
from dnas.search.capture import WARM_UP, PassGraphs
from search_spaces import load_space

TABLE = SimpleNamespace(lookup=lambda spec: 0.1)


class Recorder:
    """As a CUDA graph: recording changes no memory, a run computes the same outputs from what the inputs hold then."""

    def __init__(self):
        self.recorded = self.runs = 0
        self.kept = ()

    def __call__(self, function):
        self.recorded += 1
        before = [tensor.clone() for tensor in self.kept]
        outputs = function()
        for tensor, values in zip(self.kept, before, strict=True):
            tensor.copy_(values)

        def run():
            self.runs += 1
            for static, value in zip(flat(outputs), flat(function()), strict=True):
                static.copy_(value)

        return run, outputs


def flat(outputs):
    loss, gradients = outputs
    return [loss, *(gradient for _, gradient in gradients)]


@pytest.fixture
def captured(monkeypatch):
    """Searches run their passes as graphs of this recorder."""
    recorder = Recorder()

    def graphs(search):
        optimizer = search.weight_optimizer
        graphs = PassGraphs(search._loss, optimizer, recorder)
        recorder.kept = [optimizer._accumulator(index) for index in range(len(optimizer.sliced))]
        optimizer.filled = frozenset()
        return graphs

    monkeypatch.setattr(bilevel.BilevelSearch, "_pass_graphs", graphs)
    return recorder


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("clipping", [None, 5.0])
def test_a_search_with_graphs_ends_like_one_without(tiny, tmp_path, request, clipping, merged):
    config = tiny.config(gradient_clipping=clipping, batch_equal_passes=merged, pretrain_epochs=2, search_epochs=2)
    found = []
    for name in ("plain", "graphs"):
        recorder = request.getfixturevalue("captured") if name == "graphs" else None
        problem = tiny.problem(config)
        tiny.run(tmp_path / name, config, problem=problem)
        found.append({**problem.weights.state_dict(), **problem.architecture.state_dict()})
    steps = 4 * 2  # epochs, batches of a half
    fixed = 2  # student.smallest and teacher.largest in both phases; student.largest joins in the second
    assert recorder.recorded >= fixed
    assert recorder.runs >= fixed * (steps - 2 * WARM_UP)
    plain, graphs = found
    for name, values in plain.items():
        assert torch.equal(graphs[name], values), name


def test_only_passes_of_fixed_widths_have_keys(tiny):
    problem = tiny.problem(tiny.config(batch_equal_passes=False))
    generator = torch.Generator().manual_seed(0)
    passes = {phase: problem.weight_passes(phase, generator) for phase in ("pretrain", "search")}
    assert [one.key for one in passes["pretrain"]] == [("student", "smallest"), ("teacher", "largest"), None, None]
    problem.batch_equal_passes = True
    merged = problem.weight_passes("search", generator)
    assert [one.key for one in merged][:2] == [
        ("student", "smallest"),
        (("teacher", "largest"), ("student", "largest")),
    ]


def test_passes_of_single_paths_have_no_keys(tiny):
    problem = tiny.problem(tiny.config(operator_sampling="single_path"))
    passes = problem.weight_passes("search", torch.Generator().manual_seed(0))
    assert {one.key for one in passes} == {None}


def test_without_a_gpu_graphs_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"search\.capture: CUDA graphs need a GPU, given the device cpu"):
        tiny.run(tmp_path / "run", tiny.config(capture=True))


def test_a_search_whose_passes_are_all_drawn_has_no_graphs(tiny, tmp_path):
    with pytest.raises(UserError, match=r"search\.capture: all passes of this search are drawn"):
        tiny.run(tmp_path / "run", tiny.config(capture=True, operator_sampling="single_path"))


def test_graphs_keep_what_recomputing_would_free(tiny):
    with pytest.raises(ValidationError, match="capture keeps the activations, recompute does not"):
        tiny.config(capture=True, recompute=True)


@pytest.mark.parametrize(
    ("preset", "settings", "keys"),
    [
        ("eseg_camvid_small", [], [None, None, None]),
        (
            "eseg_camvid_small",
            [f"search.kinds.{kind}.sampler=softmax" for kind in ("levels", "repeats", "link")],
            ["smallest", "largest", None],
        ),
        ("dwrseg_camvid_small", [], ["sampled"]),
        ("fasterseg_dilated_camvid_small", [], [None, None, None]),
    ],
    ids=["drawn", "mixed", "branches", "rates"],
)
def test_networks_with_choices_have_keys_where_nothing_is_drawn(preset, settings, keys):
    problem = load_space(preset, ["task.num_classes=6", *settings]).problem(TABLE, 0)
    passes = problem.weight_passes("search", torch.Generator().manual_seed(0))
    assert [one.key for one in passes] == keys
