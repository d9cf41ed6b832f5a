"""The bilevel search loop: its two steps, files and errors."""

import dataclasses
import itertools
import signal

import pytest
import torch

from dnas.config import parse_config, to_mapping
from dnas.data import AugmentationConfig, split_halves
from dnas.errors import UserError
from dnas.ops import sliced_parameters
from dnas.runs import Interrupted, RunFolder
from dnas.search import Pass, SearchConfig
from dnas.search.bilevel import BilevelSearch
from dnas.search.optim import SupernetSGD
from search_spaces.fasterseg import CoSearch, FasterSegSearchConfig


def all_gradients(problem):
    """Gradients by name; those of superkernels are in buffers until the weight step."""
    buffers = {
        id(one.parameter): one.module.gradient_buffers.get(one.name) for one in sliced_parameters(problem.weights)
    }
    found = {}
    for name, weight in problem.weights.named_parameters():
        buffer = buffers.get(id(weight))
        gradient = weight.grad if buffer is None else buffer.tensor if buffer.filled else None
        found[name] = None if gradient is None else gradient.clone()
    return found


class Watched(CoSearch):
    """Records weights and logits at the beginning of each of the two steps."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.notes = []

    def note(self, step):
        self.notes.append(
            {
                "step": step,
                "weights": {name: p.detach().clone() for name, p in self.weights.named_parameters()},
                "logits": {name: p.detach().clone() for name, p in self.architecture.named_parameters()},
                "logit_gradients": [p.grad for p in self.architecture.parameters()],
            }
        )

    def weight_passes(self, phase, generator):
        self.note("weights")
        return super().weight_passes(phase, generator)

    def architecture_passes(self, generator):
        self.note("architecture")
        return super().architecture_passes(generator)


def same(first, second):
    return all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True)
    )


def test_each_step_changes_its_own_parameters_and_leaves_no_gradient_behind(tiny, tmp_path, monkeypatch):
    gradients, step = [], BilevelSearch._architecture_step

    def noted(search, *arguments):
        before, found, after = all_gradients(problem), step(search, *arguments), all_gradients(problem)
        gradients.append((before, after))
        return found

    monkeypatch.setattr(BilevelSearch, "_architecture_step", noted)
    config = tiny.config(pretrain_epochs=0, search_epochs=2)
    problem = tiny.problem(config, kind=Watched)
    tiny.run(tmp_path / "run", config, problem=problem)
    notes = problem.notes
    assert [note["step"] for note in notes] == ["weights", "architecture"] * 4
    for before, after in itertools.pairwise(notes):
        if before["step"] == "weights":
            assert same(before["logits"], after["logits"])
            assert not same(before["weights"], after["weights"])
        else:
            assert same(before["weights"], after["weights"])
            assert not same(before["logits"], after["logits"])
    # The weight step clears the gradients of the weights, and the architecture step makes none.
    assert len(gradients) == 4
    assert all(gradient is None for both in gradients for one in both for gradient in one.values())
    assert all(gradient is None for note in notes for gradient in note["logit_gradients"])
    final = {name: p.detach() for name, p in problem.architecture.named_parameters()}
    for name, table in final.items():
        if table.numel():
            assert not torch.equal(table, notes[0]["logits"][name]), name


def test_the_weight_step_is_sgd_on_its_own_gradients(tiny, tmp_path, monkeypatch):
    gradients, step = [], SupernetSGD.step

    def noted(optimizer):
        gradients.append(all_gradients(problem))
        step(optimizer)

    monkeypatch.setattr(SupernetSGD, "step", noted)
    config = tiny.config(
        pretrain_epochs=1, search_epochs=1, learning_rate=0.3, weight_decay=0.01, gradient_clipping=1e9
    )
    problem = tiny.problem(config, kind=Watched)
    tiny.run(tmp_path / "run", config, problem=problem)
    before, after = problem.notes[0], problem.notes[1]
    assert same(before["logits"], after["logits"])
    trained = 0
    for name, weight in before["weights"].items():
        gradient = gradients[0][name]
        if gradient is None:
            assert torch.equal(weight, after["weights"][name])
            continue
        trained += 1
        torch.testing.assert_close(after["weights"][name], weight - 0.3 * (gradient + 0.01 * weight))
    assert trained > 0.9 * len(before["weights"])


def step_length(before, after):
    return torch.stack([(before[name] - weight).norm() for name, weight in after.items()]).norm().item()


def test_gradients_are_clipped_to_the_norm_that_is_configured(tiny, tmp_path):
    """Without momentum and weight decay, and at a learning rate of 1, a step equals the gradient."""
    lengths = {}
    for clipping in (1e9, 1e-2):
        config = tiny.config(
            pretrain_epochs=0,
            search_epochs=1,
            learning_rate=1.0,
            momentum=0.0,
            weight_decay=0.0,
            gradient_clipping=clipping,
        )
        problem = tiny.problem(config, kind=Watched)
        tiny.run(tmp_path / str(clipping), config, problem=problem)
        pairs = [pair for pair in itertools.pairwise(problem.notes) if pair[0]["step"] == "weights"]
        lengths[clipping] = [step_length(before["weights"], after["weights"]) for before, after in pairs]
    assert min(lengths[1e9]) > 0.1
    assert lengths[1e-2] == pytest.approx([1e-2] * 2, rel=1e-3)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_two_steps_see_disjoint_halves_and_validation_images_none(tiny, recorded, tmp_path, seed):
    config = tiny.config(pretrain_epochs=1, search_epochs=1)
    train, val = tiny.data(train=9)
    train, val = recorded(train), recorded(val)
    tiny.run(tmp_path / "run", config, data=(train, val), seed=seed)
    assert val.read == []
    first, second = split_halves(9, seed)
    assert len(first) == 5
    assert not set(first) & set(second)
    # Pretraining reads two batches of 2 of the first half, the search alternates between the halves. A validation
    # recalibrates the statistics of each architecture on the first half, and scores it on the second;
    # its images are read once for both architectures.
    batches = [train.read[i : i + 2] for i in range(0, len(train.read), 2)]
    validation = [first, first, second, second]
    halves = [first, first, *validation, *[first, second] * 2, *validation]
    assert len(batches) == len(halves)
    for images, half in zip(batches, halves, strict=True):
        assert set(images) <= set(half)


def test_the_log_tells_every_step_and_epoch(tiny, tmp_path):
    """With halves of 3 and 2 images, a pretraining epoch has one step more than a search epoch."""
    config = tiny.config(
        pretrain_epochs=2,
        search_epochs=2,
        batch_size=1,
        augmentation=AugmentationConfig(crop=(64, 64)),
        validate_every=3,
        latency_weight=0.25,
    )
    result = tiny.run(tmp_path / "run", config, data=tiny.data(train=5, size=(64, 64)))
    run = RunFolder.open(tmp_path / "run", kind="search")
    steps, epochs = run.records("step"), run.records("epoch")
    assert [len([step for step in steps if step["epoch"] == epoch]) for epoch in range(4)] == [3, 3, 2, 2]
    assert [epoch["phase"] for epoch in epochs] == ["pretrain", "pretrain", "search", "search"]
    assert steps[0].keys() == {
        *("kind", "epoch", "step", "phase", "loss_weights", "loss_architecture"),
        *("latency_ms", "latency_weight", "learning_rate", "seconds"),
    }
    for step in steps:
        assert step["learning_rate"] == pytest.approx(0.05 * 0.99 ** step["epoch"])
        assert step["latency_weight"] == 0.25
        assert (step["loss_architecture"] is None) == (step["latency_ms"] is None) == (step["phase"] == "pretrain")
    for number, epoch in enumerate(epochs):
        losses = [step["loss_weights"] for step in steps if step["epoch"] == number]
        assert epoch["loss_weights"] == pytest.approx(sum(losses) / len(losses))
        assert epoch["latency_ms"].keys() == epoch["entropy"].keys() == {"teacher", "student"}
        assert epoch["entropy"]["student"].keys() == {"alpha", "beta", "gamma"}
        assert all(0 <= value <= 1 for value in epoch["entropy"]["student"].values())
        assert 1 <= epoch["mean_ratio"]["student"] <= 2 == epoch["mean_ratio"]["teacher"]
        assert epoch["entropy"]["teacher"]["gamma"] == 0
        assert 0 <= epoch["skip_share"]["student"] <= 1
    assert [epoch["miou"] is None for epoch in epochs] == [True, True, False, False]
    outputs = epochs[-1]["miou_outputs"]
    assert outputs["student"].keys() == {"8", "16"}
    assert epochs[-1]["miou"]["student"] == pytest.approx(sum(outputs["student"].values()) / 2)
    assert (result.epochs, result.miou, result.latency_ms) == (4, epochs[-1]["miou"], epochs[-1]["latency_ms"])
    assert parse_config(FasterSegSearchConfig, run.configuration, "run") == config


def test_the_logits_of_the_run_are_those_of_the_problem(tiny, tmp_path):
    config = tiny.config(pretrain_epochs=0, search_epochs=1)
    problem = tiny.problem(config)
    tiny.run(tmp_path / "run", config, problem=problem)
    stored = RunFolder.open(tmp_path / "run").load_weights("architecture")
    assert stored.keys() == problem.logits().keys()
    assert {name.split(".")[0] for name in stored} == {"teacher", "student"}
    assert all(torch.equal(stored[name], table) for name, table in problem.logits().items())


def test_pretraining_leaves_the_logits_alone(tiny, tmp_path):
    config = tiny.config(pretrain_epochs=2, search_epochs=1)
    problem = tiny.problem(config, kind=Watched)
    tiny.run(tmp_path / "run", config, problem=problem)
    assert [note["step"] for note in problem.notes] == ["weights"] * 4 + ["weights", "architecture"] * 2
    assert all(same(note["logits"], problem.notes[0]["logits"]) for note in problem.notes[:6])


def test_only_the_student_is_pulled_towards_low_latency(tiny, tmp_path):
    """After one step the teacher's logits do not depend on lambda; the student's follow the latency's gradient."""
    found = {}
    for latency_weight in (0.0, 1e6):
        config = tiny.config(pretrain_epochs=0, search_epochs=1, latency_weight=latency_weight)
        problem = tiny.problem(config)
        before = problem.logits()
        sample, teacher = problem.architecture_passes(torch.Generator().manual_seed(0))
        assert (sample.architecture, teacher.architecture) == ("student", "teacher")
        problem.latency(sample).backward()
        slopes = {name: p.grad for name, p in problem.architecture.named_parameters()}
        problem.architecture.zero_grad()
        tiny.run(tmp_path / str(latency_weight), config, problem=problem, data=tiny.data(train=4))
        found[latency_weight] = problem.logits()
    teacher = [name for name in before if name.startswith("teacher")]
    assert teacher
    assert all(torch.equal(found[0.0][name], found[1e6][name]) for name in teacher)
    for name, slope in slopes.items():
        if name.startswith("teacher"):
            assert slope is None
            continue
        owner, kind, level = name.split(".")
        if slope is None or not slope.numel():
            continue
        table = f"{owner}.{kind}_{8 * 2 ** int(level)}"
        moved = found[1e6][table] - before[table]
        torch.testing.assert_close(moved, -0.05 * slope.sign(), rtol=1e-3, atol=1e-4)
        assert not torch.equal(found[1e6][table], found[0.0][table])


