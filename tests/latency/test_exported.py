"""Backends of other runtimes: refused settings, and the comparison with PyTorch before timing."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.latency import BACKENDS, Effort, build_table, make_setup, measure
from dnas.latency.backends import find_backend, place_owned, random_inputs
from dnas.latency.exported import checked
from dnas.latency.setup import MeasurementSetup, pinned
from dnas.runtimes import BindableModule, OnnxModule, import_openvino, operator_onnx
from dnas.runtimes.int8_operator import int8_operator
from search_spaces import load_space

CASES = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
]


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def exported(request):
    """A setup for each backend and precision that this machine supports."""
    backend, precision = request.param
    setup = make_setup("cpu", backend=backend, precision=precision, threads=1)
    try:
        find_backend(setup)
    except UserError as error:
        pytest.skip(str(error))
    return setup


@pytest.fixture(scope="module")
def operators():
    """One item per operator of a space, including those with several inputs."""
    found = {item.spec.operator: item for item in load_space("fasterseg_demo", []).inventory()}
    assert {len(item.spec.inputs) for item in found.values()} >= {1, 2}
    return found


def test_an_operator_computes_what_pytorch_does(exported, operators):
    item = operators["head"]
    with pinned(exported):
        inputs = random_inputs(item.spec.inputs, exported)
        module = place_owned(item.build(), exported)
        found = find_backend(exported).prepare(module, inputs, exported)()[0]
        expected = module(*inputs)
    if exported.precision == "int8":  # prepare has compared the numbers that these integers stand for
        assert found.dtype == torch.int8
        return
    assert found.dtype == expected.dtype == exported.dtype
    tolerance = {"fp32": 1e-4, "bf16": 0.1}[exported.precision]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_a_table_is_built_and_checked_and_names_its_runtime(exported, operators, tmp_path, quick):
    items = [operators[name] for name in ("conv", "head")]
    table = build_table(items, tmp_path / "t.json", exported, space="demo", input_size=(64, 128), effort=quick)
    assert len(table) == 2
    assert all(entry.median > 0 for entry in table.entries.values())
    provenance = table.provenance
    assert (provenance.backend, provenance.precision, provenance.threads) == (exported.backend, exported.precision, 1)
    assert provenance.software[exported.backend] == sys.modules[exported.backend].__version__


class Returns(BindableModule):
    """A runtime on the CPU whose runs return ``output``."""

    def __init__(self, output):
        super().__init__(torch.device("cpu"))
        self.output, self.stream = output, None

    def bind(self, inputs):
        return lambda: (self.output,)


def test_a_runtime_that_computes_something_else_is_not_timed():
    setup = make_setup("cpu", backend="onnxruntime")
    module, inputs = nn.ReLU(), [torch.tensor([[[[1.0, -2.0], [30.0, 4.0]]]])]
    right = module(*inputs)
    run = checked(Returns(right + 0.02), module, inputs, setup)
    assert torch.equal(run()[0], right + 0.02)
    with pytest.raises(UserError, match=r"onnxruntime does not compute what PyTorch computes: .* up to 0.05 in fp32"):
        checked(Returns(right + 0.05), module, inputs, setup)
    with pytest.raises(UserError, match="does not compute what"):
        checked(Returns(right * torch.nan), module, inputs, setup)
    with pytest.raises(UserError, match="returns shapes"):
        checked(Returns(right[:, :, 1:]), module, inputs, setup)


def test_what_overflows_in_pytorch_is_not_compared():
    setup = make_setup("cpu", backend="onnxruntime")
    inputs = [torch.tensor([[[[1.0, torch.inf]]]])]
    checked(Returns(torch.tensor([[[[1.0, 7.0]]]])), nn.ReLU(), inputs, setup)


def cuda(backend, precision="fp32"):
    return MeasurementSetup(
        device=torch.device("cuda", 0), backend=backend, precision=precision, memory_format="contiguous", threads=1,
        batch=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (
            make_setup("cpu", backend="onnxruntime", precision="bf16"),
            "bf16 on cpu: it computes in fp32, int8 there, given",
        ),
        (make_setup("cpu", backend="onnxruntime", channels_last=True), "leave --channels-last out"),
        (cuda("openvino"), "fp32 on cuda:0: it is available on cpu"),
        (make_setup("cpu", backend="cudagraph"), "fp32 on cpu: it needs --device cuda"),
    ],
)
def test_a_combination_that_cannot_be_is_one_line(setup, message):
    if setup.backend == "openvino":
        _need_openvino()
    with pytest.raises(UserError, match=message) as caught:
        find_backend(setup)
    assert "\n" not in str(caught.value)


def _need_openvino():
    try:
        import_openvino()
    except UserError as error:
        pytest.skip(str(error))


def test_openvino_refuses_what_the_cpu_emulates(monkeypatch):
    _need_openvino()
    monkeypatch.setattr("dnas.latency.exported.cpu_lacks", lambda openvino, precision: precision == "bf16")
    with pytest.raises(UserError, match="cannot run bf16 on cpu: this CPU does not compute in bf16"):
        find_backend(make_setup("cpu", backend="openvino", precision="bf16"))


def test_onnx_runtime_without_cuda_says_what_to_install(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="install onnxruntime-gpu"):
        find_backend(cuda("onnxruntime"))


@pytest.mark.parametrize("backend", ["openvino", "tensorrt"])
def test_a_backend_that_is_not_installed_names_its_extra(monkeypatch, backend, quick):
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(UserError, match=rf'pip install "dnas\[{backend}\]"'):
        measure(nn.ReLU(), [torch.zeros(1, 1, 2, 2)], backend=backend, effort=quick)


def test_all_backends_are_known_by_name():
    assert list(BACKENDS) == ["eager", "compiled", "cudagraph", "onnxruntime", "openvino", "tensorrt"]


def test_a_network_of_several_outputs_is_measured():
    class Two(nn.Module):
        def forward(self, images):
            return {"out": images + 1, "aux": images[:, :1] * 2}

    effort = Effort(rounds=1, time_per_entry=0.001, warm_up_s=0, extra_rounds=0)
    assert measure(Two(), [torch.randn(1, 2, 3, 3)], backend="onnxruntime", threads=1, effort=effort).median > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_on_a_gpu(backend, precision, cache, quick):
    options = {"device": "cuda", "backend": backend, "precision": precision, "cache": cache}
    try:
        find_backend(make_setup("cuda", backend=backend, precision=precision))
    except UserError as error:
        pytest.skip(str(error))
    module = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    assert measure(module, [torch.randn(1, 8, 64, 64)], effort=quick, **options).median > 0


def test_an_int8_operator_takes_and_returns_integers_as_in_a_network(operators):
    item, setup = operators["zoomed_conv"], make_setup("cpu", backend="onnxruntime", precision="int8", threads=1)
    torch.manual_seed(0)
    with pinned(setup):
        inputs, module = random_inputs(item.spec.inputs, setup), place_owned(item.build(), setup)
        model = operator_onnx(module, [tuple(tensor.shape) for tensor in inputs])
        operator = int8_operator(model, inputs)
        found = operator.to_floats(OnnxModule(operator.model).bind(operator.to_integers(inputs))())[0]
        expected = module(*inputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(operator.model, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    integers = dict(zip(names, map(np.asarray, operator.to_integers(inputs)), strict=True))
    in_floats = operator.to_floats([torch.from_numpy(value) for value in session.run(None, integers)])[0]
    assert (in_floats - expected).abs().max() < 0.05 * expected.abs().max()
    # In integers some values are further off on CPUs without VNNI, where sums of two products saturate at 16 bits.
    assert (found - expected).square().mean() < 0.01 * expected.square().mean()
    graph = onnx.load_from_string(operator.model).graph
    assert {item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)} == {onnx.TensorProto.INT8}


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_pytorch_does_not_measure_int8(backend):
    with pytest.raises(UserError, match="computes in floating point there; use --backend onnxruntime"):
        find_backend(make_setup("cpu", backend=backend, precision="int8"))
