"""The joint search loop: its steps, files and errors."""

import pytest
import torch

from dnas.config import parse_config, to_mapping
from dnas.errors import UserError
from dnas.runs import Interrupted, RunFolder
from dnas.search import JointSearchConfig, SearchConfig
from dnas.training import SegmentationMetrics
from search_spaces.regseg import RateSearch


class Watched(RateSearch):
    """Records weights and rates at the beginning of every step, and the rates after each."""

    def __init__(self, *arguments, **options):
        self.notes, self.projected = [], []
        super().__init__(*arguments, **options)

    def weight_passes(self, phase, generator):
        rates = {f"{name}.dilation" for name in self.layers}
        self.notes.append(
            {
                "rates": {name: layer.rate() for name, layer in self.layers.items()},
                "weights": {n: p.detach().clone() for n, p in self.weights.named_parameters() if n not in rates},
                "gradients": {n: p.grad for n, p in self.weights.named_parameters()},
            }
        )
        return super().weight_passes(phase, generator)

    def project(self):
        super().project()
        self.projected.append({name: (layer.dilation.item(), layer.upper) for name, layer in self.layers.items()})


def watched(joint, **options):
    problem = joint.problem()
    return Watched(problem.weights, **options)


def test_a_step_trains_weights_and_rates_together(joint, tmp_path):
    problem = watched(joint)
    joint.run(tmp_path / "run", problem=problem)
    first, second = problem.notes[:2]
    moved = [name for name in first["rates"] if first["rates"][name] != second["rates"][name]]
    assert moved
    changed = [n for n in first["weights"] if not torch.equal(first["weights"][n], second["weights"][n])]
    assert len(changed) > 0.9 * len(first["weights"])
    # The rates are trained by their own optimiser only: SGD at 5.0, still without momentum, within the bounds.
    for name, rate in second["rates"].items():
        gradient = float(second["gradients"][f"{name}.dilation"])
        upper = problem.projected[0][name][1]
        assert rate == pytest.approx(min(max(1.0 - 5.0 * gradient, 1.0), upper), rel=1e-5)


def test_rates_stay_within_bounds_that_follow_the_rates_before(joint, tmp_path):
    problem = watched(joint, upper=3.0)
    joint.run(tmp_path / "run", joint.config(architecture_learning_rate=1e4), problem=problem)
    assert problem.projected
    for rates in problem.projected:
        assert all(1 <= rate <= upper <= 3 for rate, upper in rates.values())
    epochs = RunFolder.open(tmp_path / "run").records("epoch")
    first = problem.layers["backbone.blocks.0.dilated.branches.0"]
    assert first.upper == pytest.approx(15 / 8)  # k = 15, s = 8 after three convolutions of stride 2
    assert all(rate <= 3 for epoch in epochs for rate in epoch["rates"].values())


def test_pretraining_leaves_the_rates_alone(joint, tmp_path):
    problem = watched(joint)
    joint.run(tmp_path / "run", joint.config(pretrain_epochs=2), problem=problem)
    rates = [note["rates"] for note in problem.notes]
    assert all(set(before.values()) == {1.0} for before in rates[:5])
    assert set(rates[5].values()) != {1.0}
    phases = [epoch["phase"] for epoch in RunFolder.open(tmp_path / "run").records("epoch")]
    assert phases == ["pretrain", "pretrain", "search"]


def test_every_image_is_trained_on(joint, tmp_path):
    joint.run(tmp_path / "run", joint.config(epochs=1), train=9)
    assert len(RunFolder.open(tmp_path / "run").records("step")) == 4  # four batches of 2; halves would give two


