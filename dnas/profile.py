"""Counting parameters and multiply-adds of a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401  (registers torchvision.deform_conv2d, for which a formula is given here)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dnas.input_channels import input_channels


@dataclass(frozen=True, kw_only=True)
class ElementwisePrices:
    """Multiply-adds that a counter adds per value for layers other than convolutions and matrix products.

    ``normalised``: per output value of a BatchNorm; ``interpolated``: per output value of a bilinear or bicubic
    interpolation; ``averaged``: per input value of a global average.
    """

    normalised: int = 0
    interpolated: int = 0
    averaged: int = 0


#: Only convolutions and matrix products, the usual definition of multiply-adds.
PRODUCTS_ONLY = ElementwisePrices()
#: The counts of fvcore's flop counter.
FVCORE_PRICES = ElementwisePrices(normalised=2, interpolated=4, averaged=1)
#: One multiply-add for scale and shift of a BatchNorm, and one for the summation of a global average.
SCALE_AND_SUM_PRICES = ElementwisePrices(normalised=1, averaged=1)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of ``module``; a parameter shared by several layers counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(
    module: nn.Module,
    input_size: tuple[int, int],
    channels: int | None = None,
    *,
    elementwise: ElementwisePrices = PRODUCTS_ONLY,
) -> int:
    """Multiply-adds of one forward pass of ``module`` on an image (1, channels, H, W), ``input_size`` being (H, W).

    ``channels``: by default those of the first convolution.

    Convolutions (including deformable ones, without their interpolation) and matrix products count; other layers count
    according to ``elementwise``, because some papers count them. Nothing is computed: shapes are propagated through a
    copy on the meta device in evaluation mode, and ``module`` is not changed.
    """
    shadow = meta_copy(module).eval()
    image = torch.empty(1, channels or input_channels(module), *input_size, device="meta")
    products = FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv2d_operations}
    )
    values = _ValueCounter()
    with torch.no_grad(), values, products:
        shadow(image)
    return (
        int(products.get_total_flops()) // 2  # the counter counts two operations per multiply-add
        + elementwise.normalised * values.normalised
        + elementwise.interpolated * values.interpolated
        + elementwise.averaged * values.averaged
    )


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` on the meta device, created without allocating memory."""
    replacements: dict[int, Any] = {}
    for part in module.modules():
        # Also plain tensor attributes: deepcopy would copy their data and keep them on their device.
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(value, nn.Parameter):
                replacements[id(value)] = nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
            elif isinstance(value, Tensor):
                replacements[id(value)] = value.detach().to("meta")
    return copy.deepcopy(module, replacements)


def _deform_conv2d_operations(
    input_shape: torch.Size, weight_shape: torch.Size, *_args: Any, out_shape: torch.Size, **_kwargs: Any
) -> int:
    """Operations (two per multiply-add, as in the counter) of a deformable convolution, without the interpolation.

    ``weight_shape`` is (out, in / groups, kernel, kernel): every output value is a sum over one filter.
    """
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


class _ValueCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the output values of BatchNorms and interpolations and the input values of global averages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.normalised = self.interpolated = self.averaged = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name: str = func.overloadpacket.__name__
        if "batch_norm" in name:
            self.normalised += (result[0] if isinstance(result, (tuple, list)) else result).numel()
        elif name.startswith(("upsample_bilinear2d", "upsample_bicubic2d")):
            self.interpolated += result.numel()
        elif name in ("mean", "_adaptive_avg_pool2d") and args[0].dim() == 4:
            self.averaged += args[0].numel()
        return result
