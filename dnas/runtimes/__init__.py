"""Runtimes other than PyTorch: tracing, conversion to ONNX, and modules for ONNX Runtime, OpenVINO and TensorRT.

Latency measurement and export both use this package.
"""

from dnas.runtimes.onnx_model import onnx_content, operator_onnx
from dnas.runtimes.onnx_runtime import OnnxModule
from dnas.runtimes.opaque import BindableModule, BoundRun, OpaqueModule
from dnas.runtimes.openvino_runtime import OpenVinoModule, import_openvino
from dnas.runtimes.program import ProgramModule
from dnas.runtimes.tensorrt_runtime import TensorRTModule, build_engine, import_tensorrt
from dnas.runtimes.trace import trace, trace_operator

__all__ = [
    "BindableModule",
    "BoundRun",
    "OnnxModule",
    "OpaqueModule",
    "OpenVinoModule",
    "ProgramModule",
    "TensorRTModule",
    "build_engine",
    "import_openvino",
    "import_tensorrt",
    "onnx_content",
    "operator_onnx",
    "trace",
    "trace_operator",
]
