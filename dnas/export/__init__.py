"""Export of networks to files for a runtime (ONNX, torch.export, TensorRT), with parity checks and benchmarks."""

from dnas.export.benchmark import benchmark
from dnas.export.end_to_end import EndToEnd
from dnas.export.metadata import ExportMetadata
from dnas.export.onnx_file import export_onnx, read_onnx
from dnas.export.opened import ExportedFile, is_exported_file, open_file
from dnas.export.parity import Parity, check_parity
from dnas.export.program import prepare
from dnas.export.tensorrt_engine import export_tensorrt
from dnas.export.torch_file import export_torch, read_program

__all__ = [
    "EndToEnd",
    "ExportMetadata",
    "ExportedFile",
    "Parity",
    "benchmark",
    "check_parity",
    "export_onnx",
    "export_tensorrt",
    "export_torch",
    "is_exported_file",
    "open_file",
    "prepare",
    "read_onnx",
    "read_program",
]
