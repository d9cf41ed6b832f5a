"""Opening an exported file in its runtime: its module, the images that it takes and its metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto

from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata
from dnas.export.onnx_file import count_initialisers, read_onnx
from dnas.export.tensorrt_engine import read_engine
from dnas.export.torch_file import read_program
from dnas.files import read_bytes
from dnas.latency.backends import find_backend
from dnas.latency.setup import make_setup
from dnas.runtimes import OnnxModule, OpaqueModule, OpenVinoModule, ProgramModule, TensorRTModule, import_tensorrt

_MAX_SIDE = 16384
_IMAGE_TYPES = {TensorProto.FLOAT: torch.float32, TensorProto.UINT8: torch.uint8}


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """An exported file, loaded.

    ``shape`` is that of its input, None where the file leaves a size open; ``dtype`` is float32 for normalised images
    and uint8 for an end-to-end file. ``backend`` is the runtime that the file was loaded in, ``run_as`` the backend
    that runs ``module`` there.
    """

    path: Path
    module: OpaqueModule
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    backend: str
    run_as: str
    parameters: int | None
    metadata: ExportMetadata | None

    @property
    def precision(self) -> str:
        """The precision that the file was exported in."""
        return self.metadata.precision if self.metadata else "fp32"

    @property
    def channels_last(self) -> bool:
        """Whether the images are (N, H, W, C) and not (N, C, H, W)."""
        if self.metadata is not None:
            return self.metadata.layout == "nhwc"
        return self.shape[1] != 3 and self.shape[3] == 3

    @property
    def channels(self) -> int:
        """The channels of the images."""
        return self.shape[3 if self.channels_last else 1] or 3

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images, None if the file leaves them open."""
        height, width = self.shape[1:3] if self.channels_last else self.shape[2:4]
        return None if height is None or width is None else (height, width)

    def input_shape(self, size: tuple[int, int] | None, batch: int) -> tuple[int, int, int, int]:
        """The shape of a batch of images of ``size``, which is needed for a file of dynamic size and must fit others.

        Raises :class:`UserError` for another size or batch than that of the file.
        """
        if self.shape[0] is not None and batch not in (1, self.shape[0]):
            raise UserError(f"{self.path}: was exported for batch {self.shape[0]}, given {batch}; export it again")
        own = self.image_size
        if own is None and size is None:
            size = self.metadata.image_size or self.metadata.input_size if self.metadata else None
            if size is None:
                raise UserError(f"{self.path}: takes images of any size; give one, for example --size 512x1024")
        if own is not None and size is not None and tuple(size) != own:
            given, expected = ("x".join(map(str, sides)) for sides in (size, own))
            raise UserError(f"{self.path}: was exported for input size {expected}, given {given}; export it again")
        height, width = own or size or (0, 0)
        images = self.shape[0] or batch
        if not all(1 <= side <= _MAX_SIDE for side in (height, width)):
            raise UserError(f"{self.path}: takes images of {height}x{width}, expected sides of 1 to {_MAX_SIDE}")
        return (images, height, width, self.channels) if self.channels_last else (images, self.channels, height, width)


def is_exported_file(reference: str | Path) -> bool:
    """Whether this is the name of a file that :func:`open_file` opens, by its suffix."""
    return Path(reference).suffix.lower() in _OPENERS


