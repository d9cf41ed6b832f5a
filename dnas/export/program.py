"""What all formats of export have in common: the traced program, its reference in PyTorch, and the metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram

from dnas.errors import UserError
from dnas.export.end_to_end import EndToEnd, trace_end_to_end
from dnas.export.metadata import ExportMetadata, describe
from dnas.export.parity import TOLERANCES, Parity, Runtime, check_parity
from dnas.input_channels import input_channels
from dnas.runtimes.trace import trace


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A traced network before it is written in a format."""

    program: ExportedProgram
    reference: nn.Module | Runtime
    metadata: ExportMetadata
    batch: int | None
    image_shape: tuple[int, ...]
    image_dtype: torch.dtype
    output_name: str

    def compare(self, runtime: Runtime, images: torch.Tensor | None, tolerance: float | None, what: str) -> Parity:
        """:func:`dnas.export.check_parity` of the written file; with a dynamic size also at another size."""
        allowed = TOLERANCES[self.metadata.precision] if tolerance is None else tolerance
        parity = check_parity(
            self.reference,
            runtime,
            self.metadata.input_size,
            batch=self.batch,
            images=images,
            tolerance=allowed,
            what=what,
            shape=self.image_shape,
            dtype=self.image_dtype,
        )
        if self.metadata.dynamic_size:
            channel = 2 if self.metadata.layout == "nhwc" else 0
            larger = tuple(side + 32 * (axis != channel) for axis, side in enumerate(self.image_shape))
            check_parity(
                self.reference,
                runtime,
                self.metadata.input_size,
                batch=self.batch,
                tolerance=allowed,
                what=what,
                shape=larger,
                dtype=self.image_dtype,
            )
        return parity


def prepare(
    network: nn.Module,
    input_size: tuple[int, int],
    *,
    dynamic_batch: bool = False,
    batch: int = 1,
    dynamic_size: bool = False,
    fold_batch_norm: bool = True,
    precision: str = "fp32",
    end_to_end: EndToEnd | None = None,
    class_names: Iterable[str] = (),
    colours: Iterable[Iterable[int]] = (),
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
    value_range: tuple[float, float] | None = None,
    licence: str | None = None,
) -> Prepared:
    """Trace ``network`` for images of ``input_size`` (height, width); the arguments are those of the exports.

    Raises :class:`UserError` if the network cannot be traced.
    """
    if precision not in TOLERANCES:
        raise UserError(f"unknown export precision {precision!r}, expected one of {', '.join(TOLERANCES)}")
    size = None if dynamic_batch else batch
    mean, std = tuple(mean), tuple(std)
    reference: nn.Module | Runtime
    if end_to_end is None:
        program = trace(
            network,
            input_size,
            batch=size,
            dynamic_size=dynamic_size,
            fold_batch_norm=fold_batch_norm,
            precision=precision,
        )
        reference = network
    else:
        program, whole = trace_end_to_end(
            network,
            input_size,
            end_to_end,
            mean=mean,
            std=std,
            batch=size,
            dynamic_size=dynamic_size,
            precision=precision,
        )
        reference = whole.forward
    image_size = input_size if end_to_end is None else end_to_end.image_size or input_size
    channels = input_channels(network)
    last = end_to_end is not None and end_to_end.layout == "nhwc"
    return Prepared(
        program=program,
        reference=reference,
        metadata=describe(
            network,
            input_size,
            class_names=class_names,
            colours=colours,
            mean=mean,
            std=std,
            value_range=value_range,
            licence=licence,
            precision=precision,
            dynamic_size=dynamic_size,
            end_to_end=end_to_end is not None,
            image_size=None if end_to_end is None else image_size,
            resize=None if end_to_end is None else end_to_end.resize,
            layout="nchw" if end_to_end is None else end_to_end.layout,
        ),
        batch=size,
        image_shape=(*image_size, channels) if last else (channels, *image_size),
        image_dtype=torch.float32 if end_to_end is None else torch.uint8,
        output_name="logits" if end_to_end is None else "classes",
    )
