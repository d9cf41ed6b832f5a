"""Export of networks to files for a runtime (ONNX, torch.export, TensorRT), with parity checks and benchmarks."""

from dnas.export.benchmark import benchmark
from dnas.export.metadata import ExportMetadata
from dnas.export.onnx_file import export_onnx, read_onnx
from dnas.export.parity import Parity, check_parity
from dnas.export.tensorrt_engine import export_tensorrt
from dnas.export.torch_file import export_torch, read_program

__all__ = [
    "ExportMetadata",
    "Parity",
    "benchmark",
    "check_parity",
    "export_onnx",
    "export_tensorrt",
    "export_torch",
    "read_onnx",
    "read_program",
]
