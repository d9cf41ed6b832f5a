"""Architectures of integer dilation rates: the file, the network, and the rounding."""

import math

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from derive import Architecture, DilatedArchitecture, architecture_from
from derive.dilated import round_rates
from derive.dilated.architecture import BaseNetwork, with_rates
from derive.dilated.graph import dilated_graph
from dnas.config import to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml
from dnas.networks import create_network, field_of_view, network_by_name
from dnas.networks.regseg import SEARCHED_RATES
from dnas.ops import fractional_layers, make_fractional
from search_spaces.regseg import RateSearch

BLOCKS = "backbone.blocks.{}.dilated.branches.{}"
OPTIONS = {"rates": [[1, 1], [1, 1], [1, 1]], "width": 32, "split_equal": True}


def architecture(*rates, **values):
    names = {BLOCKS.format(b, i): rate for b, pair in enumerate(rates) for i, rate in enumerate(pair)}
    return DilatedArchitecture(network=BaseNetwork(name="regseg_small", options=OPTIONS), rates=names, **values)


def small_problem(**options):
    network = network_by_name("regseg_small", 4, OPTIONS)
    return RateSearch(make_fractional(network, "backbone.blocks.*.branches.*", upper=math.inf), **options)


def rates_of(*pairs):
    return {BLOCKS.format(b, i): rate for b, pair in enumerate(pairs) for i, rate in enumerate(pair)}


def test_a_file_comes_back_as_it_was(tmp_path):
    made = architecture(
        (1, 2), (1, 4), (1, 1), searched_rates=rates_of((1.2, 1.8), (1.0, 3.1), (1.0, 1.0)), num_classes=4
    )
    made.save(tmp_path / "a.yaml")
    again = Architecture.load(tmp_path / "a.yaml")
    assert again == made
    assert isinstance(again, DilatedArchitecture)
    again.save(tmp_path / "b.yaml")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    assert architecture_from(to_mapping(made), "x") == made


def test_the_network_has_the_rates_and_merges_equal_branches():
    network = architecture((1, 2), (3, 3), (1, 1)).build(4)
    convs = {
        name: part
        for name, part in network.named_modules()
        if name.startswith("backbone.blocks") and ".branches." in name
    }
    found = {name[16:]: (part.dilation[0], part.groups) for name, part in convs.items()}
    assert found == {
        "0.dilated.branches.0": (1, 1),
        "0.dilated.branches.1": (2, 1),
        "1.dilated.branches.0": (3, 2),
        "2.dilated.branches.0": (1, 2),
    }
    assert field_of_view(network) == architecture((1, 2), (3, 3), (1, 1)).field_of_view() == 15 + 16 * (2 + 3 + 1)
    logits = network(torch.randn(2, 3, 64, 72))
    assert logits.shape == (2, 4, 64, 72)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_merging_equal_branches_changes_no_output():
    separate = network_by_name("regseg_small", 4, {**OPTIONS, "rates": [[2, 2], [1, 3], [1, 1]]}).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = separate(images)
        for part in list(separate.modules()):
            if hasattr(part, "merge_equal"):
                part.merge_equal()
        after = separate(images)
    assert sum(".branches.1" in name for name, _ in separate.named_parameters()) == 1
    torch.testing.assert_close(after, before)


def test_a_searched_network_at_whole_rates_computes_what_its_derived_one_does():
    problem = small_problem()
    whole = round_rates(problem, rates_of((1.3, 1.0), (1.0, 2.4), (3.6, 1.7)))
    assert whole == rates_of((2, 1), (1, 3), (4, 1))
    searched = problem.weights.eval()
    assert {name: layer.rate() for name, layer in fractional_layers(searched).items()} == whole
    derived = with_rates(network_by_name("regseg_small", 4, OPTIONS), whole).eval()
    weights = {name: value for name, value in searched.state_dict().items() if not name.endswith(".dilation")}
    derived.load_state_dict(weights)
    images = torch.randn(1, 3, 96, 80)
    with torch.no_grad():
        torch.testing.assert_close(derived(images), searched(images), rtol=1e-4, atol=1e-5)


def test_floor_of_the_smaller_and_ceil_of_the_larger():
    """RegSeg v3, section 3.4; the order of the branches is kept."""
    problem = small_problem(allow_gaps=True)
    whole = round_rates(problem, rates_of((1.9, 2.1), (7.01, 3.99), (5.0, 5.0)))
    assert whole == rates_of((1, 3), (8, 3), (5, 5))


@settings(max_examples=6, deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(1, 40), st.floats(1, 40)), min_size=3, max_size=3))
def test_the_derived_network_sees_as_far_as_the_searched_one(pairs):
    """Section 3.4: "maintains the same field-of-view" whatever the bounds; the larger rate is never clipped."""
    problem = small_problem()
    problem.assign(rates_of(*pairs))
    seen = problem.monitor()["field_of_view"]
    whole = round_rates(problem, rates_of(*pairs))
    derived = with_rates(network_by_name("regseg_small", 4, OPTIONS), whole)
    assert seen <= field_of_view(derived) < seen + 3 * 2 * 8 + 1


