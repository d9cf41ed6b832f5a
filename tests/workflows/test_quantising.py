"""INT8 export of a network: mIoU and latency of each precision, and layers that are left out."""

import dataclasses
import sys
from pathlib import Path

import onnx
import pytest
import torch

from dnas.errors import UserError
from dnas.export import EndToEnd, benchmark, read_onnx
from dnas.export.tensorrt_engine import read_engine
from dnas.runtimes.quantise import make_quantiser
from dnas.workflows import quantising
from dnas.workflows.exporting import ExportRequest, export_run
from dnas.workflows.quantising import QuantisationConfig

CONFIG = QuantisationConfig(seconds=0.01)


def export(reader, data, out, **options):
    request = {"precision": "int8", "data": data, "quantisation": CONFIG, **options}
    return export_run(reader, out, ExportRequest(**request))


def test_int8_keeps_the_miou_and_the_table_has_three_precisions(reader, data, tmp_path):
    out = tmp_path / "int8.onnx"
    found = export(reader, data, out)
    assert [(row["name"], row["precision"]) for row in found.rows] == [
        (name, name) for name in ("fp32", "fp16", "int8")
    ]
    assert all(row["miou"] > 0.75 and row["latency_ms"]["median"] > 0 for row in found.rows)
    assert abs(found.rows[2]["miou"] - found.rows[0]["miou"]) <= 0.01
    assert found.excluded == ()
    _, metadata = read_onnx(out)
    assert (metadata.precision, metadata.calibration_images) == ("int8", 3)
    assert metadata.class_names == reader.labels.names
    assert "calibrated on: 3 images" in Path(f"{out}.md").read_text()
    assert benchmark(out, seconds=0.01)["precision"] == "int8"


def test_layers_that_lose_too_much_stay_in_floating_point(reader, data, tmp_path):
    """The first layer scales its channels so differently that one scale of activations keeps none but the largest."""
    broken = dataclasses.replace(reader, network=_Spread(reader.network))
    found = export(broken, data, tmp_path / "int8.onnx", end_to_end=EndToEnd())
    assert found.excluded
    assert found.rows[0]["miou"] - found.rows[2]["miou"] <= 0.01
    assert read_onnx(tmp_path / "int8.onnx")[1].excluded_layers == found.excluded


class _Spread(torch.nn.Module):
    """Computes what ``network`` computes, over channels of very different scales."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.spread, self.gather = (torch.nn.Conv2d(3, 3, 1, bias=False) for _ in range(2))
        with torch.no_grad():
            scales = torch.tensor([1.0, 1e3, 1e-3])
            self.spread.weight.copy_(torch.diag(scales)[:, :, None, None])
            self.gather.weight.copy_(torch.diag(1 / scales)[:, :, None, None])

    def forward(self, images):
        return self.network(self.gather(self.spread(images)))


def test_an_engine_is_built_from_symmetric_int8(reader, data, tmp_path, monkeypatch):
    """TensorRT's part is a stand-in: what it is given is checked, and the files that are written."""
    given = []

    def build(trt, model):
        given.append(onnx.load_from_string(model))
        return b"an engine"

    monkeypatch.setattr(quantising, "check_buildable", lambda options: "tensorrt")
    monkeypatch.setattr(quantising, "build_engine", build)
    monkeypatch.setattr(quantising, "TensorRTModule", lambda engine: torch.no_grad()(reader.network.forward))
    found = export(reader, data, tmp_path / "int8.engine", file_format="tensorrt")
    (model,) = given
    points = {node.input[2] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    arrays = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name in points]
    assert len(arrays) == len(points) > 0
    assert {(str(array.dtype), array.any()) for array in arrays} == {("int8", False)}
    assert read_engine(tmp_path / "int8.engine")[0] == b"an engine"
    assert read_engine(tmp_path / "int8.engine")[1].precision == "int8"
    assert abs(found.rows[2]["miou"] - found.rows[0]["miou"]) <= 0.01


def test_an_int8_engine_needs_tensorrt(reader, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r'pip install "dnas\[tensorrt\]"'):
        export(reader, data, tmp_path / "a.engine", file_format="tensorrt")
    with pytest.raises(UserError, match="nncf: cannot quantise for TensorRT"):
        make_quantiser("nncf", b"", [], symmetric=True)
    assert not list(tmp_path.iterdir())


def test_int8_is_for_onnx_and_known_quantisers(reader, data, tmp_path):
    with pytest.raises(UserError, match="is for the formats onnx and tensorrt"):
        export(reader, data, tmp_path / "a.pt2", file_format="torch")
    with pytest.raises(UserError, match="expected onnxruntime or nncf"):
        export(reader, data, tmp_path / "a.onnx", quantisation=QuantisationConfig(quantiser="guess"))
    assert not list(tmp_path.iterdir())
