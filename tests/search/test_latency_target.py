"""The controller of lambda, the gradient monitor and the collapse warnings, each also in a small search."""

import math
import re

import pytest
import torch

from dnas.progress import NoProgress
from dnas.runs import RunFolder
from dnas.search import LatencyController, LatencyTarget
from dnas.search.collapse import collapse_warnings
from dnas.search.gradients import GradientMonitor, reached_norms
from search_spaces.fasterseg.expected_latency import DecoupledWeights


class Plant:
    """A model of a search: fifty choices between a fast and a slow operator, trained by Adam with a noisy loss."""

    def __init__(self, seed, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.zeros(50, requires_grad=True)
        self.wish = 0.3 * torch.randn(50, generator=generator)
        self.cost = scale * (0.5 + torch.rand(50, generator=generator))
        self.optimizer = torch.optim.Adam([self.logits], lr=0.05, betas=(0.5, 0.999))
        self.generator = generator

    def expected(self):
        return (torch.sigmoid(self.logits) * self.cost).sum() + self.cost.sum()

    def derived(self):
        """10 % less than the sum of the operators, as skips narrow their neighbours."""
        return 0.9 * float((self.cost * (1 + (self.logits.detach() > 0))).sum())

    def step(self, controller):
        latency = self.expected()
        (slope,) = torch.autograd.grad(latency, self.logits)
        noise = 0.2 * torch.randn(50, generator=self.generator)
        gradient = -(self.wish + noise) * torch.sigmoid(self.logits).detach() * 0.1
        weight = controller.update(latency.item(), self.derived(), float(gradient.norm()), float(slope.norm()))
        self.logits.grad = gradient + weight * slope
        self.optimizer.step()
        return weight


@pytest.mark.parametrize(("share", "scale"), [(0.2, 1e-3), (0.2, 1.0), (0.5, 1.0), (0.8, 1.0), (0.8, 1e3)])
def test_the_controller_leads_what_is_derived_to_the_target(share, scale):
    """For any scale of the table, and from either side, the network derived at the end is near the target."""
    plant = Plant(0, scale)
    lowest = 0.9 * float(plant.cost.sum())
    target = lowest * (1 + share)
    controller = LatencyController(target, initial_weight=0.0, steps=600)
    weights = [plant.step(controller) for _ in range(600)]
    assert plant.derived() == pytest.approx(target, rel=0.05)
    assert (min(weights) < 0) or share < 0.5


def test_the_controller_goes_on_from_its_state():
    first = LatencyController(3.0, initial_weight=0.01, steps=20)
    values = [(3.0 + 0.1 * i, 2.5 + 0.2 * i, 1.0 + i, 0.5) for i in range(10)]
    for value in values[:5]:
        first.update(*value)
    second = LatencyController(3.0, initial_weight=0.01, steps=20)
    second.load_state(first.state())
    assert [first.update(*v) for v in values[5:]] == [second.update(*v) for v in values[5:]]
    with pytest.raises(KeyError):
        second.load_state({})


def test_the_controller_is_bounded_and_begins_at_the_configured_weight():
    controller = LatencyController(1.0, initial_weight=0.03, steps=100)
    assert controller.update(1.0, 1.0, 2.0, 4.0) == pytest.approx(0.03)
    for _ in range(1000):
        weight = controller.update(50.0, 50.0, 2.0, 4.0)
    assert weight == pytest.approx(LatencyController.LIMIT * 2.0 / 4.0)


def test_gradients_are_told_by_architecture_and_kind():
    monitor = GradientMonitor(["student.alpha.0", "student.alpha.1", "student.beta.1", "teacher.alpha.0"])
    loss = [torch.tensor(x) for x in ([3.0], [4.0], [1.0], [2.0])]
    latency = [torch.tensor(x) for x in ([0.0], [10.0], [0.5], [0.0])]
    monitor.add(loss, latency, -0.5)
    monitor.add(loss, latency, 1.0)
    record = monitor.record()
    assert record.keys() == {"student"}  # the teacher has no gradient of the latency
    assert record["student"]["alpha"] == pytest.approx({"loss": 5.0, "latency": 7.5, "share": 7.5 / 12.5})
    assert record["student"]["beta"] == pytest.approx({"loss": 1.0, "latency": 0.375, "share": 0.375 / 1.375})
    assert reached_norms(loss, latency) == pytest.approx((math.sqrt(17), math.sqrt(100.25)))


HEALTHY = {
    "skip_share": {"student": 0.5},
    "mean_ratio": {"student": 1.4},
    "ratio_range": [1, 2],
    "entropy": {"student": {"alpha": 0.7, "beta": 0.9, "gamma": 0.8}},
    "derived": {"latency_ms": 5.0},
    "latency_gradient": {"student": {"alpha": {"share": 0.9}}},
}


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        ({"skip_share": {"student": 0.9}}, "student.skips", "90 % of its cells"),
        ({"mean_ratio": {"student": 1.01}}, "student.ratios", "1.01, near the smallest, 1"),
        ({"entropy": {"student": {"beta": 0.02}}}, "student.beta", "its beta is decided .* after 25 %"),
        ({"derived": {"latency_ms": 2.001}}, "student.latency", "the fastest network of the space"),
    ],
)
def test_each_sign_of_a_collapse_has_its_reason(change, name, reason):
    target = LatencyTarget(architecture="student", target_ms=None, fastest_ms=2.0, derived=dict)
    assert collapse_warnings(HEALTHY, progress=0.25, target=target) == {}
    found = collapse_warnings({**HEALTHY, **change}, progress=0.25, target=target)
    assert found.keys() == {name}
    assert re.search(reason, found[name])
    assert found[name].endswith("share of the latency term in its gradients: alpha 90 %")


