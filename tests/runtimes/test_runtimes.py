import io
import sys
import types

import onnx
import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.runtimes import (
    OnnxModule,
    OpenVinoModule,
    build_engine,
    import_openvino,
    import_tensorrt,
    operator_onnx,
    trace_operator,
)
from dnas.runtimes.tensorrt_runtime import EngineCache


def inputs_of(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((2, *shape), generator=generator).to(dtype) for shape in shapes]


def batched(shapes):
    return [(2, *shape) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_operator_of_two_inputs_is_traced_in_its_type_from_outside_to_outside(join, shapes, dtype):
    program = trace_operator(join, batched(shapes), dtype=dtype)
    found = program.module()(*inputs_of(shapes, dtype))
    assert found.dtype == dtype
    norms = [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    assert len(norms) == 1
    with torch.no_grad():
        expected = join(*inputs_of(shapes))
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    assert next(join.parameters()).requires_grad


def test_a_module_made_in_inference_mode_is_traced(shapes):
    with torch.inference_mode():
        module = nn.Conv2d(4, 3, 1)
        content = operator_onnx(module, [(1, 4, 5, 5)])
    assert [tuple(item.dims) for item in onnx.load(io.BytesIO(content)).graph.initializer if len(item.dims) == 4]


def test_onnx_runtime_runs_on_bound_memory(join, shapes):
    inputs = inputs_of(shapes)
    run = OnnxModule(operator_onnx(join, batched(shapes)), "cpu", 1).bind(inputs)
    with torch.no_grad():
        torch.testing.assert_close(run()[0], join(*inputs), atol=1e-5, rtol=1e-4)
        inputs[0].mul_(3)  # the session reads the same memory
        torch.testing.assert_close(run()[0], join(*inputs), atol=1e-5, rtol=1e-4)
    assert run()[0].data_ptr() == run()[0].data_ptr()


def test_onnx_runtime_is_given_its_threads():
    model = operator_onnx(nn.ReLU(), [(1, 1, 2, 2)])
    options = OnnxModule(model, "cpu", 1).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_runs_on_bound_memory_in_the_precision_asked_for(openvino, join, shapes, precision):
    if precision not in [text.lower() for text in capabilities(openvino)]:
        pytest.skip(f"this CPU has no {precision}")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    inputs = inputs_of(shapes, dtype)
    module = OpenVinoModule(operator_onnx(join, batched(shapes), dtype), precision, 1)
    assert module.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    hint = module.compiled.get_property("INFERENCE_PRECISION_HINT")
    assert hint == {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[precision]
    run = module.bind(inputs)
    tolerance = {"fp32": 1e-5, "bf16": 6e-2}[precision]
    with torch.no_grad():
        for _ in range(2):
            found = run()[0]
            assert found.dtype == dtype
            expected = join(*(tensor.float() for tensor in inputs))
            torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
            inputs[0].mul_(0.5)


def capabilities(openvino):
    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_openvino_left_alone_would_choose_a_precision_of_its_own(openvino):
    """The default depends on the CPU; therefore the precision is set explicitly."""
    model = openvino.Core().read_model(operator_onnx(nn.Conv2d(2, 2, 1), [(1, 2, 4, 4)]))
    default = openvino.Core().compile_model(model, "CPU").get_property("INFERENCE_PRECISION_HINT")
    assert default == (openvino.Type.bf16 if "BF16" in capabilities(openvino) else openvino.Type.f32)


def test_openvino_says_that_a_model_is_broken(openvino):
    with pytest.raises(UserError, match="OpenVINO cannot load this model"):
        OpenVinoModule(b"nothing")


def test_importing_openvino_reports_to_nobody(openvino):
    stub = sys.modules["openvino.tools.ovc.telemetry_utils"].tm
    assert stub.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert sys.modules.get("openvino_telemetry", "absent") is not None


@pytest.mark.parametrize(
    ("load", "package"), [(import_openvino, "openvino"), (import_tensorrt, "tensorrt")], ids=["openvino", "tensorrt"]
)
def test_an_absent_runtime_names_its_extra(monkeypatch, load, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'pip install "dnas\[{package}\]"'):
        load()


class FakeTensorRT:
    """The part of TensorRT's builder API that :func:`build_engine` uses; records its calls."""

    __version__ = "11.0"

    def __init__(self, readable=True, engine=b"engine"):
        self.readable, self.engine, self.told = readable, engine, []
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
        self.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
        self.BuilderFlag = types.SimpleNamespace(TF32="tf32")

    def Builder(self, logger):
        self.told.append(("builder",))
        return types.SimpleNamespace(
            create_network=lambda flags: self.told.append(("network", flags)),
            create_builder_config=lambda: types.SimpleNamespace(
                set_memory_pool_limit=lambda pool, size: self.told.append((pool, size)),
                set_flag=lambda flag: self.told.append(("set", flag)),
                clear_flag=lambda flag: self.told.append(("clear", flag)),
                create_timing_cache=lambda known: known,
                set_timing_cache=lambda times, ignore_mismatch: self.told.append(("times", times)),
                get_timing_cache=lambda: types.SimpleNamespace(serialize=lambda: b"times"),
            ),
            build_serialized_network=lambda network, config: self.engine,
        )

    def OnnxParser(self, network, logger):
        return types.SimpleNamespace(
            parse=lambda model: self.readable, num_errors=1, get_error=lambda index: "no such operator"
        )


@pytest.mark.parametrize(("tf32", "order"), [(False, "clear"), (True, "set")])
def test_an_engine_is_strongly_typed_and_uses_tf32_only_when_asked(tf32, order):
    trt = FakeTensorRT()
    assert build_engine(trt, b"model", 123, tf32=tf32) == b"engine"
    assert trt.told == [("builder",), ("network", 2), ("workspace", 123), (order, "tf32")]


def test_engines_are_built_once_by_one_builder_that_remembers_its_times(tmp_path):
    trt = FakeTensorRT()
    cache = EngineCache(tmp_path / "tensorrt 11")
    for _ in range(2):
        assert cache.engine(trt, b"one") == b"engine"
    assert cache.engine(trt, b"one", tf32=True) == cache.engine(trt, b"two") == b"engine"
    assert trt.told.count(("builder",)) == 1
    assert [call[1] for call in trt.told if call[0] == "times"] == [b"", b"times", b"times"]


class FakeOnnxRuntime(types.ModuleType):
    """ONNX Runtime whose CUDA provider is installed but fails to load, so that sessions fall back to the CPU."""

    SessionOptions = types.SimpleNamespace

    def __init__(self):
        super().__init__("onnxruntime")

    def disable_telemetry_events(self):
        pass

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, model, options, providers):
        assert providers[0][0] == "CUDAExecutionProvider"
        return types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])


def test_a_session_that_fell_back_to_the_cpu_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime())
    monkeypatch.setattr("dnas.runtimes.onnx_runtime.own_stream", lambda device: None)
    with pytest.raises(UserError, match=r"could not use CUDAExecutionProvider and would run on CPU.*onnxruntime-gpu"):
        OnnxModule(b"model", "cuda:0")


def test_a_missing_onnx_runtime_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"install either onnxruntime or, for a GPU, onnxruntime-gpu"):
        OnnxModule(b"model", "cpu")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"not on cuda:0; .* pip uninstall onnxruntime"):
        OnnxModule(b"model", "cuda:0")


@pytest.mark.parametrize(
    ("trt", "message"),
    [
        (FakeTensorRT(readable=False), "cannot read the exported ONNX file: no such operator"),
        (FakeTensorRT(engine=None), "TensorRT 11.0 could not build an engine"),
    ],
)
def test_a_failed_engine_is_one_line(trt, message):
    with pytest.raises(UserError, match=message):
        build_engine(trt, b"model")
