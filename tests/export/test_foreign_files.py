"""Foreign files are inspected before they are loaded: what could execute code is refused."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.export import benchmark, export_onnx, export_torch
from dnas.export.onnx_file import read_onnx
from dnas.export.torch_file import read_program

SIZE = (16, 16)
PROGRAM = "archive/models/model.json"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()


@pytest.fixture(scope="module")
def members(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("export") / "good.pt2"
    export_torch(network, path, SIZE)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _changed(members: dict[str, bytes], name: str, change: Callable[[Any], None]) -> dict[str, bytes]:
    value = json.loads(members[name])
    change(value)
    return {**members, name: json.dumps(value).encode()}


def _pickled(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_the_rewritten_archive_is_the_same_program(members: dict[str, bytes], network: nn.Module, tmp_path: Path):
    program, described = read_program(_write(tmp_path / "good.pt2", members))
    images = torch.randn(1, 3, *SIZE)
    assert torch.equal(program.module()(images), network(images))
    assert described is not None
    assert described.input_size == SIZE


WEIGHTS = "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"


def _node(**entries: Any) -> Callable[[Any], None]:
    return lambda program: program["graph_module"]["graph"]["nodes"][0].update(entries)


def _evil_archives(good: dict[str, bytes], trace: Path) -> dict[str, dict[str, bytes]]:
    payload = _pickled(Payload(trace))
    weight = next(iter(json.loads(good[WEIGHTS])["config"]))
    entry = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    expression = {"as_expr": {"expr_str": f"__import__('os').mkdir('{trace}')", "hint": None}}
    tree = json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])
    return {
        "a pickle in the sample inputs": {**good, "archive/data/sample_inputs/model.pt": payload},
        "a weight as a pickle": {
            **_changed(good, WEIGHTS, lambda config: config["config"][weight].update(use_pickle=True)),
            "archive/data/weights/weight_0": payload,
        },
        "weights of the earlier format": {**good, "archive/data/weights/model.pt": payload},
        "an object": {
            **_changed(good, CONSTANTS, lambda config: config["config"].update(evil=entry)),
            "archive/data/constants/custom_obj_0": payload,
        },
        "a compiled library": {**good, "archive/data/aotinductor/model/a.so": b"\x7fELF"},
        "a member twice": {**good, "other/models/model.json": good[PROGRAM]},
        "a call of os": _changed(good, PROGRAM, _node(target="torch.os.system")),
        "an operator on files": _changed(good, PROGRAM, _node(target="torch.ops.aten.from_file.default")),
        "another library's operator": _changed(good, PROGRAM, _node(target="torch.ops.profiler._record_function_exit")),
        "an expression": _changed(good, PROGRAM, lambda program: program.update(extra=expression)),
        "a huge power": _changed(good, PROGRAM, lambda program: program.update(extra={"expr_str": "9**9**9**9"})),
        "a tree of any type": _changed(good, PROGRAM, lambda program: program.update(in_spec=tree)),
    }


def test_a_program_that_could_run_code_is_refused_and_runs_none(members: dict[str, bytes], tmp_path: Path):
    trace = tmp_path / "executed"
    for name, archive in _evil_archives(members, trace).items():
        path = _write(tmp_path / "evil.pt2", archive)
        with pytest.raises(UserError, match=r"evil\.pt2: (refused: it holds|not a valid)") as caught:
            read_program(path)
        assert "\n" not in str(caught.value), name
        assert not trace.exists(), name


def test_damaged_programs_are_one_line(members: dict[str, bytes], tmp_path: Path):
    whole = _write(tmp_path / "whole.pt2", members).read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2], whole[:-10], b"x" * 100):
        (tmp_path / "cut.pt2").write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.pt2: not a valid torch\.export file"):
            read_program(tmp_path / "cut.pt2")
    for name in (PROGRAM, WEIGHTS, "archive/data/sample_inputs/model.pt"):
        left = {member: content for member, content in members.items() if member != name}
        with pytest.raises(UserError, match="not a valid"):
            read_program(_write(tmp_path / "left.pt2", left))


def test_onnx_data_in_other_files_is_refused(network: nn.Module, tmp_path: Path):
    export_onnx(network, tmp_path / "good.onnx", SIZE)
    (tmp_path / "secret").write_bytes(bytes(1000))
    for place in ("initializer", "constant", "subgraph"):
        model = onnx.load(tmp_path / "good.onnx")
        tensor = model.graph.initializer[0]
        if place != "initializer":
            node = model.graph.node.add(op_type="Constant", output=["c"])
            tensor = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
            if place == "subgraph":
                node.attribute[0].CopyFrom(onnx.AttributeProto(name="body", type=onnx.AttributeProto.GRAPH))
                tensor = node.attribute[0].g.initializer.add(name="inner", data_type=1, dims=[1])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="secret")
        (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match=r"evil\.onnx: refused: its tensor .* lies in another file"):
            read_onnx(tmp_path / "evil.onnx")


def test_an_engine_is_only_loaded_on_trust(tmp_path: Path):
    (tmp_path / "foreign.engine").write_bytes(b"ftrt")
    with pytest.raises(UserError, match=r"foreign\.engine: a TensorRT engine contains code.*--trust"):
        benchmark(tmp_path / "foreign.engine")
    with pytest.raises(UserError, match=r"TensorRT is not installed|cannot run on cpu"):
        benchmark(tmp_path / "foreign.engine", trust=True)


def _onnx(tmp_path: Path, **changes: Any) -> Path:
    shape, kind = changes.get("shape", [1, 3, 16, 16]), changes.get("kind", onnx.TensorProto.FLOAT)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["images"], ["logits"])] if changes.get("nodes", True) else [],
        "g",
        [value(name, kind, shape) for name in changes.get("inputs", ["images"])],
        [value("logits", kind, shape)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.helper.set_model_props(model, changes.get("metadata", {}))
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": []},
        {"inputs": ["images", "more"]},
        {"kind": onnx.TensorProto.INT64},
        {"kind": 77},
        {"shape": [1, 3, 2**40, 2**40]},
        {"shape": [1, 3, 16000, 16000], "kind": onnx.TensorProto.DOUBLE},
        {"shape": [1, 3, -5, 16]},
        {"shape": [1]},
    ],
    ids=str,
)
def test_odd_onnx_files_are_one_line(tmp_path: Path, changes: dict[str, Any]):
    path = _onnx(tmp_path, **changes)
    with pytest.raises(UserError, match=r"odd\.onnx: ") as caught:
        benchmark(path, seconds=0.01)
    assert "\n" not in str(caught.value)


def test_odd_metadata_is_no_metadata(tmp_path: Path):
    texts = {"input_size": "[16, 16]", "class_names": "[]", "mean": "[]", "std": "[]", "parameters": "1"}
    texts |= {"multiply_adds": "1e400", "precision": '"\\u001b[31m"', "dnas_version": "1"}
    result = benchmark(_onnx(tmp_path, metadata=texts), seconds=0.01)
    assert result["multiply_adds"] is None
    assert result["precision"] == "fp32"
