"""INT8 quantisation of ONNX models: what is quantised, which layers lose most, which are left out."""

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.export.onnx_file import count_initialisers
from dnas.export.sensitivity import exclude_until, sensitivities
from dnas.runtimes import operator_onnx
from dnas.runtimes.quantise import OnnxRuntimeQuantiser, make_quantiser


class Net(nn.Module):
    """Three convolutions; the filters of the second differ by a factor of 100, which only a scale per channel keeps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(8, 3, 1),
        )
        with torch.no_grad():
            self.layers[3].weight.mul_(torch.logspace(-1, 1, 8)[:, None, None, None])

    def forward(self, images):
        return nn.functional.interpolate(self.layers(images), scale_factor=2.0, mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def model():
    return operator_onnx(Net().eval(), [(1, 3, 16, 24)])


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.normal(size=(1, 3, 16, 24)).astype(np.float32) for _ in range(4)]


def run(model, images):
    """The outputs, of quantised layers computed in floating point: the integers of CPUs without VNNI saturate."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {session.get_inputs()[0].name: image})[0] for image in images]


def relative_error(found, expected):
    return float(np.square(np.array(found) - expected).mean() / np.square(np.array(expected)).mean())


@pytest.fixture(scope="module")
def quantiser(model, images):
    return OnnxRuntimeQuantiser(model, images)


def test_every_layer_is_int8_with_a_scale_per_channel_and_logits_are_resized_in_float(quantiser, model, images):
    content = quantiser.quantise()
    proto = onnx.load_from_string(content)
    weights = [item for item in proto.graph.initializer if len(item.dims) == 4]
    assert {item.data_type for item in weights} == {onnx.TensorProto.INT8}
    assert len(weights) == 3
    scales = {item.name: item.dims for item in proto.graph.initializer if "weight_scale" in item.name}
    assert sorted(tuple(dims) for dims in scales.values()) == [(3,), (8,), (8,)]
    made_by = {node.output[0]: node for node in proto.graph.node}
    resize = next(node for node in proto.graph.node if node.op_type == "Resize")
    assert proto.graph.output[0].name == resize.output[0]
    assert made_by[resize.input[0]].op_type == "DequantizeLinear"
    assert relative_error(run(content, images), run(model, images)) < 1e-3
    assert content == quantiser.quantise()
    assert count_initialisers(proto) == count_initialisers(onnx.load_from_string(model))


def test_sensitivities_find_the_layer_that_loses_most_and_excluding_it_helps(model, images):
    # Calibrated on images a thousand times as bright, the first layer's input has hardly any levels left.
    bright = OnnxRuntimeQuantiser(model, [1000 * image for image in images])
    expected = run(model, images)
    found = sensitivities(bright, lambda content: run(content, images), expected)
    assert set(found) == set(bright.layers)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    wanted = found[list(found)[1]]

    def good(content):
        return np.square(np.array(run(content, images)) - expected).mean() < wanted

    excluded, content = exclude_until(bright, list(found), good)
    assert good(content)
    assert 0 < len(excluded) <= len(found)
    assert excluded == tuple(list(found)[: len(excluded)])


class Counting:
    layers = tuple("abcdefghij")

    def __init__(self):
        self.tried = []

    def quantise(self, exclude=()):
        self.tried.append(len(exclude))
        return bytes(len(exclude))


@pytest.mark.parametrize("needed", [1, 2, 3, 6, 10])
def test_the_fewest_layers_are_excluded_with_few_trials(needed):
    quantiser = Counting()
    excluded, model = exclude_until(quantiser, quantiser.layers, lambda model: len(model) >= needed)
    assert (len(excluded), len(model)) == (needed, needed)
    assert len(quantiser.tried) <= 8
    with pytest.raises(UserError, match="even with all layers"):
        exclude_until(quantiser, quantiser.layers, lambda model: False)


def test_nncf_quantises_the_same_layers(model, images):
    if importlib.util.find_spec("nncf") is None:
        pytest.skip("needs nncf")
    content = make_quantiser("nncf", model, images).quantise()
    operators = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert operators.count("QuantizeLinear") >= 3
    assert relative_error(run(content, images), run(model, images)) < 1e-2


def test_mistakes_are_user_errors(model, images):
    with pytest.raises(UserError, match="expected onnxruntime or nncf"):
        make_quantiser("guess", model, images)
    with pytest.raises(UserError, match="needs calibration images"):
        make_quantiser("onnxruntime", model, [])
