"""The FasterSeg space: configuration, and an inventory that covers all derivable networks."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from derive.multi_branch import decode
from dnas.errors import UserError
from search_spaces import load_space, preset_names, space_from
from search_spaces.fasterseg import ArchitectureParameters, FasterSegSpace
from search_spaces.fasterseg.expected_latency import DecoupledWeights
from search_spaces.fasterseg.space import decoupled_weights

OPERATORS = ["skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2"]
NETWORKS = {
    "ends among the ratios": {"layers": 6, "ratios": [2, 4, 6], "student_ratio": 4, "teacher_ratio": 6},
    "ends between the ratios": {"layers": 5, "ratios": [2, 4, 6], "student_ratio": 3, "teacher_ratio": 5},
    "ends outside the ratios": {"layers": 6, "ratios": [2, 3], "student_ratio": 1, "teacher_ratio": 8, "branches": 3},
    "one ratio, one branch": {"layers": 4, "ratios": [4], "student_ratio": 2, "teacher_ratio": 4, "branches": 1},
    "two scales": {"layers": 4, "ratios": [1, 4], "scales": [8, 16], "student_ratio": 2, "teacher_ratio": 2},
    "one scale": {"layers": 3, "ratios": [1, 2], "scales": [8], "branches": 1, "student_ratio": 3, "teacher_ratio": 1},
    "fewest layers": {"layers": 3, "ratios": [1, 2], "student_ratio": 3, "teacher_ratio": 1},
    "no skip": {"layers": 5, "ratios": [2, 4], "operators": ["conv", "zoomed_conv"]},
    "only skips": {"layers": 5, "ratios": [2, 9], "operators": ["skip"], "student_ratio": 4, "teacher_ratio": 6},
}


def configuration(**network):
    return {"space": "fasterseg", "task": {"input_size": [72, 100], "num_classes": 5}, "network": network}


def space_of(name):
    return space_from(configuration(**NETWORKS[name]), name)


class Partial:
    """A table with exactly these specs; each latency is roughly the number of multiply-adds."""

    def __init__(self, specs):
        self.specs = set(specs)

    def lookup(self, spec):
        if spec not in self.specs:
            raise UserError(f"holds no {spec.key}")
        return 1e-3 * spec.inputs[0][0] * spec.out_channels


PRESETS = [name for name in preset_names() if name.startswith("fasterseg") and "dilated" not in name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_configurations(name):
    space = load_space(name)
    assert space.name == name
    again = space_from(space.configuration(), name)
    assert again.settings == space.settings
    assert again.configuration() == space.configuration()
    problem = space.problem(Partial(item.spec for item in space.inventory()), seed=0)
    if space.search.method == "estimator":
        assert problem.validation_passes()
    else:
        assert problem.monitor()["latency_ms"]["student"] > 0
    target = space.configuration()["task"]
    assert target["input_size"] == list(space.input_size)
    assert target["num_classes"] == space.num_classes


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), skips=st.floats(-2, 3), teacher=st.booleans())
def test_every_architecture_can_be_priced_from_the_inventory(name, seed, skips, teacher):
    """Random logits with few to many skips, for every combination of branches."""
    space = space_of(name)
    network, plan = space.settings.network, space.plan()
    generator = torch.Generator().manual_seed(seed)
    end_ratio = space.end_ratios["teacher" if teacher else "student"]
    parameters = ArchitectureParameters(
        network.grid,
        len(network.operators),
        network.ratios,
        end_ratio=end_ratio,
        search_ratios=not teacher,
        generator=generator,
        noise=1.0,
    )
    logits = parameters.named_logits()
    if "skip" in network.operators:
        for scale in network.scales:
            logits[f"alpha_{scale}"][:, network.operators.index("skip")] += skips
    table = Partial(item.spec for item in space.inventory())
    for combination in plan.combinations():
        architecture = decode(logits, space.plan("teacher" if teacher else "student"), combination)
        architecture.check()
        assert sum(map(table.lookup, architecture.signatures(space.num_classes, space.input_size))) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_expected_latency_needs_nothing_but_the_inventory(name):
    space = space_of(name)
    items = space.inventory()
    assert len({item.spec.key for item in items}) == len(items)
    table = Partial(item.spec for item in items)
    for architecture, parameters in space.architectures(0).items():
        for value in space.latency(table, architecture)(parameters.at_width("likeliest")).values():
            assert value.item() > 0
    assert not any(item.spec.operator == "skip" and item.spec.stride == 1 for item in items)


@pytest.mark.parametrize("name", ["ends outside the ratios", "two scales"])
def test_items_of_the_inventory_build_what_they_name(name):
    for item in space_of(name).inventory():
        module = item.build().eval()
        inputs = [torch.randn(1, *shape) for shape in item.spec.inputs]
        with torch.no_grad():
            out = module(*inputs)
        if item.spec.operator == "head":
            size = (72, 100)
        elif item.spec.operator == "stem":
            size = (9, 13)
        else:
            size = tuple(-(-side // item.spec.stride) for side in item.spec.inputs[0][1:])
        assert out.shape == (1, item.spec.out_channels, *size), item.spec.key


def test_the_problem_is_the_same_for_the_same_seed():
    space = space_of("two scales")
    table = Partial(item.spec for item in space.inventory())
    first, torch_state = space.problem(table, 3), torch.rand(2)
    again, other = space.problem(table, 3), space.problem(table, 4)
    assert torch_state.numel() == 2
    for module in ("weights", "architecture"):
        mine, same, different = (getattr(problem, module).state_dict() for problem in (first, again, other))
        assert all(torch.equal(mine[key], same[key]) for key in mine)
        assert not all(torch.equal(mine[key], different[key]) for key in mine)
    teacher, student = (first.logits()[f"{name}.alpha_8"] for name in ("teacher", "student"))
    assert not torch.equal(teacher, student)
    assert "teacher.gamma_8" not in first.logits()


def test_decoupling_is_what_is_configured():
    values = configuration(**NETWORKS["two scales"])
    for wanted, expected in (("none", DecoupledWeights()), ([0.2, 0.3, 0.5], DecoupledWeights(0.2, 0.3, 0.5))):
        space = space_from({**values, "search": {"decoupling": wanted}}, "x")
        latency = space.latency(Partial(item.spec for item in space.inventory()))
        assert decoupled_weights(space.search.decoupling, latency) == expected
    space = space_from(values, "x")
    latency = space.latency(Partial(item.spec for item in space.inventory()))
    solved = decoupled_weights(space.search.decoupling, latency)
    change = latency.sensitivities()
    assert sum(dataclasses.astuple(solved)) == pytest.approx(1.0)
    assert solved.alpha * change.operator == pytest.approx(solved.gamma * change.ratio)
    assert solved.alpha * change.operator == pytest.approx(solved.beta * change.scale)


def test_the_default_network_is_the_papers():
    """Section 4.2: L = 16, X = {4, 6, 8, 10, 12}, b = 2."""
    network = space_from(configuration(), "x").settings.network
    assert (network.layers, network.ratios, network.branches) == (16, (4, 6, 8, 10, 12), 2)
    assert list(network.operators) == OPERATORS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "nasnet"}, r"x: space: given 'nasnet', expected one of dwrseg, dwrseg_modules, eseg, fasterseg"),
        ({"space": None}, r"x: space: given None"),
        ({"extra": 1}, r"x: extra: unknown key, known keys: .*target"),
        ({"network": {"depth": 3}}, r"network\.depth: unknown key, known keys: layers, scales"),
        (
            {"network": {"operators": ["conv", "pool"]}},
            r"network\.operators\.1: given \"pool\", expected .*zoomed_conv",
        ),
        ({"network": {"operators": []}}, r"network.*expected at least one"),
        ({"network": {"operators": ["conv", "conv"]}}, r"network.*each once"),
        ({"network": {"ratios": [4, 2]}}, r"network.*ascending"),
        ({"network": {"ratios": [2, 2]}}, r"network.*distinct"),
        ({"network": {"ratios": []}}, r"network\.ratios: given \[\]"),
        ({"network": {"ratios": [0, 2]}}, r"network\.ratios\.0: given 0"),
        ({"network": {"scales": [16, 32]}}, r"network.*expected 8, each next one doubled"),
        ({"network": {"scales": [8, 16, 32, 64]}}, r"network\.scales"),
        ({"network": {"scales": []}}, r"network.*expected 8, each next one doubled"),
        ({"network": {"layers": 2}}, r"network.*2 layers cannot reach 3 scales"),
        ({"network": {"layers": "six"}}, r"network\.layers: given \"six\""),
        ({"network": {"scales": [8, 16], "branches": 3}}, r"network.*3 branches need at least as many scales"),
        ({"task": {"num_classes": 5}}, r"task\.input_size: missing"),
        ({"task": {"input_size": [32, 64], "num_classes": 5}}, r"task\.input_size\.0: given 32"),
        ({"task": {"input_size": [64, 64], "num_classes": True}}, r"task\.num_classes: given true"),
        ({"search": {"pretrain_passes": []}}, r"search\.pretrain_passes"),
        ({"network": None}, r"network"),
    ],
)
def test_mistakes_name_their_path(change, message):
    with pytest.raises(UserError, match=message) as caught:
        space_from({**configuration(layers=4), **change}, "x")
    assert "\n" not in str(caught.value)


def test_a_pass_that_does_not_exist_is_named():
    space = space_from({**configuration(layers=4), "search": {"search_passes": ["student.huge"]}}, "mine")
    with pytest.raises(UserError, match=r"mine: pass 'student.huge': expected ARCHITECTURE.WIDTH"):
        space.problem(Partial(item.spec for item in space.inventory()), 0)


def test_a_table_with_a_hole_is_an_error_that_names_it():
    space = space_of("two scales")
    specs = [item.spec for item in space.inventory()]
    for operator in ("stem", "head", "fuse", *OPERATORS):
        missing = next(spec for spec in specs if spec.operator == operator)
        table = Partial(spec for spec in specs if spec != missing)
        with pytest.raises(UserError, match=re.escape(f"holds no {missing.key}")):
            space.problem(table, 0)


def test_a_space_says_what_it_is_made_of():
    space = space_of("two scales")
    assert isinstance(space, FasterSegSpace)
    assert space.input_size == (72, 100)
    assert space.num_classes == 5
    assert space.search.epochs == 50
    assert space.retrain.epochs == 600
    assert space.end_ratios == {"student": 2, "teacher": 2}
