"""Tracks the field of view of every tensor while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnas.receptive_field.arithmetic import Field, Layer, join_fields


class Fields(NamedTuple):
    """The fields of view along the two axes of a feature map."""

    height: Field
    width: Field

    @staticmethod
    def join(fields: Sequence[Fields]) -> Fields:
        """The fields after paths are added or concatenated."""
        return Fields(join_fields(both.height for both in fields), join_fields(both.width for both in fields))

    def after(self, layer: Layer) -> Fields:
        """The fields after a layer with a square kernel."""
        return Fields(self.height.after(layer), self.width.after(layer))


class FieldTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is active, every tensor that is computed from a marked one gets a field of view.

    Convolutions (also transposed and deformable ones, the latter without their offsets), pooling and interpolation
    change the field; any other operation joins the fields of its inputs. Global average pooling, as in squeeze and
    excitation, does not change it, because the papers do not count it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Fields belong to storages, not tensors: views and in-place results share them, and no operation of a network
        # gives two parts of a storage different fields. Keeping the storages alive prevents the reuse of an address.
        self._fields: dict[int, tuple[Fields, torch.UntypedStorage]] = {}

    def mark(self, tensors: object, fields: Fields) -> None:
        """Assign ``fields`` to ``tensors`` (any nesting)."""
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._fields[storage._cdata] = (fields, storage)

    def find(self, tensors: object) -> Fields | None:
        """The joined fields of ``tensors`` (any nesting); None if none of them depends on a marked one."""
        leaves = (leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))
        known = [self._fields[key][0] for leaf in leaves if (key := leaf.untyped_storage()._cdata) in self._fields]
        return Fields.join(known) if known else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        fields = self.find((args, kwargs))
        if fields is not None:
            rule = _RULES.get(func.overloadpacket.__name__)
            self.mark(result, rule(fields, _arguments(func, args, kwargs), result) if rule else fields)
        return result


_Rule = Callable[[Fields, Mapping[str, Any], Any], Fields]


def _arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of an operation by name, defaults included."""
    named = {
        argument.name: argument.default_value for argument in func._schema.arguments if argument.has_default_value()
    }
    named.update((argument.name, value) for argument, value in zip(func._schema.arguments, args, strict=False))
    return {**named, **(kwargs or {})}


def _pair(value: Any, default: Any = 1) -> tuple[int, int]:
    """A layer's setting for the two axes; an empty list means the default."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    values = values or (list(default) if isinstance(default, (list, tuple)) else [default])
    return values[0], values[-1]


def _convolution(fields: Fields, named: Mapping[str, Any], result: Any) -> Fields:
    kernel = named["weight"].shape[-2:]
    stride, dilation = _pair(named["stride"]), _pair(named["dilation"])
    layers = [Layer(kernel[axis], stride[axis], dilation[axis]) for axis in (0, 1)]
    if named["transposed"]:
        return Fields(*(field.after_transposed(layer) for field, layer in zip(fields, layers, strict=True)))
    return Fields(*(field.after(layer) for field, layer in zip(fields, layers, strict=True)))


def _deformable(fields: Fields, named: Mapping[str, Any], result: Any) -> Fields:
    kernel = named["weight"].shape[-2:]
    layers = [
        Layer(kernel[0], named["stride_h"], named["dilation_h"]),
        Layer(kernel[1], named["stride_w"], named["dilation_w"]),
    ]
    return Fields(*(field.after(layer) for field, layer in zip(fields, layers, strict=True)))


def _pooling(fields: Fields, named: Mapping[str, Any], result: Any) -> Fields:
    kernel = _pair(named["kernel_size"])
    stride, dilation = _pair(named["stride"], named["kernel_size"]), _pair(named.get("dilation", 1))
    layers = [Layer(kernel[axis], stride[axis], dilation[axis]) for axis in (0, 1)]
    return Fields(*(field.after(layer) for field, layer in zip(fields, layers, strict=True)))


def _resizing(taps: int) -> _Rule:
    def rule(fields: Fields, named: Mapping[str, Any], result: Any) -> Fields:
        source = named["input"] if "input" in named else named["self"]
        sizes = zip(fields, source.shape[-2:], result.shape[-2:], strict=True)
        return Fields(*(field.after_resize(in_size, out_size, taps) for field, in_size, out_size in sizes))

    return rule


_RULES: Mapping[str, _Rule] = {
    "convolution": _convolution,
    "deform_conv2d": _deformable,
    "max_pool2d_with_indices": _pooling,
    "max_pool2d": _pooling,
    "avg_pool2d": _pooling,
    "_adaptive_avg_pool2d": _resizing(taps=1),
    "upsample_nearest2d": _resizing(taps=1),
    "_upsample_nearest_exact2d": _resizing(taps=1),
    "upsample_bilinear2d": _resizing(taps=2),
    "_upsample_bilinear2d_aa": _resizing(taps=2),
    "upsample_bicubic2d": _resizing(taps=4),
    "_upsample_bicubic2d_aa": _resizing(taps=4),
}
