from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from dnas.errors import UserError
from dnas.export import benchmark, check_parity, export_onnx, export_tensorrt, export_torch, read_onnx, read_program
from dnas.export.onnx_file import count_initialisers
from dnas.profile import count_multiply_adds, count_parameters
from dnas.runtimes import OnnxModule, ProgramModule, import_openvino, import_tensorrt, trace

SIZE = (67, 93)
NOTES = {"class_names": ["road", "sky", "Zaun ß"], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


class TwoScales(nn.Module):
    """Convolutions at two scales with bilinear down- and upsampling, like a zoomed convolution."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.zoomed = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8, affine=False), nn.ReLU())
        self.alone = nn.BatchNorm2d(8)  # follows no convolution and is not folded
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.stem(images)
        zoomed = self.zoomed(functional.interpolate(stem, scale_factor=0.5, mode="bilinear", align_corners=False))
        zoomed = functional.interpolate(zoomed, size=stem.shape[2:], mode="bilinear", align_corners=False)
        logits = self.head(self.alone(stem + zoomed))
        return functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def network() -> TwoScales:
    """In training mode, with BatchNorm statistics far from 0 and 1, which reveals an export without eval mode."""
    torch.manual_seed(0)
    module = TwoScales().train()
    with torch.no_grad():
        for _ in range(5):
            module(3 * torch.randn(2, 3, 64, 64) + 2)
    return module


@pytest.fixture(scope="module")
def onnx_path(network: TwoScales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    parity = export_onnx(network, path, SIZE, images=torch.randn(3, 3, *SIZE), **NOTES)
    assert (parity.images, parity.real) == (3, True)
    assert parity.max_abs_difference < 1e-4
    assert parity.equal_argmax > 0.999
    return path


@pytest.fixture(scope="module")
def program_path(network: TwoScales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "network.pt2"
    assert export_torch(network, path, SIZE, dynamic_batch=True, **NOTES).max_abs_difference < 1e-4
    return path


def test_onnx_holds_metadata_opset_and_no_path_of_this_machine(network: TwoScales, onnx_path: Path) -> None:
    model, described = read_onnx(onnx_path)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
    assert described is not None
    assert described.input_size == SIZE
    assert described.class_names == tuple(NOTES["class_names"])
    assert (described.mean, described.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert described.parameters == count_parameters(network)
    assert described.multiply_adds == count_multiply_adds(network, SIZE)
    assert str(Path(__file__).parent).encode() not in onnx_path.read_bytes()


def test_export_leaves_the_network_in_training_mode(network: TwoScales, onnx_path: Path) -> None:
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_export_is_silent(network: TwoScales, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(network, tmp_path / "a.onnx", SIZE)
    export_torch(network, tmp_path / "a.pt2", SIZE)
    assert capfd.readouterr() == ("", "")


def test_dynamic_batch_runs_other_batches(network: TwoScales, tmp_path: Path) -> None:
    import onnxruntime

    export_onnx(network, tmp_path / "a.onnx", SIZE, dynamic_batch=True)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, *SIZE)
    with torch.no_grad():
        expected = TwoScales.forward(network.eval(), images)
    network.train()
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected)


def test_fixed_batch_is_kept_and_compared_with_single_images(network: TwoScales, tmp_path: Path) -> None:
    parity = export_onnx(network, tmp_path / "a.onnx", SIZE, batch=2, images=torch.randn(1, 3, *SIZE))
    assert parity.images == 2
    assert benchmark(tmp_path / "a.onnx", seconds=0.02, batch=2)["batch"] == 2
    with pytest.raises(UserError, match="exported for batch 2, given 3"):
        benchmark(tmp_path / "a.onnx", seconds=0.02, batch=3)


def test_program_is_loaded_by_torch_alone(network: TwoScales, program_path: Path) -> None:
    program = torch.export.load(program_path).module()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(program(images), network.eval()(images), atol=1e-5, rtol=1e-4)
    network.train()
    described = read_program(program_path)[1]
    assert described is not None
    assert described.class_names == tuple(NOTES["class_names"])


@pytest.mark.parametrize("fold", [True, False])
def test_folding_leaves_only_the_batch_norm_that_follows_no_convolution(network: TwoScales, fold: bool) -> None:
    program = trace(network, SIZE, fold_batch_norm=fold)
    norms = [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    assert len(norms) == (1 if fold else 3)
    images = torch.randn(1, 3, *SIZE)
    expected = network.eval()(images)
    network.train()
    torch.testing.assert_close(program.module()(images), expected, atol=1e-5, rtol=1e-4)


def test_a_convolution_that_is_used_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.convolution(images)
            return self.norm(features) + features

    network, images = Twice().eval(), torch.randn(1, 3, 8, 8)
    nn.init.normal_(network.norm.running_mean)
    torch.testing.assert_close(trace(network, (8, 8)).module()(images), network(images))


def test_half_precision_keeps_float32_outside(network: TwoScales, tmp_path: Path) -> None:
    parity = export_onnx(network, tmp_path / "half.onnx", SIZE, precision="fp16")
    assert 0 < parity.max_abs_difference < 0.1
    model, _ = read_onnx(tmp_path / "half.onnx")
    weights = [item for item in model.graph.initializer if len(item.dims) == 4]
    assert {item.data_type for item in weights} == {onnx.TensorProto.FLOAT16}
    assert benchmark(tmp_path / "half.onnx", seconds=0.02)["precision"] == "fp16"


@pytest.mark.parametrize(("export", "runtime"), [(export_onnx, OnnxModule), (export_torch, ProgramModule)])
@pytest.mark.parametrize("older", [None, b"older"])
def test_failed_parity_writes_nothing(
    network: TwoScales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export, runtime, older: bytes | None
) -> None:
    right = runtime.forward
    monkeypatch.setattr(runtime, "forward", lambda self, images: right(self, images) * 1.05)
    path = tmp_path / "file"
    if older is not None:
        path.write_bytes(older)
    with pytest.raises(UserError, match="differs from the PyTorch network by up to"):
        export(network, path, SIZE)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({} if older is None else {"file": older})


@pytest.mark.parametrize("fault", [lambda x: x * 1.1, lambda x: x * torch.nan, lambda x: x[:, :, 1:]])
def test_parity_sees_scaled_missing_and_nan_logits(network: TwoScales, fault) -> None:
    reference = torch.export.export(network.eval(), (torch.zeros(1, 3, *SIZE),)).module(check_guards=False)
    network.train()
    check_parity(network, reference, SIZE)
    with pytest.raises(UserError, match=r"differs|shape"):
        check_parity(network, lambda images: fault(reference(images)), SIZE)


def test_parity_refuses_images_of_another_size(network: TwoScales, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shape \(1, 3, 64, 64\) given to compare, expected \(N, 3, 67, 93\)"):
        export_torch(network, tmp_path / "a.pt2", SIZE, images=torch.zeros(1, 3, 64, 64))


def test_network_that_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(UserError, match="cannot be traced at 32x48") as caught:
        trace(Branching(), (32, 48))
    assert "\n" not in str(caught.value)


def test_missing_tensorrt_names_the_extra(network: TwoScales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(UserError, match=r'pip install "dnas\[tensorrt\]"'):
        import_tensorrt()
    with pytest.raises(UserError, match=r'pip install "dnas\[tensorrt\]"'):
        export_tensorrt(network, tmp_path / "a.engine", SIZE)
    with pytest.raises(UserError, match="TensorRT is not installed"):
        benchmark(network, SIZE, backend="tensorrt")
    assert not list(tmp_path.iterdir())


def test_initialisers_count_weights_and_folded_biases(network: TwoScales, onnx_path: Path) -> None:
    # stem 3x8x9 + 8, zoomed 8x8x9 + 8, lone BatchNorm 4x8 (scale, shift, mean, variance), head 8x3 + 3
    assert count_initialisers(read_onnx(onnx_path)[0]) == 216 + 8 + 576 + 8 + 32 + 24 + 3


CONTRACT = {
    "latency_ms",
    "fps",
    "parameters",
    "multiply_adds",
    "input_size",
    "device",
    "backend",
    "precision",
    "peak_memory_mb",
    "file",
}


def check_contract(result: dict, backend: str) -> None:
    assert set(result) >= CONTRACT
    assert result["latency_ms"].keys() == {"median", "p10", "p90"}
    latency = result["latency_ms"]
    assert 0 < latency["p10"] <= latency["median"] <= latency["p90"]
    assert result["fps"] == pytest.approx(1000 / latency["median"])
    assert (result["input_size"], result["device"], result["backend"]) == ([*SIZE], "cpu", backend)
    assert result["peak_memory_mb"] > 1


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_benchmark_of_a_network(network: TwoScales, backend: str) -> None:
    result = benchmark(network, SIZE, backend=backend, seconds=0.02, threads=1)
    check_contract(result, backend)
    assert result["parameters"] == count_parameters(network)
    assert result["multiply_adds"] == count_multiply_adds(network, SIZE)
    assert result["file"] is None
    assert network.training


def test_benchmark_in_openvino(network: TwoScales, onnx_path: Path, tmp_path: Path) -> None:
    try:
        import_openvino()
    except UserError as error:
        pytest.skip(str(error))
    result = benchmark(onnx_path, backend="openvino", seconds=0.02, threads=1)
    check_contract(result, "openvino")
    assert result["file"] == str(onnx_path)
    check_contract(benchmark(network, SIZE, backend="openvino", seconds=0.02), "openvino")
    export_onnx(network, tmp_path / "half.onnx", SIZE, precision="fp16")
    with pytest.raises(UserError, match="fp16 is emulated on a CPU"):
        benchmark(tmp_path / "half.onnx", backend="openvino")


def test_benchmark_of_files(network: TwoScales, onnx_path: Path, program_path: Path) -> None:
    for path, backend in ((onnx_path, "onnxruntime"), (program_path, "eager")):
        result = benchmark(path, seconds=0.02)
        check_contract(result, backend)
        assert result["file"] == str(path)
        assert result["parameters"] > 0
        assert result["multiply_adds"] == count_multiply_adds(network, SIZE)


def test_benchmark_of_a_foreign_onnx_file_does_not_invent_multiply_adds(onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    result = benchmark(tmp_path / "foreign.onnx", seconds=0.02)
    check_contract(result, "onnxruntime")
    assert result["multiply_adds"] is None


def test_benchmark_errors_name_what_was_given(network: TwoScales, onnx_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_path.read_bytes()[:500])
    shattered = tmp_path / "broken.pt2"
    shattered.write_bytes(b"PK nothing")
    cases = [
        ((network,), {}, "no fixed input size"),
        ((network, SIZE), {"backend": "quantum"}, "'quantum'"),
        ((network, SIZE), {"backend": "onnxruntime", "precision": "bf16"}, "computes in fp32, int8 there, given bf16"),
        ((onnx_path, (64, 64)), {}, "exported for input size 67x93, given 64x64"),
        ((onnx_path,), {"backend": "eager"}, "runs in onnxruntime or openvino, given backend eager"),
        ((onnx_path,), {"precision": "fp16"}, "exported in fp32, given precision fp16"),
        ((broken,), {}, "not a valid ONNX file"),
        ((shattered,), {}, "not a valid torch.export file"),
        ((tmp_path / "none.onnx",), {}, "no such ONNX file"),
        ((tmp_path / "none.pt2",), {}, "no such torch.export file"),
        ((tmp_path / "a.tflite",), {}, r"expected one of \.onnx, \.pt2"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(UserError, match=message):
            benchmark(*arguments, seconds=0.02, **options)
