"""The MultiBranchArchitecture file, its graph and the network that it builds."""

import dataclasses

import networkx as nx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from derive import MultiBranchArchitecture
from derive.multi_branch import Branch, Cell, decode
from dnas.errors import UserError
from dnas.files import dump_yaml, read_yaml
from dnas.networks.multi_branch import Fuse, share_prefixes
from dnas.ops import OPERATORS, ConvBlock, FactorizedReduce, ZoomedConv
from search_spaces.fasterseg import ArchitectureParameters, Grid, NetworkPlan

RATIOS = (1, 2, 3)


def decoded(seed, branches=(8, 32), skips=0.5, end_ratio=2, layers=6):
    grid = Grid(layers)
    generator = torch.Generator().manual_seed(seed)
    logits = ArchitectureParameters(grid, 5, RATIOS, end_ratio=end_ratio, generator=generator, noise=1.0).named_logits()
    for scale in grid.scales:
        logits[f"alpha_{scale}"][:, 0] += skips
    return decode(logits, NetworkPlan(grid, OPERATORS, RATIOS, 2, 3, (64, 96), end_ratio), branches)


@st.composite
def architectures(draw):
    """Any valid architecture."""
    end_ratio = draw(st.integers(1, 20))
    branches = []
    for _ in range(draw(st.integers(1, 3))):
        scale, channels, cells = 8, 8 * end_ratio, []
        for _ in range(draw(st.integers(0, 5))):
            stride = draw(st.integers(1, 2 if scale < 32 else 1))
            operator = draw(st.sampled_from(OPERATORS if stride == 2 else OPERATORS[1:]))
            read, made = draw(st.integers(1, channels)), draw(st.integers(2, 500))
            cells.append(
                Cell(
                    operator=operator,
                    scale=scale,
                    in_channels=read,
                    channels=made,
                    stride=stride,
                    layer=draw(st.none() | st.integers(0, 40)),
                    width=draw(st.none() | st.integers(1, 500)),
                    margin=draw(st.none() | st.floats(0, 1)),
                )
            )
            scale, channels = scale * stride, made
        branches.append(
            Branch(
                scale=scale,
                channels=draw(st.integers(1, channels)),
                cells=tuple(cells),
                path_margin=draw(st.none() | st.floats(0, 1)),
            )
        )
    return MultiBranchArchitecture(
        end_ratio=end_ratio,
        branches=tuple(branches),
        num_classes=draw(st.none() | st.integers(1, 200)),
        input_size=draw(st.none() | st.tuples(st.integers(1, 4000), st.integers(1, 4000))),
        provenance=draw(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(architecture=architectures())
def test_what_is_saved_loads_back(architecture, tmp_path):
    architecture.check()
    path = tmp_path / "architecture.yaml"
    architecture.save(path)
    assert MultiBranchArchitecture.load(path) == architecture
    first = path.read_bytes()
    MultiBranchArchitecture.load(path).save(path)
    assert path.read_bytes() == first


@settings(max_examples=60, deadline=None)
@given(architecture=architectures())
def test_shared_prefixes_are_built_once_and_paths_are_kept(architecture):
    spec = architecture.spec()
    nodes, paths = share_prefixes(spec)
    for branch, path in zip(spec.branches, paths, strict=True):
        assert tuple(nodes[index].cell for index in path) == branch.cells
        assert [nodes[index].parent for index in path] == [-1, *path][: len(path)]
    distinct = {branch.cells[: length + 1] for branch in spec.branches for length in range(len(branch.cells))}
    assert len(nodes) == len(distinct)


@settings(max_examples=60, deadline=None)
@given(architecture=architectures())
def test_the_graph_has_a_node_for_everything_that_runs(architecture):
    graph = architecture.graph()
    nodes, paths = share_prefixes(architecture.spec())
    count = dict.fromkeys((*OPERATORS, "stem", "fuse", "head"), 0)
    for _, data in graph.nodes(data=True):
        count[data["operator"]] += 1
    assert count["stem"] == count["head"] == 1
    assert count["fuse"] == sum({8: 0, 16: 1, 32: 2}[branch.scale] for branch in architecture.branches)
    for operator in OPERATORS:
        assert count[operator] == sum(node.cell.operator == operator for node in nodes)
    assert nx.is_directed_acyclic_graph(graph)
    assert set(nx.ancestors(graph, "head")) | {"head"} == set(graph)
    for source, target, data in graph.edges(data=True):
        assert 1 <= data["channels"] <= max(graph.nodes[source]["channels"], graph.nodes[target]["channels"])
    for branch, path in enumerate(paths):
        for index in path:
            assert architecture.branches[branch].scale in graph.nodes[f"cell{index}"]["branches"]
    signatures = architecture.signatures(3, (64, 128))
    assert len(signatures) == len(graph)


@pytest.mark.parametrize("seed", range(10))
def test_graphs_of_decoded_architectures_run_from_left_to_right(seed):
    architecture = decoded(seed, branches=(8, 16, 32))
    graph = architecture.graph()
    positions = nx.get_node_attributes(graph, "position")
    assert all(positions[source] < positions[target] for source, target in graph.edges)
    scales = nx.get_node_attributes(graph, "scale")
    for source, target in graph.edges:
        if target.startswith("cell"):
            assert scales[target] in (scales[source], 2 * scales[source])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("branches", [(16,), (8, 32), (8, 16, 32)])
def test_built_networks_take_any_size_and_train_every_parameter(seed, branches):
    torch.manual_seed(seed)
    architecture = decoded(seed, branches, end_ratio=(1, 2, 4)[seed % 3])
    network = architecture.build(7)
    logits = network(torch.randn(2, 3, 65 + seed, 79))
    assert logits.shape == (2, 7, 65 + seed, 79)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A skip of stride 2 makes all of its channels; if at most half of them are read, one of its parts is unused.
        assert parameter.grad.abs().max() > 0 or name.endswith(".odd.weight"), name
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7, 64, 64)


@pytest.mark.parametrize("seed", range(6))
def test_the_network_has_the_modules_that_the_graph_draws(seed):
    architecture = decoded(seed, (16, 32))
    network, graph = architecture.build(3), architecture.graph()
    built = [type(module) for module in network.cells]
    drawn = [data["operator"] for name, data in graph.nodes(data=True) if name.startswith("cell")]
    kinds = {"skip": FactorizedReduce, "conv": ConvBlock, "conv_x2": ConvBlock}
    assert built == [kinds.get(operator, ZoomedConv) for operator in drawn]
    fuses = sum(isinstance(module, Fuse) for module in network.modules())
    assert fuses == sum(data["operator"] == "fuse" for _, data in graph.nodes(data=True)) == 3


def two_branches():
    shared = [
        {"operator": "conv", "scale": 8, "in_channels": 16, "channels": 16},
        {"operator": "conv_x2", "scale": 8, "stride": 2, "in_channels": 12, "channels": 32},
    ]
    third = {"operator": "zoomed_conv", "scale": 16, "stride": 2, "in_channels": 32, "channels": 64}
    return {
        "version": 1,
        "kind": "multi_branch",
        "end_ratio": 2,
        "branches": [
            {"scale": 16, "channels": 32, "cells": shared},
            {"scale": 32, "channels": 64, "cells": [*shared, third]},
        ],
    }


def load(tmp_path, values):
    path = tmp_path / "architecture.yaml"
    path.write_text(values if isinstance(values, str) else dump_yaml(values))
    return MultiBranchArchitecture.load(path)


def test_a_file_written_by_hand(tmp_path):
    architecture = load(tmp_path, two_branches())
    assert [node.parent for node in share_prefixes(architecture.spec())[0]] == [-1, 0, 1]
    assert architecture.build(4)(torch.randn(2, 3, 64, 96)).shape == (2, 4, 64, 96)
    assert architecture.summary()[1]["cells"][2] == {
        "operator": "zoomed_conv",
        "scale": 16,
        "ratio": 2,
        "channels": 32,
        "stride": 2,
        "out_channels": 64,
    }
    assert all(c["channels"] == c["scale"] * c["ratio"] for b in architecture.summary() for c in b["cells"])


def changed(path, value):
    values = two_branches()
    *parents, last = path
    inner = values
    for part in parents:
        inner = inner[part]
    inner[last] = value
    return values


CELL = ("branches", 0, "cells", 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(("version",), None), "no version: not an architecture file, or truncated; write it again with dnas"),
        (changed(("version",), 2), "given architecture version 2, expected 1"),
        (changed(("version",), "1"), "given architecture version '1', expected 1"),
        (changed(("version",), True), "version: given true"),
        (changed(("kind",), "tree"), 'kind: given "tree"'),
        (changed(("end_ratio",), 0), "end_ratio: given 0"),
        (changed(("branches",), []), "branches: given"),
        (changed(("colour",), 1), "colour: unknown key, known keys: .*branches"),
        (changed((*CELL, "colour"), 1), "branches.0.cells.1.colour: unknown key, known keys: .*operator"),
        (changed((*CELL, "operator"), "pool"), "branches.0.cells.1.operator: given 'pool', expected one of skip, conv"),
        (changed((*CELL, "scale"), 16), "branches.0.cells.1.scale: given 16"),
        (changed((*CELL, "scale"), 12), "branches.0.cells.1.scale: given 12"),
        (changed((*CELL, "stride"), 3), "branches.0.cells.1.stride: given 3"),
        (changed((*CELL, "stride"), 1), "branches.0.scale: given 16, expected 8"),
        (changed((*CELL, "in_channels"), 17), "branches.0.cells.1.in_channels: given 17, expected at most 16"),
        (changed((*CELL, "channels"), 1.5), "branches.0.cells.1.channels: given 1.5"),
        (changed((*CELL, "channels"), 31), "branches.0.channels: given 32, expected at most 31"),
        (changed(("branches", 0, "cells", 0, "operator"), "skip"), "cells.0.operator: a skip of stride 1 does nothing"),
        (
            changed(CELL, {"operator": "skip", "scale": 8, "stride": 2, "in_channels": 9, "channels": 1}),
            "branches.0.cells.1.channels: given 1, expected at least 2 for a skip of stride 2",
        ),
        (changed(("branches", 0, "scale"), 24), "branches.0.scale: given 24, expected 16"),
        (changed(("branches", 0, "cells"), None), "branches.0.cells: given null"),
        (changed(("provenance",), {"a": 1}), "provenance.a: given 1"),
        ({k: v for k, v in two_branches().items() if k != "end_ratio"}, "end_ratio: missing"),
        (
            {k: v for k, v in two_branches().items() if k != "version"},
            "no version: not an architecture file, or truncated",
        ),
        ("- 1\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("version: 1\nversion: 1\n", "occurs twice"),
        ("version: 1\nend_ratio: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("version: 1\nend_ratio: !!binary aGVsbG8=\n", "end_ratio"),
        ("version: 1\nbranches: &a [*a, *a]\n", "contains itself"),
        ("version: 1\nend_ratio: .inf\n", "end_ratio"),
        ("version: 1\nend_ratio: [", "not valid YAML"),
        ("version: 1\nbranches: " + "[" * 3000, "not valid YAML"),
    ],
)
def test_broken_files_say_what_is_wrong_where(tmp_path, values, message):
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, values)
    assert str(caught.value).startswith(str(tmp_path / "architecture.yaml"))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(UserError, match="no such architecture file"):
        MultiBranchArchitecture.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        MultiBranchArchitecture.load(tmp_path / "binary.yaml")
    with pytest.raises(UserError, match="is a folder"):
        MultiBranchArchitecture.load(tmp_path)


def test_files_are_plain_and_leave_out_what_is_unknown(tmp_path):
    path = tmp_path / "architecture.yaml"
    architecture = dataclasses.replace(load(tmp_path, two_branches()), num_classes=None)
    architecture.save(path)
    values = read_yaml(path)
    assert values["version"] == 1
    assert "num_classes" not in values
    assert "layer" not in values["branches"][0]["cells"][0]


def test_downsampling_below_32_is_refused(tmp_path):
    values = two_branches()
    values["branches"][1]["cells"].append(
        {"operator": "conv", "scale": 32, "stride": 2, "in_channels": 64, "channels": 64}
    )
    with pytest.raises(UserError, match=r"branches\.1\.cells\.3\.scale: given 32"):
        load(tmp_path, values)