def open_file(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: str | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> ExportedFile:
    """Load an exported file (``.onnx``, ``.pt2``, ``.engine``) in ``backend``, by default its own runtime.

    ``trust`` allows to load a TensorRT engine, which contains code. Raises :class:`UserError` for a broken or unknown
    file, one that could run code, a backend that cannot run it, and an input that is not one batch of images.
    """
    path, place = Path(path), resolve_device(device, mps=True)
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        raise UserError(f"{path}: cannot open this kind of file, expected one of {', '.join(_OPENERS)}")
    open_one, backends = opener
    if backend is not None and backend not in backends:
        raise UserError(f"{path}: runs in {' or '.join(backends)}, given backend {backend}")
    if open_one is _open_engine and not trust:
        raise UserError(
            f"{path}: a TensorRT engine contains code for this machine, which cannot be inspected; "
            "give --trust if you have built it, or export it again from a run"
        )
    found = open_one(path, place, backend, threads)
    if len(found.shape) != 4 or (found.shape[3] if found.channels_last else found.shape[1]) is None:
        shown = ["any" if size is None else size for size in found.shape]
        raise UserError(f"{path}: takes an input of shape {shown}, expected images (N, C, H, W) or (N, H, W, C)")
    return found


def _open_onnx(path: Path, device: torch.device, backend: str | None, threads: int | None) -> ExportedFile:
    backend = backend or "onnxruntime"
    model, metadata = read_onnx(path)
    make_setup(device, threads=threads)
    stored = {tensor.name for tensor in model.graph.initializer}  # old files list these as inputs too
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1 or len(model.graph.output) < 1:
        raise UserError(
            f"{path}: has {len(inputs)} inputs and {len(model.graph.output)} outputs, expected one input of images "
            "and an output of logits"
        )
    image = inputs[0].type.tensor_type
    if image.elem_type not in _IMAGE_TYPES:
        known = {number: name for name, number in TensorProto.DataType.items()}
        kind = known.get(image.elem_type, f"type {image.elem_type}").lower()
        raise UserError(f"{path}: takes {kind}, expected float32 images (or uint8)")
    return ExportedFile(
        path=path,
        module=_onnx_module(path, device, backend, metadata.precision if metadata else "fp32", threads),
        shape=_sizes([size.dim_value or None for size in image.shape.dim]),
        dtype=_IMAGE_TYPES[image.elem_type],
        backend=backend,
        run_as="eager",
        parameters=count_initialisers(model),
        metadata=metadata,
    )


def _onnx_module(path: Path, device: torch.device, backend: str, precision: str, threads: int | None) -> OpaqueModule:
    if backend == "openvino":
        setup = make_setup(device, backend=backend, precision=precision, threads=threads)
        find_backend(setup)
        return OpenVinoModule(read_bytes(path, "ONNX file"), precision, threads)
    try:
        return OnnxModule(read_bytes(path, "ONNX file"), device, threads)  # the content that was inspected
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise UserError(f"{path}: ONNX Runtime cannot load it: {str(error).strip()[:300]}") from error


def _open_program(path: Path, device: torch.device, backend: str | None, threads: int | None) -> ExportedFile:
    backend = backend or make_setup(device).backend
    program, metadata = read_program(path)
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise UserError(f"{path}: takes {len(inputs)} inputs, expected one of images (N, 3, H, W)")
    images = inputs[0].meta["val"]
    if images.dtype not in _IMAGE_TYPES.values():
        raise UserError(f"{path}: takes {images.dtype}, expected float32 or uint8 images")
    return ExportedFile(
        path=path,
        module=ProgramModule(program, device),
        shape=_sizes(images.shape),
        dtype=images.dtype,
        backend=backend,
        run_as=backend,
        parameters=sum(value.numel() for value in program.parameters()),
        metadata=metadata,
    )


def _open_engine(path: Path, device: torch.device, backend: str | None, threads: int | None) -> ExportedFile:
    content, metadata = read_engine(path)
    import_tensorrt()
    if device.type != "cuda":
        raise UserError(f"{path}: a TensorRT engine cannot run on {device}; use --device cuda")
    module = TensorRTModule(content, device)
    return ExportedFile(
        path=path,
        module=module,
        shape=_sizes(module.input_shape),
        dtype=module.input_dtype,
        backend="tensorrt",
        run_as="eager",
        parameters=metadata.parameters if metadata else None,
        metadata=metadata,
    )


def _sizes(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) and size > 0 else None for size in shape)


_Opener = Callable[[Path, torch.device, "str | None", "int | None"], ExportedFile]
_OPENERS: dict[str, tuple[_Opener, tuple[str, ...]]] = {
    ".onnx": (_open_onnx, ("onnxruntime", "openvino")),
    ".pt2": (_open_program, ("eager", "compiled", "cudagraph")),
    ".engine": (_open_engine, ("tensorrt",)),
    ".plan": (_open_engine, ("tensorrt",)),
}