def test_a_target_at_the_fastest_network_and_late_decisions_are_no_collapse():
    target = LatencyTarget(architecture="student", target_ms=2.0, fastest_ms=2.0, derived=dict)
    record = {**HEALTHY, "derived": {"latency_ms": 2.0}, "entropy": {"student": {"alpha": 0.01}}}
    assert collapse_warnings(record, progress=0.9, target=target) == {}


class Messages(NoProgress):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def test_a_search_under_a_heavy_latency_collapses_and_says_so_once(tiny, tmp_path):
    """Lambda 10 without decoupling is warned of once, when the collapse begins; a small lambda is not."""
    lines, records = {}, {}
    for weight in (10.0, 0.001):
        config = tiny.config(
            pretrain_epochs=0,
            search_epochs=4,
            latency_weight=weight,
            architecture_learning_rate=0.7 if weight > 1 else 0.01,
            validate_every=9,
        )
        progress = Messages()
        problem = tiny.problem(config, decoupled=DecoupledWeights())
        tiny.run(tmp_path / str(weight), config, problem=problem, progress=progress)
        lines[weight] = [line for line in progress.lines if line.startswith("warning")]
        records[weight] = RunFolder.open(tmp_path / str(weight)).records("epoch")
    assert lines[0.001] == []
    assert all(record["warnings"] == {} for record in records[0.001])
    share = {weight: found[-1]["latency_gradient"]["student"]["alpha"]["share"] for weight, found in records.items()}
    assert share[10.0] > 0.95
    assert share[0.001] < 0.5
    begun = [name for record in records[10.0] for name in record["warnings"]]
    assert "student.ratios" in begun
    assert begun.count("student.ratios") > 1  # logged in several epochs
    ratios = [line for line in lines[10.0] if "expansion ratio" in line]
    assert len(ratios) == 1  # printed once
    assert "share of the latency term in its gradients: alpha" in ratios[0]
    assert len(lines[10.0]) == len(set(begun))


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_search_is_led_towards_its_target(tiny, tmp_path, share):
    """The latency approaches the target, from above or below, and lambda has the corresponding sign."""
    config = tiny.config(
        pretrain_epochs=0, search_epochs=6, latency_weight=0.0, architecture_learning_rate=0.2, validate_every=9
    )
    target = tiny.latency_target(share)
    tiny.run(tmp_path / "run", config, latency_target=target)
    run = RunFolder.open(tmp_path / "run")
    epochs, steps = run.records("epoch"), run.records("step")
    first, last = steps[0]["latency_ms"], epochs[-1]["derived"]["latency_ms"]
    assert epochs[-1]["derived"]["target_ms"] == target.target_ms
    assert abs(math.log(last / target.target_ms)) < abs(math.log(first / target.target_ms))
    weights = [step["latency_weight"] for step in steps]
    assert min(weights) < 0 if share > 0.5 else max(weights) > 0
    assert len(set(weights)) > 3
