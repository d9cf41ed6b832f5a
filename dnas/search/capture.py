"""CUDA graphs of passes that always run the same kernels.

A pass over a supernet launches thousands of small kernels, and the host takes longer to launch them than a GPU to run
them. A graph of forward pass, loss and backward pass is launched at once.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dnas.search.optim import SupernetSGD
from dnas.search.problem import Pass

WARM_UP = 3
"""How often a pass runs as usual before it is captured: libraries choose algorithms, and buffers are made."""


class Recorder(Protocol):
    """Records the kernels of a function without running them: :class:`CudaGraphs`."""

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What runs the kernels on the same memory, and what the function returned, filled by each run."""


class CudaGraphs:
    """Records CUDA graphs. They share their memory, so they may not run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """See :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the threads that pin the next batches call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            found = function()
        return graph.replay, found


@dataclass(frozen=True)
class _Graph:
    """A captured pass: its inputs, which are overwritten before each run, and its outputs.

    gradients: by weight. filled: superkernels to whose gradient buffers the graph adds.
    """

    run: Callable[[], None]
    inputs: Sequence[Tensor]
    loss: Tensor
    gradients: Sequence[tuple[nn.Parameter, Tensor]]
    filled: frozenset[int]


class PassGraphs:
    """Runs weight passes that have a ``key`` as graphs: captured after some times as usual, from then on replayed.

    Gradients are added up as by ``backward``: in the buffers of superkernels, in ``grad`` of other weights. The buffers
    must be kept between steps.
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor, Pass], Tensor], optimizer: SupernetSGD, record: Recorder | None = None
    ) -> None:
        """``loss``: of images (N, 3, H, W), labels (N, H, W) and a pass. ``record``: by default CUDA graphs."""
        self._loss, self._optimizer = loss, optimizer
        optimizer.make_buffers()  # one made during a capture would be made anew, as zeros, by every run
        self._record: Recorder = CudaGraphs() if record is None else record
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}

    def backward(self, images: Tensor, labels: Tensor, forward: Pass, share: float) -> Tensor | None:
        """Add ``share`` times the gradients of a pass; returns this share of its loss, detached.

        None: nothing was done, as the pass has to run as usual.
        """
        key = (forward.key, share, images.shape, images.stride(), images.dtype)
        if forward.key is None or self._seen[key] < WARM_UP:
            self._seen[key] += 1
            return None
        inputs = [images, labels, *_tensors(forward.sample)]
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._capture(images, labels, forward, share)
        torch._foreach_copy_(list(graph.inputs), inputs)
        graph.run()
        self._optimizer.filled |= graph.filled
        self._add(graph.gradients)
        return graph.loss.clone()  # the next run overwrites it

    def _capture(self, images: Tensor, labels: Tensor, forward: Pass, share: float) -> _Graph:
        images, labels = images.clone(), labels.clone()
        forward = dataclasses.replace(forward, sample=_mapped(forward.sample, _static))
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]

        def run() -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
            loss = self._loss(images, labels, forward) * share
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            used = [weight for weight, gradient in zip(weights, found, strict=True) if gradient is not None]
            # Dense memory of their own, to which the gradients of other passes can be added.
            kept = [torch.empty_like(weight) for weight in used]
            if kept:
                torch._foreach_copy_(kept, [gradient for gradient in found if gradient is not None])
            return loss.detach(), list(zip(used, kept, strict=True))

        before, self._optimizer.filled = self._optimizer.filled, frozenset()
        replay, (loss, gradients) = self._record(run)
        filled, self._optimizer.filled = self._optimizer.filled, before
        return _Graph(replay, [images, labels, *_tensors(forward.sample)], loss, gradients, filled)

    @staticmethod
    def _add(gradients: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        totals, added = [], []
        for weight, gradient in gradients:
            if weight.grad is None:
                weight.grad = gradient
            else:
                totals.append(weight.grad)
                added.append(gradient)
        if totals:
            torch._foreach_add_(totals, added)


def _static(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _tensors(sample: Any) -> list[Tensor]:
    """All tensors of a sample, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(sample, keep)
    return found


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy with the function applied to each tensor in nested tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_mapped(one, function) for one in value)
    if isinstance(value, Mapping):
        return {name: _mapped(one, function) for name, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _mapped(getattr(value, field.name), function) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
