"""End-to-end programs: images uint8 in, class maps uint8 out, with resize, normalisation and argmax in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn import functional

from dnas.errors import UserError
from dnas.runtimes.trace import dynamic_axes, export_program, trace, unguarded_module

RESIZES = ("bilinear", "nearest", "none")
LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """What an end-to-end program does besides the network.

    resize: where class maps get the size of the images. ``bilinear``: logits are upsampled in the graph, as the PyTorch
        network does. ``nearest``: argmax at the stride of the network, then a nearest upsampling in the graph, for
        accelerators without a bilinear one. ``none``: class maps at the stride of the network, resized by the caller.
    image_size: (height, width) of the images, resized in the graph to the input size of the network; None is that size.
    layout: ``nchw`` (N, 3, H, W) or ``nhwc`` (N, H, W, 3) of the images.
    """

    resize: str = "bilinear"
    image_size: tuple[int, int] | None = None
    layout: str = "nchw"

    def __post_init__(self) -> None:
        for name, value, known in (("resize", self.resize, RESIZES), ("layout", self.layout, LAYOUTS)):
            if value not in known:
                raise UserError(f"{name} {value!r}: expected {', '.join(known)}")
        if self.resize == "none" and self.image_size is not None:
            raise UserError("an image size needs a resize in the graph: bilinear or nearest, given none")


class EndToEndNetwork(nn.Module):
    """Images uint8 to class maps uint8 (N, h, w); ``network`` maps normalised images to logits.

    Raises :class:`UserError` if mean and standard deviation are not those of its channels.
    """

    def __init__(
        self,
        network: nn.Module,
        options: EndToEnd,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
    ) -> None:
        super().__init__()
        if not mean or len(mean) != len(std):
            raise UserError("an end-to-end export needs the mean and the deviation of each channel")
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self._options = options
        resized = options.image_size not in (None, input_size)
        self._input_size = input_size if resized else None

    def forward(self, images: Tensor) -> Tensor:
        """Classes (N, h, w) of images (N, 3, H, W) or (N, H, W, 3), both uint8."""
        if self._options.layout == "nhwc":
            images = images.permute(0, 3, 1, 2)
        size = (images.shape[-2], images.shape[-1])
        values = images.to(torch.float32)
        if self._input_size is not None:
            values = self._resized(values, self._input_size, antialias=True)
        logits: Tensor = self.network((values / 255 - self.mean) / self.std)
        if self._options.resize == "bilinear" and self._input_size is not None:
            logits = self._resized(logits, size)
        classes = logits.argmax(dim=1)
        if self._options.resize == "nearest":
            classes = self._resized(classes.unsqueeze(1).to(torch.float32), size).squeeze(1)
        return classes.to(torch.uint8)

    def _resized(self, values: Tensor, size: tuple[int, int], *, antialias: bool = False) -> Tensor:
        if self._options.resize == "nearest":
            return functional.interpolate(values, size=size, mode="nearest")
        return functional.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def trace_end_to_end(
    network: nn.Module,
    input_size: tuple[int, int],
    options: EndToEnd,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int | None = 1,
    dynamic_size: bool = False,
    precision: str = "fp32",
) -> tuple[ExportedProgram, nn.Module]:
    """The end-to-end program of ``network``, and its reference in PyTorch in float32; arguments as those of ``trace``.

    With ``resize`` other than ``bilinear`` the last operator of the network must be a bilinear upsampling, which is
    removed. Raises :class:`UserError` otherwise, and if the network cannot be traced.
    """
    if dynamic_size and options.image_size is not None:
        raise UserError("an image size is fixed in the file; leave it out for a dynamic size")

    def core(precision: str) -> GraphModule:
        module = unguarded_module(
            trace(network, input_size, batch=batch, dynamic_size=dynamic_size, precision=precision)
        )
        return module if options.resize == "bilinear" else _without_last_upsampling(module)

    height, width = options.image_size or input_size
    shape = (height, width, len(mean)) if options.layout == "nhwc" else (len(mean), height, width)
    images = torch.zeros(2 if batch is None else batch, *shape, dtype=torch.uint8)
    axes = dynamic_axes(
        batch=batch is None, size=dynamic_size, size_axes=(1, 2) if options.layout == "nhwc" else (2, 3)
    )
    whole = EndToEndNetwork(core(precision), options, mean, std, input_size)
    reference = EndToEndNetwork(core("fp32"), options, mean, std, input_size)
    return export_program(whole, (images,), axes), reference


def _without_last_upsampling(module: GraphModule) -> GraphModule:
    """The graph with its last bilinear upsampling removed, conversions of types after it are kept."""
    node = next(item for item in reversed(module.graph.nodes) if item.op == "output").args[0]
    while isinstance(node, (tuple, list)):
        node = node[0]
    found = node
    while isinstance(found, Node) and found.op == "call_function" and "aten.to." in str(found.target):
        found = found.args[0]
    if not isinstance(found, Node) or not str(found.target).startswith("aten.upsample_bilinear2d"):
        raise UserError("the network does not end with a bilinear upsampling that could be left out; use bilinear")
    found.replace_all_uses_with(found.args[0])  # type: ignore[arg-type]
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