def test_a_large_latency_weight_makes_the_student_fast(tiny, tmp_path):
    latency = {}
    for latency_weight in (0.0, 10.0):
        config = tiny.config(
            pretrain_epochs=0,
            search_epochs=3,
            latency_weight=latency_weight,
            architecture_learning_rate=0.5,
            validate_every=9,
        )
        result = tiny.run(tmp_path / str(latency_weight), config)
        latency[latency_weight] = result.latency_ms["student"]
        epochs = RunFolder.open(tmp_path / str(latency_weight)).records("epoch")
    student = [epoch["latency_ms"]["student"] for epoch in epochs]
    assert student == sorted(student, reverse=True)
    assert latency[10.0] < 0.8 * latency[0.0]


def test_the_seed_decides_the_run(tiny, tmp_path):
    config = tiny.config(pretrain_epochs=0, search_epochs=1)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        tiny.run(tmp_path / name, config, seed=seed)
        torch.rand(5)  # the caller's use of the global generator has no effect
    assert tiny.lasting(tmp_path / "a") == tiny.lasting(tmp_path / "b")
    assert tiny.lasting(tmp_path / "a") != tiny.lasting(tmp_path / "c")


def test_reading_ahead_changes_nothing(tiny, tmp_path):
    """With workers, and halves of different lengths, so that the longer one is never read to its end."""
    data = tiny.data(train=5, size=(64, 64))
    for workers in (0, 1):
        config = tiny.config(
            pretrain_epochs=1,
            search_epochs=2,
            batch_size=1,
            augmentation=AugmentationConfig(crop=(64, 64)),
            workers=workers,
        )
        tiny.run(tmp_path / str(workers), config, data=data)
    assert tiny.lasting(tmp_path / "0") == tiny.lasting(tmp_path / "1")


