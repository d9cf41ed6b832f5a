"""torch.export: writing a ``.pt2`` file that runs without this package, with a parity check."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata
from dnas.export.parity import Parity
from dnas.export.program import prepare
from dnas.export.torch_archive import inspected
from dnas.files import parse_json, read_bytes, write_atomically
from dnas.runtimes.program import ProgramModule
from dnas.runtimes.trace import quiet_torch

_METADATA = "dnas.json"


def export_torch(
    network: nn.Module,
    out: str | Path,
    input_size: tuple[int, int],
    *,
    images: torch.Tensor | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> Parity:
    """Write the network as a ``torch.export`` program (``.pt2``), to be loaded by ``torch.export.load(FILE).module()``.

    Arguments, metadata (in the extra file ``dnas.json``), parity check and errors are those of
    :func:`dnas.export.export_onnx`; the program is read back for the comparison.
    """
    prepared = prepare(network, input_size, **options)
    buffer = io.BytesIO()
    with quiet_torch():
        torch.export.save(prepared.program, buffer, extra_files={_METADATA: json.dumps(prepared.metadata.to_texts())})
    content = buffer.getvalue()
    read_back, _ = _load(content, str(out))
    parity = prepared.compare(ProgramModule(read_back), images, tolerance, f"{out}: the exported program")
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
