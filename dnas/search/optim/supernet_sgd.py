"""SGD with momentum for the weights of a supernet, whose superkernels accumulate gradients in buffers.

Superkernels are most of the weights and of the memory of a search: in the paper's space weights, momenta and gradients
take a gigabyte each. Here momenta and gradients can have a lower precision. Without clipping, gradients are accumulated
in the momenta, so that superkernels need no gradient memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from dnas.ops import GradientBuffer, sliced_parameters
from dnas.search.optim.split_bf16 import EVERYTHING, SplitBF16Weight, flat, read_all, write_all

CHUNK = 1 << 19
"""Values updated at a time on a CPU: a chunk of weight, momentum and gradient fits in the cache."""
WEIGHTS_AT_ONCE = 32
"""Weights updated at a time on an accelerator, by multi-tensor kernels."""
MOMENTUM = "momentum_buffer"


class SupernetSGD(torch.optim.Optimizer):
    """``torch.optim.SGD`` with momentum, for networks with superkernels.

    A training step is :meth:`zero_grad`, any number of backward passes, :meth:`step`. There are two parameter groups:
    the weights of superkernels (``sliced``) and all others. Until :meth:`close`, gradients of superkernels are
    accumulated in buffers instead of ``grad``.

    Without ``max_norm``, the stored momentum of a superkernel is already prepared for the next step's gradients:
    multiplied by ``momentum``, plus ``weight_decay`` times the weight.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        max_norm: float | None = None,
        momentum_dtype: torch.dtype = torch.float32,
        split_bf16: bool = False,
        keep_gradients: bool = True,
        exclude: Iterable[nn.Parameter] = (),
    ) -> None:
        """``exclude``: parameters of the network that another optimiser trains.

        ``max_norm``: maximum norm of all gradients together; None: no clipping. ``momentum_dtype``: dtype of the
        superkernels' momenta and gradients. ``split_bf16``: until :meth:`close`, float32 superkernels are bf16
        parameters, and the optimiser keeps their low bits (:class:`SplitBF16Weight`). ``keep_gradients``: keep gradient
        buffers between steps.
        """
        excluded = {id(parameter) for parameter in exclude}
        parameters = [p for p in network.parameters() if p.requires_grad and id(p) not in excluded]
        trained = {id(p) for p in parameters}
        owners = [one for one in sliced_parameters(network) if id(one.parameter) in trained]
        self.sliced = [one.parameter for one in owners]
        sliced = {id(p) for p in self.sliced}
        self.others = [p for p in parameters if id(p) not in sliced]
        self.max_norm, self.keep_gradients = max_norm, keep_gradients
        super().__init__(
            [{"params": self.sliced}, {"params": self.others}],
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
        )
        for parameter in self.others:
            # The fused step needs a momentum for all or none, and some weights get their first gradient late.
            self.state[parameter][MOMENTUM] = torch.zeros_like(parameter)
        self._buffers = []
        for owner in owners:
            parameter = owner.parameter
            dtype = momentum_dtype if parameter.dtype == torch.float32 else parameter.dtype
            values = torch.zeros_like(parameter.detach(), dtype=dtype)
            if max_norm is None:
                values.copy_(parameter.detach()).mul_(weight_decay)
            self.state[parameter][MOMENTUM] = values
            # Clipping needs separate gradients for their norm; without it they are accumulated in the momentum.
            buffer = GradientBuffer(parameter, values if max_norm is None else None, dtype)
            owner.attach(buffer)
            self._buffers.append(buffer)
        self._owners = owners
        self._scratch: Tensor | None = None
        self._split: list[SplitBF16Weight] = []
        if split_bf16 and all(weight.dtype == torch.float32 for weight in self.sliced):
            self._split = [SplitBF16Weight(weight) for weight in self.sliced]

    @property
    def momenta(self) -> list[Tensor]:
        """The momenta of the superkernels."""
        return [self.state[parameter][MOMENTUM] for parameter in self.sliced]

    @property
    def filled(self) -> frozenset[int]:
        """Indices of the superkernels whose buffers hold a gradient since the last step."""
        return frozenset(self._with_gradient())

    @filled.setter
    def filled(self, indices: frozenset[int]) -> None:
        for index, buffer in enumerate(self._buffers):
            buffer.filled = index in indices

    def make_buffers(self) -> None:
        """Make the gradient buffers of all superkernels, which are otherwise made when they are needed."""
        filled = self.filled
        for index in range(len(self.sliced)):
            self._accumulator(index)
        self.filled = filled

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients for a new step."""
        super().zero_grad(set_to_none)
        for buffer in self._buffers:
            if buffer.filled and buffer.tensor is not None and self.max_norm is not None:
                buffer.tensor.zero_()  # of an unfinished step
            buffer.filled = False

    def gradients(self) -> list[Tensor]:
        """The accumulated gradients of all weights that have one; of superkernels possibly within the momentum."""
        plain = [weight.grad for weight in self.others if weight.grad is not None]
        return plain + [self._accumulator(index) for index in self._with_gradient()]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all weights that have a gradient; the others and their momenta are unchanged."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = 1.0 if self.max_norm is None else self._clip(self.max_norm)
        self._update_others()
        chosen = self._with_gradient()
        for part in self._parts(chosen):
            self._update(part, scale)
        super().zero_grad(set_to_none=True)
        for index in chosen:
            self._buffers[index].filled = False
        if not self.keep_gradients and self.max_norm is not None:
            for buffer in self._buffers:
                buffer.tensor = None
        return loss

    def close(self) -> None:
        """Restore plain float32 weights with gradients in ``grad``."""
        for owner in self._owners:
            owner.detach()
        for split in self._split:
            split.join()
        self._split = []

    def state_dict(self) -> dict[str, Any]:
        """Momenta (those of superkernels as described in the class), and the low bits of split weights."""
        return {
            "superkernels": self.momenta,
            "low_bits": [split.low_bits for split in self._split],
            "others": [self.state[parameter][MOMENTUM] for parameter in self.others],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises ``KeyError`` or ``ValueError`` for a state of other weights."""
        state = _upgraded(state_dict)
        own = self.state_dict()
        for name, what in (("superkernels", "momenta"), ("low_bits", "low bits"), ("others", "momenta")):
            if [(m.shape, m.dtype) for m in state[name]] != [(m.shape, m.dtype) for m in own[name]]:
                raise ValueError(f"its {what} have other shapes or another precision than these weights")
        for name in ("superkernels", "others"):
            for one, other in zip(own[name], state[name], strict=True):
                one.copy_(other)
        for one, other in zip(own["low_bits"], state["low_bits"], strict=True):
            one.view(torch.int16).copy_(other.view(torch.int16))

    def _accumulator(self, index: int) -> Tensor:
        return self._buffers[index].accumulator(self.sliced[index])

    def _with_gradient(self) -> list[int]:
        """Indices of the superkernels with a gradient; gradients in ``grad`` are moved to the buffers."""
        for index, weight in enumerate(self.sliced):
            if weight.grad is not None:
                self._accumulator(index).add_(weight.grad)
                weight.grad = None
        return [index for index, buffer in enumerate(self._buffers) if buffer.filled]

    def _clip(self, max_norm: float) -> float:
        """Clip the norm of all gradients: scales the others' and returns the factor for those of superkernels."""
        norms = torch._foreach_norm(self.gradients())
        # Together, as there are thousands: the plain gradients come first, then those of superkernels in their dtype.
        joined = [torch.stack(list(group)).double() for _, group in itertools.groupby(norms, key=lambda one: one.dtype)]
        norm = float(torch.cat(joined).norm()) if joined else 0.0
        if norm <= max_norm:
            return 1.0
        scale = max_norm / (norm + 1e-6)  # NaN if the norm is NaN
        for weight in self.others:
            if weight.grad is not None:
                weight.grad.mul_(scale)
        return scale

    def _update_others(self) -> None:
        group = self.param_groups[1]
        updated: list[Tensor] = [weight for weight in self.others if weight.grad is not None]
        sgd(
            updated,
            [_in_format_of(weight.grad, weight) for weight in updated if weight.grad is not None],
            [self.state[weight][MOMENTUM] for weight in updated],
            fused=True,  # reads and writes the memory once
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def _parts(self, chosen: Sequence[int]) -> Iterator[_Part]:
        """Groups of superkernels on an accelerator, chunks of one on a CPU."""
        if chosen and self.sliced[0].device.type != "cpu":
            for first in range(0, len(chosen), WEIGHTS_AT_ONCE):
                yield _Part(chosen[first : first + WEIGHTS_AT_ONCE], EVERYTHING)
            return
        for index in chosen:
            for first in range(0, self.sliced[index].numel(), CHUNK):
                yield _Part([index], slice(first, first + CHUNK))

    def _update(self, part: _Part, scale: float) -> None:
        """Update a part of the superkernels, completely, so that a chunk is loaded into the cache once."""
        group = self.param_groups[0]
        stored = self._momenta_of(part)
        weights = self._weights(part, stored)
        momenta = self._converted(stored, weights, 1)
        if self.max_norm is not None:
            gradients = [flat(self._accumulator(index))[part.values] for index in part.chosen]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, self._converted(gradients, weights, 2), alpha=scale)
            torch._foreach_add_(momenta, weights, alpha=group["weight_decay"])
            torch._foreach_zero_(gradients)
        torch._foreach_add_(weights, momenta, alpha=-group["lr"])
        if self.max_norm is None:  # the next step's gradients are added to it
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, weights, alpha=group["weight_decay"])
        if momenta is not stored:
            torch._foreach_copy_(stored, momenta)
        if self._split and part.values == EVERYTHING:
            write_all([self._split[index] for index in part.chosen], weights)
        elif self._split:
            self._split[part.chosen[0]].write(weights[0], part.values)

    def _momenta_of(self, part: _Part) -> list[Tensor]:
        """Flat views of a part's momenta."""
        return [flat(self.state[self.sliced[index]][MOMENTUM])[part.values] for index in part.chosen]

    def _weights(self, part: _Part, like: Sequence[Tensor]) -> list[Tensor]:
        """The weights of a part in float32; copies if they are split."""
        if not self._split:
            return [flat(self.sliced[index])[part.values] for index in part.chosen]
        if part.values == EVERYTHING:
            return read_all([self._split[index] for index in part.chosen])
        return [self._split[part.chosen[0]].read(self._scratch_like(0, like[0], torch.float32), part.values)]

    def _converted(self, values: list[Tensor], weights: list[Tensor], number: int) -> list[Tensor]:
        """The values converted to the dtype of the weights, if it differs."""
        if values[0].dtype == weights[0].dtype:
            return values
        converted = [self._scratch_like(number, one, weights[0].dtype) for one in values]
        torch._foreach_copy_(converted, values)
        return converted

    def _scratch_like(self, number: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory; on a CPU reused for every chunk, so that it stays in the cache."""
        if like.device.type != "cpu":
            return torch.empty_like(like, dtype=dtype)
        if self._scratch is None:
            self._scratch = torch.empty(3, CHUNK, dtype=dtype)
        return self._scratch[number, : len(like)]


@dataclass(frozen=True)
class _Part:
    """Indices of superkernels, and the slice of their values in memory order: all, or a chunk of a single one."""

    chosen: Sequence[int]
    values: slice


def _upgraded(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state in the current format; also accepts an earlier one that contained a state of ``torch.optim.SGD``."""
    if "rests" not in state:
        return state
    buffers = [entry[MOMENTUM] for _, entry in sorted(state["others"]["state"].items())]
    return {"superkernels": state["superkernels"], "low_bits": state["rests"], "others": buffers}


def _in_format_of(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the memory format of its weight, which the fused step requires."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
