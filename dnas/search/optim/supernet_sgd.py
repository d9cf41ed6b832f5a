"""SGD with momentum over the weights of a supernet, whose superkernels accumulate their gradients in buffers.

Superkernels are nearly all of the weights and of a search's memory: in the paper's space weight, momentum and gradient
take a gigabyte each. Here momenta and gradients may be of a lower precision, and without clipping gradients are
accumulated in the momentum, so that a superkernel needs no memory besides the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from dnas.ops import GradientBuffer, sliced_parameters
from dnas.search.optim.split_bf16 import EVERYTHING, SplitBF16Weight, flat

CHUNK = 1 << 19
"""Values that are updated at a time on a CPU: a chunk of weight, momentum and gradient stays in the cache."""
WEIGHTS_AT_ONCE = 32
"""Weights that are updated at a time on an accelerator, by the same few kernels."""
MOMENTUM = "momentum_buffer"


class SupernetSGD(torch.optim.Optimizer):
    """``torch.optim.SGD`` with momentum, for networks with superkernels.

    A training step is :meth:`zero_grad`, any number of backward passes, :meth:`step`. Two parameter groups: the weights
    of superkernels (``sliced``) and all others. Until :meth:`close` the superkernels' gradients go to buffers instead
    of ``grad``.

    Without ``max_norm`` the momentum of a superkernel is kept as the next step's sum begins: decayed by ``momentum``,
    plus ``weight_decay`` times the weight.
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

        ``max_norm``: the largest norm of all gradients together, None for no clipping. ``momentum_dtype``: of the
        superkernels' momenta and gradients. ``split_bf16``: until :meth:`close` float32 superkernels are bf16
        parameters whose low bits are kept here (:class:`SplitBF16Weight`). ``keep_gradients``: keep the memory of
        gradients from one step to the next.
        """
        excluded = {id(parameter) for parameter in exclude}
        wanted = [p for p in network.parameters() if p.requires_grad and id(p) not in excluded]
        trained = {id(p) for p in wanted}
        owners = [one for one in sliced_parameters(network) if id(one.parameter) in trained]
        self.sliced = [one.parameter for one in owners]
        sliced = {id(p) for p in self.sliced}
        self.others = [p for p in wanted if id(p) not in sliced]
        self.max_norm, self.keep_gradients = max_norm, keep_gradients
        super().__init__(
            [{"params": self.sliced}, {"params": self.others}],
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
        )
        for parameter in self.others:
            # The fused step wants a momentum for all or none, and some weights get their first gradient late.
            self.state[parameter][MOMENTUM] = torch.zeros_like(parameter)
        self._buffers = []
        for owner in owners:
            parameter = owner.parameter
            dtype = momentum_dtype if parameter.dtype == torch.float32 else parameter.dtype
            values = torch.zeros_like(parameter.detach(), dtype=dtype)
            if max_norm is None:
                values.copy_(parameter.detach()).mul_(weight_decay)
            self.state[parameter][MOMENTUM] = values
            # Clipping needs the norm of the gradients alone; otherwise they are accumulated in the momentum.
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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Begin a step."""
        super().zero_grad(set_to_none)
        for buffer in self._buffers:
            if buffer.filled and buffer.tensor is not None and self.max_norm is not None:
                buffer.tensor.zero_()  # of a step that was not finished
            buffer.filled = False

    def gradients(self) -> list[Tensor]:
        """After the passes: for every weight that has a gradient, what holds it (or the momentum with it)."""
        plain = [weight.grad for weight in self.others if weight.grad is not None]
        return plain + [self._accumulator(index) for index in self._with_gradient()]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights. Those without a gradient stay as they are, and so do their momenta."""
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
        """Leave plain float32 weights behind, whose gradients go to ``grad`` again."""
        for owner in self._owners:
            owner.detach()
        for split in self._split:
            split.join()
        self._split = []

    def state_dict(self) -> dict[str, Any]:
        """Momenta (those of superkernels as the class says), and the low bits of weights that are split."""
        return {
            "superkernels": self.momenta,
            "low_bits": [split.low_bits for split in self._split],
            "others": [self.state[parameter][MOMENTUM] for parameter in self.others],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; a KeyError or ValueError where it belongs to other weights."""
        state = _upgraded(state_dict)
        mine = self.state_dict()
        for name, what in (("superkernels", "momenta"), ("low_bits", "low bits"), ("others", "momenta")):
            if [(m.shape, m.dtype) for m in state[name]] != [(m.shape, m.dtype) for m in mine[name]]:
                raise ValueError(f"its {what} are not of the shapes and precision of these weights")
        for name in ("superkernels", "others"):
            for one, other in zip(mine[name], state[name], strict=True):
                one.copy_(other)
        for one, other in zip(mine["low_bits"], state["low_bits"], strict=True):
            one.view(torch.int16).copy_(other.view(torch.int16))

    def _accumulator(self, index: int) -> Tensor:
        return self._buffers[index].accumulator(self.sliced[index])

    def _with_gradient(self) -> list[int]:
        """Which superkernels have a gradient, those included whose ``grad`` holds one."""
        for index, weight in enumerate(self.sliced):
            if weight.grad is not None:
                self._accumulator(index).add_(weight.grad)
                weight.grad = None
        return [index for index, buffer in enumerate(self._buffers) if buffer.filled]

    def _clip(self, max_norm: float) -> float:
        """The factor of the superkernels' gradients with which the norm of all is at most that; others are scaled."""
        norms = torch._foreach_norm(self.gradients())
        norm = float(torch.stack([one.double() for one in norms]).norm())
        if norm <= max_norm:
            return 1.0
        scale = max_norm / (norm + 1e-6)  # not a number where the norm is not
        for weight in self.others:
            if weight.grad is not None:
                weight.grad.mul_(scale)
        return scale

    def _update_others(self) -> None:
        group = self.param_groups[1]
        updated: list[Tensor] = [weight for weight in self.others if weight.grad is not None]
        sgd(
            updated,
            [_laid_out(weight.grad, weight) for weight in updated if weight.grad is not None],
            [self.state[weight][MOMENTUM] for weight in updated],
            fused=True,  # one pass over the memory
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def _parts(self, chosen: Sequence[int]) -> Iterator[_Part]:
        """Some superkernels, or a chunk of one, at a time."""
        if chosen and self.sliced[0].device.type != "cpu":
            for first in range(0, len(chosen), WEIGHTS_AT_ONCE):
                yield _Part(chosen[first : first + WEIGHTS_AT_ONCE], EVERYTHING)
            return
        for index in chosen:
            for first in range(0, self.sliced[index].numel(), CHUNK):
                yield _Part([index], slice(first, first + CHUNK))

    def _update(self, part: _Part, scale: float) -> None:
        """Update a part of the superkernels; everything that a chunk needs is done while it is in the cache."""
        group = self.param_groups[0]
        stored = self._momenta_of(part)
        weights = self._weights(part, stored)
        momenta = self._widened(stored, weights, 1)
        if self.max_norm is not None:
            gradients = [flat(self._accumulator(index))[part.values] for index in part.chosen]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, self._widened(gradients, weights, 2), alpha=scale)
            torch._foreach_add_(momenta, weights, alpha=group["weight_decay"])
            torch._foreach_zero_(gradients)
        torch._foreach_add_(weights, momenta, alpha=-group["lr"])
        if self.max_norm is None:  # what the next step's gradients are added to
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, weights, alpha=group["weight_decay"])
        if momenta is not stored:
            torch._foreach_copy_(stored, momenta)
        if self._split:
            for index, weight in zip(part.chosen, weights, strict=True):
                self._split[index].write(weight, part.values)

    def _momenta_of(self, part: _Part) -> list[Tensor]:
        """Flat views of a part's momenta."""
        return [flat(self.state[self.sliced[index]][MOMENTUM])[part.values] for index in part.chosen]

    def _weights(self, part: _Part, like: Sequence[Tensor]) -> list[Tensor]:
        """The weights of a part in full precision; copies of split ones."""
        if not self._split:
            return [flat(self.sliced[index])[part.values] for index in part.chosen]
        outs = [self._scratch_like(0, one, torch.float32) for one in like]
        return [self._split[index].read(out, part.values) for index, out in zip(part.chosen, outs, strict=True)]

    def _widened(self, values: list[Tensor], weights: list[Tensor], number: int) -> list[Tensor]:
        """The values in the precision of the weights."""
        if values[0].dtype == weights[0].dtype:
            return values
        return [self._scratch_like(number, one, weights[0].dtype).copy_(one) for one in values]

    def _scratch_like(self, number: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory; on a CPU the same for every chunk, so that it stays in the cache."""
        if like.device.type != "cpu":
            return torch.empty_like(like, dtype=dtype)
        if self._scratch is None:
            self._scratch = torch.empty(3, CHUNK, dtype=dtype)
        return self._scratch[number, : len(like)]


@dataclass(frozen=True)
class _Part:
    """Indices of superkernels, and which of their values in memory order."""

    chosen: Sequence[int]
    values: slice


def _upgraded(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state as it is written now, also from the form that ``torch.optim.SGD`` had a part in."""
    if "rests" not in state:
        return state
    buffers = [entry[MOMENTUM] for _, entry in sorted(state["others"]["state"].items())]
    return {"superkernels": state["superkernels"], "low_bits": state["rests"], "others": buffers}


def _laid_out(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the memory format of its weight, which the fused step requires."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