def test_the_log_tells_rates_and_field_of_view(joint, tmp_path):
    problem = joint.problem()
    result = joint.run(tmp_path / "run", problem=problem)
    run = RunFolder.open(tmp_path / "run", "search")
    epochs, steps = run.records("epoch"), run.records("step")
    assert [len([s for s in steps if s["epoch"] == e]) for e in range(3)] == [2, 2, 2]
    assert all(step["latency_ms"] is None and step["loss_architecture"] is None for step in steps)
    # Poly over the six steps.
    assert [s["learning_rate"] for s in steps] == pytest.approx([0.05 * (1 - i / 6) ** 0.9 for i in range(6)])
    for epoch in epochs:
        assert epoch["rates"].keys() == epoch["upper"].keys() == problem.layers.keys()
        largest = [max(epoch["rates"][f"backbone.blocks.{b}.dilated.branches.{i}"] for i in (0, 1)) for b in (0, 1)]
        # 15 pixels before the blocks; each adds 2 ceil(r) * 8 pixels.
        assert epoch["field_of_view"] == 15 + sum(16 * -int(-r // 1) for r in largest)
    assert epochs[-1]["latency_ms"] == result.latency_ms == {}
    assert result.miou == epochs[-1]["miou"]
    assert result.miou.keys() == {"network"}
    stored = run.load_weights("architecture")
    assert {name: float(rate) for name, rate in stored.items()} == {
        f"network.{name}": layer.dilation.item() for name, layer in problem.layers.items()
    }
    assert parse_config(JointSearchConfig, run.configuration, "run") == joint.config()


def test_a_latency_pulls_the_rates_down(joint, tmp_path):
    def price(rates):
        return torch.stack(list(rates.values())).sum()

    found = {}
    for weight in (0.0, 10.0):
        problem = joint.problem(latency=price)
        config = joint.config(latency_weight=weight, architecture_learning_rate=0.5)
        result = joint.run(tmp_path / str(weight), config, problem=problem)
        found[weight] = result.latency_ms["network"]
        steps = RunFolder.open(tmp_path / str(weight)).records("step")
        assert steps[0]["latency_ms"] == 4.0
    assert found[10.0] == 4.0 < found[0.0]


def test_ctrl_c_loses_no_epoch(joint, presses_ctrl_c, tmp_path):
    joint.run(tmp_path / "whole")
    for step in (2, 3, 6):
        path = tmp_path / f"stopped{step}"
        with pytest.raises(Interrupted, match="continue with --resume"):
            joint.run(path, progress=presses_ctrl_c(step))
        joint.run(path, resume=True)
        assert joint.lasting(path) == joint.lasting(tmp_path / "whole")


def test_adam_for_the_rates(joint, tmp_path):
    problem = joint.problem()
    config = joint.config(epochs=1, architecture_optimizer="adam", architecture_learning_rate=0.25)
    joint.run(tmp_path / "run", config, problem=problem, train=2)
    # Adam's first step has the length of the learning rate, along the sign of the gradient; 1 is the lower bound.
    assert {round(layer.rate(), 3) for layer in problem.layers.values()} <= {1.0, 1.25}


def test_a_loss_that_is_not_finite_leaves_no_state(joint, tmp_path):
    with pytest.raises(UserError, match=r"the loss of the weights is (nan|inf)"):
        joint.run(tmp_path / "run", joint.config(learning_rate=1e30))
    assert RunFolder.open(tmp_path / "run").load_state() is None


def test_problem_and_configuration_must_be_of_one_kind(joint, tiny, tmp_path):
    for problem, config in ((joint.problem(), SearchConfig()), (tiny.problem(tiny.config()), joint.config())):
        with pytest.raises(TypeError, match="cannot be searched by"):
            joint.run(tmp_path / type(config).__name__, config, problem=problem)


def test_configuration_round_trip_and_mistakes():
    for config in (JointSearchConfig(), JointSearchConfig(architecture_optimizer="adam", gradient_clipping=5.0)):
        assert parse_config(JointSearchConfig, to_mapping(config), "x") == config
    for values, message in (
        ({"search_epochs": 3}, "search_epochs: unknown key, known keys: epochs"),
        ({"epochs": 0}, "epochs: given 0"),
        ({"architecture_optimizer": "lion"}, "architecture_optimizer: given"),
        ({"architecture_learning_rate": 0}, "architecture_learning_rate: given 0"),
    ):
        with pytest.raises(UserError, match=message):
            parse_config(JointSearchConfig, values, "x")


def test_predictions_are_kept_before_the_first_step_and_at_every_validation(joint, tmp_path):
    config = joint.config(keep_predictions=1, validate_every=2)
    joint.run(tmp_path / "run", config)
    files = sorted(path.name for path in (tmp_path / "run").glob("predictions_*"))
    assert files == [f"predictions_{epochs:04d}.safetensors" for epochs in (0, 2, 3)]
    kept = RunFolder.open(tmp_path / "run").load_weights("predictions_0003")
    assert [(name, mask.shape, mask.dtype) for name, mask in kept.items()] == [("0", (64, 64), torch.uint8)]
    # The last predictions are those of the final network, which has the last mIoU.
    score = SegmentationMetrics(joint.data(size=(64, 64))[1].labels.names)
    score.update(kept["0"].long()[None], joint.data(size=(64, 64))[1][0][1].long()[None])
    assert score.result().miou == pytest.approx(
        RunFolder.open(tmp_path / "run").records("epoch")[-1]["miou"]["network"]
    )


def test_keeping_predictions_changes_nothing_else(joint, tmp_path):
    joint.run(tmp_path / "with", joint.config(keep_predictions=1, epochs=2))
    joint.run(tmp_path / "without", joint.config(epochs=2))
    assert joint.lasting(tmp_path / "with") == joint.lasting(tmp_path / "without")
    assert not list((tmp_path / "without").glob("predictions_*"))
