"""torch.export: writing a ``.pt2`` file that runs without this package, with a parity check."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata, describe
from dnas.export.parity import TOLERANCES, Parity, check_parity
from dnas.export.torch_archive import inspected
from dnas.files import parse_json, read_bytes, write_atomically
from dnas.runtimes.program import ProgramModule
from dnas.runtimes.trace import quiet_torch, trace

_METADATA = "dnas.json"


def export_torch(
    network: nn.Module,
    out: str | Path,
    input_size: tuple[int, int],
    *,
    dynamic_batch: bool = False,
    batch: int = 1,
    class_names: Iterable[str] = (),
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
    images: torch.Tensor | None = None,
    fold_batch_norm: bool = True,
    precision: str = "fp32",
    tolerance: float | None = None,
) -> Parity:
    """Write the network as a ``torch.export`` program (``.pt2``), to be loaded by ``torch.export.load(FILE).module()``.

    Arguments, metadata (in the extra file ``dnas.json``), parity check and errors are those of
    :func:`dnas.export.export_onnx`; the program is read back for the comparison.
    """
    size = None if dynamic_batch else batch
    program = trace(network, input_size, batch=size, fold_batch_norm=fold_batch_norm, precision=precision)
    described = describe(
        network, input_size, class_names=tuple(class_names), mean=tuple(mean), std=tuple(std), precision=precision
    )
    buffer = io.BytesIO()
    with quiet_torch():
        torch.export.save(program, buffer, extra_files={_METADATA: json.dumps(described.to_texts())})
    content = buffer.getvalue()
    read_back, _ = _load(content, str(out))
    parity = check_parity(
        network,
        ProgramModule(read_back),
        input_size,
        batch=size,
        images=images,
        tolerance=TOLERANCES[precision] if tolerance is None else tolerance,
        what=f"{out}: the exported program",
    )
    write_atomically(out, lambda stream: stream.write(content))
    return parity


def read_program(path: str | Path) -> tuple[ExportedProgram, ExportMetadata | None]:
    """The program of a ``.pt2`` file, and its :class:`ExportMetadata` or None.

    The file may be foreign: what could execute code is refused, see :mod:`dnas.export.torch_archive`.
    """
    return _load(read_bytes(path, "torch.export file"), str(path))


def _load(content: bytes, source: str) -> tuple[ExportedProgram, ExportMetadata | None]:
    extra = {_METADATA: ""}
    archive = inspected(content, source)
    try:
        with quiet_torch():
            program = torch.export.load(io.BytesIO(archive), extra_files=extra)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(
            f"{source}: not a valid torch.export file ({''.join(reason)[:200]}); export it again"
        ) from error
    try:
        texts = parse_json(extra[_METADATA])
    except ValueError:
        return program, None
    return program, ExportMetadata.from_texts(texts) if isinstance(texts, dict) else None