def test_the_papers_searched_rates_are_an_architecture():
    """RegSeg v3, Table 2: a field of view of 2399 pixels."""
    names = {
        f"backbone.stage16.{block}.dilated.branches.{branch}": rate
        for block, pair in enumerate(SEARCHED_RATES, start=1)
        for branch, rate in enumerate(pair)
    }
    options = {"rates": [[1, 1]] * 13, "split_equal": True}
    found = DilatedArchitecture(network=BaseNetwork(name="regseg", options=options), rates=names)
    assert found.field_of_view() == 2399
    published = create_network("regseg_dnas", 19).state_dict()
    built = found.build(19).state_dict()
    assert {name: value.shape for name, value in built.items()} == {n: v.shape for n, v in published.items()}


def test_the_graph_is_the_row_of_blocks_with_their_rates_and_fields():
    graph = architecture((1, 2), (1, 4), (3, 3), num_classes=4).graph()
    assert list(graph.edges) == [
        ("stem", "backbone.blocks.0"),
        ("backbone.blocks.0", "backbone.blocks.1"),
        ("backbone.blocks.1", "backbone.blocks.2"),
        ("backbone.blocks.2", "head"),
    ]
    assert [data.get("rates") for _, data in graph.nodes(data=True)] == [None, (1, 2), (1, 4), (3, 3), None]
    assert [data["position"] for _, data in graph.nodes(data=True)] == [0, 1, 2, 3, 4]
    fields = [data.get("field_of_view") for _, data in graph.nodes(data=True)]
    assert fields == [15, 15 + 16 * 2, 15 + 16 * 6, 15 + 16 * 9, None]
    assert architecture((1, 2), (1, 4), (3, 3)).field_of_view() == fields[-2]
    assert {data["scale"] for node, data in graph.nodes(data=True) if node != "head"} == {8}


def test_the_graph_knows_what_runs_side_by_side():
    """DeepLabv3: two consecutive blocks of layer4, then the branches of its ASPP."""
    rates = {
        "backbone.layer4.0.conv2": 2,
        "backbone.layer4.1.conv2": 4,
        "classifier.0.convs.1.0": 12,
        "classifier.0.convs.2.0": 24,
    }
    graph = DilatedArchitecture(network=BaseNetwork(name="torchvision:deeplabv3_resnet50"), rates=rates).graph()
    aspp = ("classifier.0.convs.1", "classifier.0.convs.2")
    assert set(graph.edges) == {
        ("stem", "backbone.layer4.0"),
        ("backbone.layer4.0", "backbone.layer4.1"),
        *(("backbone.layer4.1", branch) for branch in aspp),
        *((branch, "head") for branch in aspp),
    }
    assert graph.nodes[aspp[0]]["position"] == graph.nodes[aspp[1]]["position"] == 3


def test_layers_that_only_look_like_one_block_are_drawn_one_by_one():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=3, dilation=3)),
        nn.Conv2d(4, 4, 3, padding=4, dilation=4),
    )
    graph = dilated_graph(network, {"0": 2, "1.0": 3, "2": 4})
    assert list(nx.topological_sort(graph)) == ["stem", "0", "1", "2", "head"]
    inner = nn.Sequential(network)
    graph = dilated_graph(inner, {"0.0": 2, "0.1.0": 3, "0.2": 4})
    assert list(nx.topological_sort(graph)) == ["stem", "0.0", "0.1.0", "0.2", "head"]
    assert graph.nodes["0.2"]["field_of_view"] == 1 + 2 * (2 + 3 + 4)


def test_torchvision_networks_can_be_architectures(tmp_path):
    made = DilatedArchitecture(
        network=BaseNetwork(name="torchvision:lraspp_mobilenet_v3_large"), rates={"backbone.13.block.1.0": 5}
    )
    made.save(tmp_path / "a.yaml")
    network = Architecture.load(tmp_path / "a.yaml").build(3)
    assert network.get_submodule("backbone.13.block.1.0").dilation == (5, 5)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"given architecture version 2, expected 1"),
        ({"kind": "diluted"}, r"kind: given \"diluted\""),
        ({"rates": {}}, r"rates: given \{\}"),
        ({"rates": {"backbone.blocks.9.dilated.branches.0": 1}}, r"matches no convolution"),
        ({"rates": {BLOCKS.format(0, 0): 0}}, r"rates.*: given 0"),
        ({"rates": {BLOCKS.format(0, 0): 1.5}}, r"rates.*: given 1.5"),
        ({"network": {"name": "regsek"}}, r"unknown network 'regsek'"),
        ({"network": "regseg"}, r"network: given \"regseg\""),
        ({"searched_rates": {"x": 1.0}}, r"searched_rates: expected the same layers"),
        ({"branches": []}, r"branches: unknown key, known keys: network, rates"),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path, change, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(dump_yaml({**to_mapping(architecture((1, 2), (1, 1), (1, 1))), **change}))
    with pytest.raises(UserError, match=message) as caught:
        Architecture.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_rates_of_other_layers_are_refused():
    with pytest.raises(UserError, match=r"expected those of backbone\.blocks\.0"):
        round_rates(small_problem(), {"elsewhere": 1.0})