@pytest.mark.parametrize(
    ("sampling", "clipping", "precision"),
    [("mixed", 5.0, "fp32"), ("mixed", None, "fp32"), ("single_path", 5.0, "fp32"), ("mixed", 5.0, "bf16")],
)
def test_ctrl_c_ends_after_the_step_and_the_search_resumes(
    tiny, presses_ctrl_c, tmp_path, sampling, clipping, precision
):
    before = signal.getsignal(signal.SIGINT)
    config = tiny.config(
        pretrain_epochs=1,
        search_epochs=2,
        operator_sampling=sampling,
        gradient_clipping=clipping,
        precision=precision,
        momentum_precision=precision,
    )
    tiny.run(tmp_path / "whole", config)
    for step in (2, 5):  # at the end of the first epoch, in the last one
        progress = presses_ctrl_c(step)
        path = tmp_path / f"stopped{step}"
        with pytest.raises(Interrupted, match="continue with --resume"):
            tiny.run(path, config, progress=progress)
        assert "stopping after this step" in " ".join(progress.messages)
        assert len(RunFolder.open(path).records("step")) == step
        tiny.run(path, config, resume=True)
        assert tiny.lasting(path) == tiny.lasting(tmp_path / "whole")
    assert signal.getsignal(signal.SIGINT) is before


