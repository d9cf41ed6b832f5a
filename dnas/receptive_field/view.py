"""The field of view of any network, and how far its convolutions may be dilated (RegSeg, section 3.1)."""

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
    """A module that counts as one layer, whatever operations it is made of, such as a fractional convolution."""

    def field_layer(self) -> Layer:
        """Kernel, stride and dilation rate, which need not be whole."""


def field_of_outputs(network: nn.Module, *, input_size: tuple[int, int] = (64, 64), channels: int = 3) -> int:
    """Field of view in pixels by the papers' recursion: the widest of all paths, the larger of the two axes.

    The network runs once, as a copy in evaluation mode on the CPU (or on the meta device if it is
    there), on an image of zeros (1, channels, H, W); ``input_size`` matters only to networks that refuse small images.
    Convolutions, poolings and interpolations count; global averages do not. A module with a ``field_layer`` method
    counts as what that returns.
    """
    with _traced_copy(network) as (shadow, tracer, image):
        outputs = shadow(image(input_size, channels))
        fields = tracer.find(outputs)
    return 1 if fields is None else max(fields.height.pixels, fields.width.pixels)


def dilation_bounds(
    network: nn.Module, *, input_size: tuple[int, int] = (64, 64), channels: int = 3
) -> dict[str, float]:
    """The largest dilation rate that leaves no gaps, k / s of the layers before, for each convolution by its name.

    The names are those of ``network.named_modules()``; all ``nn.Conv2d`` with a kernel larger than 1 are listed, and
    modules with a ``field_layer`` method. A layer that runs several times has the smallest of its bounds.
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
    """The fields before and after each of ``layers``, by name and in the order in which they run; see above.

    Of the two axes the wider field counts; a layer that runs several times has those of the last.
    """
    found: dict[str, tuple[Field, Field]] = {}
    with _traced_copy(network) as (shadow, tracer, image), ExitStack() as hooks:
        for name in layers:
            hook = _field_recorder(tracer, found, name)
            hooks.callback(shadow.get_submodule(name).register_forward_hook(hook).remove)
        shadow(image(input_size, channels))
    return found


class _Images:
    """Makes a marked image on the device of the traced copy."""

    def __init__(self, tracer: FieldTracer, device: str) -> None:
        self.tracer = tracer
        self.device = device

    def __call__(self, size: tuple[int, int], channels: int) -> Tensor:
        image = torch.zeros(1, channels, *size, device=self.device)
        self.tracer.mark(image, Fields(Field(), Field()))
        return image


@contextmanager
def _traced_copy(network: nn.Module) -> Iterator[tuple[nn.Module, FieldTracer, _Images]]:
    """A copy of ``network`` that can run, the active tracer, and a maker of marked images."""
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
    """Forward hook: the output has the input's field behind ``layer``."""

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
    """Forward pre-hook: note the bound that the field of the input sets."""

    def record(module: nn.Module, inputs: tuple[object, ...]) -> None:
        fields = tracer.find(inputs)
        if fields is not None:
            bound = min(fields.height.largest_dilation, fields.width.largest_dilation)
            bounds[name] = min(bound, bounds.get(name, bound))

    return record


def _field_recorder(
    tracer: FieldTracer, found: dict[str, tuple[Field, Field]], name: str
) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    """Forward hook: note the fields of the input and the output."""

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        before, after = tracer.find(inputs), tracer.find(output)
        if before is not None and after is not None:
            found.pop(name, None)
            found[name] = (max(before, key=_reach), max(after, key=_reach))

    return record


def _reach(field: Field) -> Fraction:
    return field.kernel
