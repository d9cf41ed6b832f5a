"""The field of view of any network, and upper bounds of its dilation rates (RegSeg, section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dnas.receptive_field.arithmetic import Field, Layer
from dnas.receptive_field.tracer import Fields, FieldTracer


@runtime_checkable
class DeclaresLayer(Protocol):
    """A module that counts as one layer regardless of its operations, such as a fractional convolution."""

    def field_layer(self) -> Layer:
        """Kernel, stride and dilation rate, which may be fractional."""


def field_of_outputs(network: nn.Module, *, input_size: tuple[int, int] = (64, 64), channels: int = 3) -> int:
    """Field of view in pixels by the papers' recursion: the maximum over all paths and both axes.

    A copy of the network in evaluation mode runs once on an image of zeros (1, channels, H, W), on the meta device if
    the network is there, else on the CPU; ``input_size`` matters only to networks that reject small images.
    Convolutions, pooling and interpolation count; global average pooling does not. A module with a ``field_layer``
    method counts as the layer that this returns.
    """
    with _traced_copy(network) as (shadow, tracer, image):
        outputs = shadow(image(input_size, channels))
        fields = tracer.find(outputs)
    return 1 if fields is None else max(fields.height.pixels, fields.width.pixels)


def dilation_bounds(
    network: nn.Module, *, input_size: tuple[int, int] = (64, 64), channels: int = 3
) -> dict[str, float]:
    """For each convolution by name, the largest dilation rate that leaves no gaps: k / s of the preceding layers.

    The names are those of ``network.named_modules()``; included are all ``nn.Conv2d`` with a kernel larger than 1 and
    all modules with a ``field_layer`` method. A layer that runs several times gets the smallest of its bounds.
    """
    bounds: dict[str, float] = {}
    with _traced_copy(network) as (shadow, tracer, image), ExitStack() as hooks:
        for name, part in shadow.named_modules():
            if _has_kernel(part):
                handle = part.register_forward_pre_hook(_bound_recorder(tracer, bounds, name))
                hooks.callback(handle.remove)
        shadow(image(input_size, channels))
    return bounds


def fields_around(
    network: nn.Module, layers: Iterable[str], *, input_size: tuple[int, int] = (64, 64), channels: int = 3
) -> dict[str, tuple[Field, Field]]:
    """The fields before and after each of ``layers``, by name and in execution order; see :func:`field_of_outputs`.

    The larger field of the two axes is returned; for a layer that runs several times, that of the last run.
    """
    found: dict[str, tuple[Field, Field]] = {}
    with _traced_copy(network) as (shadow, tracer, image), ExitStack() as hooks:
        for name in layers:
            hook = _field_recorder(tracer, found, name)
            hooks.callback(shadow.get_submodule(name).register_forward_hook(hook).remove)
        shadow(image(input_size, channels))
    return found


class _Images:
    """Creates marked images on the device of the traced copy."""

    def __init__(self, tracer: FieldTracer, device: str) -> None:
        self.tracer = tracer
        self.device = device

    def __call__(self, size: tuple[int, int], channels: int) -> Tensor:
        image = torch.zeros(1, channels, *size, device=self.device)
        self.tracer.mark(image, Fields(Field(), Field()))
        return image


@contextmanager
def _traced_copy(network: nn.Module) -> Iterator[tuple[nn.Module, FieldTracer, _Images]]:
    """A copy of ``network`` to run, the active tracer, and a factory of marked images."""
    on_meta = any(parameter.is_meta for parameter in network.parameters())
    shadow = copy.deepcopy(network).eval()
    if not on_meta:
        shadow = shadow.to("cpu", torch.float32)
    tracer = FieldTracer()
    for part in shadow.modules():
        if isinstance(part, DeclaresLayer):
            part.register_forward_hook(_layer_marker(tracer, part.field_layer()))
    with torch.no_grad(), tracer:
        yield shadow, tracer, _Images(tracer, "meta" if on_meta else "cpu")


def _layer_marker(tracer: FieldTracer, layer: Layer) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    """Forward hook: mark the output with the field of the input after ``layer``."""

    def mark(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        fields = tracer.find(inputs)
        if fields is not None:
            tracer.mark(output, fields.after(layer))

    return mark


def _has_kernel(module: nn.Module) -> bool:
    return isinstance(module, DeclaresLayer) or (isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1)


def _bound_recorder(
    tracer: FieldTracer, bounds: dict[str, float], name: str
) -> Callable[[nn.Module, tuple[object, ...]], None]:
    """Forward pre-hook: record the bound set by the field of the input."""

    def record(module: nn.Module, inputs: tuple[object, ...]) -> None:
        fields = tracer.find(inputs)
        if fields is not None:
            bound = min(fields.height.largest_dilation, fields.width.largest_dilation)
            bounds[name] = min(bound, bounds.get(name, bound))

    return record


def _field_recorder(
    tracer: FieldTracer, found: dict[str, tuple[Field, Field]], name: str
) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    """Forward hook: record the fields of the input and the output."""

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        before, after = tracer.find(inputs), tracer.find(output)
        if before is not None and after is not None:
            found.pop(name, None)
            found[name] = (max(before, key=_kernel), max(after, key=_kernel))

    return record


def _kernel(field: Field) -> Fraction:
    return field.kernel