def test_recomputing_changes_nothing_but_memory(tiny, tmp_path):
    for recompute in (False, True):
        tiny.run(tmp_path / str(recompute), tiny.config(recompute=recompute))
    first, second = (RunFolder.open(tmp_path / str(value)).records("step") for value in (False, True))
    assert [step["loss_weights"] for step in first] == [step["loss_weights"] for step in second]
    assert [step["loss_architecture"] for step in first] == [step["loss_architecture"] for step in second]


def test_passes_of_a_single_path_search_run_one_operator_and_price_all(tiny):
    """Every pass samples operators, validation uses the most likely ones, and the latency depends on all of alpha."""
    problem = tiny.problem(tiny.config(operator_sampling="single_path"))
    mixed = tiny.problem(tiny.config())
    generator = torch.Generator().manual_seed(0)
    passes = [*problem.weight_passes("search", generator), *problem.architecture_passes(generator)]
    for forward in passes:
        assert [len(rows) for rows in forward.sample.operators] == [len(table) for table in forward.sample.alpha]
    assert len({forward.sample.operators for forward in passes}) > 1
    assert all(not gate.requires_grad for forward in passes[:-2] for gate in forward.sample.operator_gate)
    assert all(gate.requires_grad for forward in passes[-2:] for gate in forward.sample.operator_gate)
    likeliest = problem.validation_passes()["student"].sample
    assert likeliest.operators == tuple(tuple(table.argmax(1).tolist()) for table in likeliest.alpha)
    student = passes[-2]  # before the teacher
    assert student.architecture == "student"
    bare = Pass("student", dataclasses.replace(student.sample, operators=None, operator_gate=None))
    gradients = []
    for latency, tables in ((problem.latency(student), problem), (mixed.latency(bare), problem)):
        alphas = list(tables.architecture["student"].alpha)
        gradients.append((latency.detach(), *torch.autograd.grad(latency, alphas, retain_graph=True)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_finished_search_resumes_to_its_result(tiny, tmp_path):
    config = tiny.config(pretrain_epochs=0, search_epochs=1)
    first = tiny.run(tmp_path / "run", config)
    log = tiny.lasting(tmp_path / "run")
    assert tiny.run(tmp_path / "run", config, resume=True) == first
    assert tiny.lasting(tmp_path / "run") == log


def test_a_state_of_another_problem_is_refused(tiny, tmp_path):
    config = tiny.config(pretrain_epochs=0, search_epochs=1)
    tiny.run(tmp_path / "run", config)
    with pytest.raises(UserError, match="the weights are of another network"):
        tiny.run(tmp_path / "run", config, problem=tiny.problem(config, num_classes=5), resume=True)


@pytest.mark.parametrize("classes", [5, 7])
def test_classes_of_the_data_and_of_the_space_must_agree(tiny, tmp_path, classes):
    config = tiny.config()
    with pytest.raises(UserError, match=rf"the search space has {classes} classes, the data 6"):
        tiny.run(tmp_path / "run", config, problem=tiny.problem(config, num_classes=classes))


def test_a_loss_that_is_not_finite_ends_the_search_with_advice(tiny, tmp_path):
    config = tiny.config(learning_rate=1e30, gradient_clipping=None)
    with pytest.raises(UserError, match=r"the loss of the weights is (nan|inf): lower search.learning_rate"):
        tiny.run(tmp_path / "run", config)
    run = RunFolder.open(tmp_path / "run")
    assert run.load_state() is None
    assert all(record["loss_weights"] < 1e6 for record in run.records())


@pytest.mark.parametrize(("train", "batch"), [(1, 1), (3, 2), (9, 5)])
def test_too_few_images_are_said_to_be(tiny, tmp_path, train, batch):
    with pytest.raises(UserError, match=r"images"):
        tiny.run(tmp_path / "run", tiny.config(batch_size=batch), data=tiny.data(train=train))


def test_losing_the_target_of_a_pass_is_an_error(tiny):
    for passes in (("student",), ("student.wide",), ("nobody.largest",)):
        with pytest.raises(UserError, match=r"expected ARCHITECTURE.WIDTH with one of teacher, student and one of"):
            tiny.problem(tiny.config(search_passes=passes))


def test_configuration_round_trip_and_mistakes():
    for config in (SearchConfig(), FasterSegSearchConfig(decoupling=(0.1, 0.2, 0.7), gradient_clipping=None)):
        assert parse_config(type(config), to_mapping(config), "x") == config
    for values, message in (
        ({"epochs": 3}, "epochs: unknown key, known keys: pretrain_epochs"),
        ({"search_epochs": 0}, "search_epochs: given 0"),
        ({"batch_size": True}, "batch_size: given true"),
        ({"learning_rate": "high"}, "learning_rate: given"),
        ({"decoupling": "some"}, "decoupling"),
        ({"decoupling": [1.0, -1.0, 1.0]}, "decoupling"),
        ({"pretrain_passes": []}, "pretrain_passes: given"),
        ({"temperature": 0}, "temperature: given 0"),
    ):
        with pytest.raises(UserError, match=message):
            parse_config(FasterSegSearchConfig, values, "x")
    config = SearchConfig(pretrain_epochs=2, search_epochs=3)
    assert config.epochs == 5
    assert [config.phase(epoch) for epoch in range(5)] == ["pretrain"] * 2 + ["search"] * 3
