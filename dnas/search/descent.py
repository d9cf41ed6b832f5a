"""SGD over the weights of a supernet, whose superkernels gather their gradients themselves.

Superkernels are nearly all of the weights, and of a search's memory: weight, momentum and gradient have a gigabyte each
in the paper's space. Here momenta and gradients may be of a lower precision, and without clipping the momentum is all
that a superkernel has besides its weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnas.ops import GradientMemory, forget_memory, self_gathering
from dnas.search.sharing import shared_like
from dnas.search.split import EVERYTHING, SplitWeight, flat
from dnas.training.optimizers import make_sgd, set_learning_rate

PIECE = 1 << 19
"""Values that a step of descent takes at a time on a CPU: a piece stays in the cache meanwhile."""
WEIGHTS_AT_ONCE = 32
"""Weights that it takes at a time elsewhere, by the same few kernels."""


class SupernetSGD:
    """SGD with momentum (as ``torch.optim.SGD``) over all trainable weights of a network.

    A step of training is :meth:`begin`, some backward passes, :meth:`step`.

    momenta: those of the superkernels. Without clipping, where gradients are added to them, they already are as that
    next sum begins: times ``momentum``, plus ``weight_decay`` times the weight.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        clipping: float | None,
        precision: torch.dtype = torch.float32,
        compute_precision: torch.dtype = torch.float32,
        keep_gradients: bool = True,
        shared: bool = False,
    ) -> None:
        """``clipping``: the largest norm of all gradients together, if any.

        ``precision`` is that of the superkernels' momenta and gradients. With a ``compute_precision`` of bf16 the
        superkernels are in halves (:class:`~dnas.search.split.SplitWeight`) until :meth:`close`. ``keep_gradients``:
        hold their memory from one step to the next, rather than giving it back. ``shared``: with forks, as the network
        is already (:func:`~dnas.search.sharing.share`); such memory is always kept.
        """
        self.superkernels = [weight for weight in self_gathering(network) if weight.requires_grad]
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.clipping, self.keep_gradients = clipping, keep_gradients or shared
        self._places_of = {id(weight): index for index, weight in enumerate(self.superkernels)}
        self.others = [p for p in network.parameters() if p.requires_grad and id(p) not in self._places_of]
        self._sgd = make_sgd(
            network,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            decay_norms_and_biases=True,
            leave_out=self.superkernels,
            fused=True,
        )
        kinds = [precision if weight.dtype == torch.float32 else weight.dtype for weight in self.superkernels]
        zeros = shared_like if shared else torch.zeros_like
        self.momenta = [
            zeros(weight.detach(), dtype=kind) for weight, kind in zip(self.superkernels, kinds, strict=True)
        ]
        if clipping is None:
            for values, weight in zip(self.momenta, self.superkernels, strict=True):
                values.copy_(weight.detach()).mul_(weight_decay)
        # Clipping needs the norm of the gradients alone; otherwise they are gathered in their momenta.
        own: Sequence[Tensor | None] = self.momenta if clipping is None else [None] * len(kinds)
        if shared and clipping is not None:
            own = [shared_like(weight.detach(), kind) for weight, kind in zip(self.superkernels, kinds, strict=True)]
        self._memories = [
            GradientMemory(weight, tensor, kind)
            for weight, tensor, kind in zip(self.superkernels, own, kinds, strict=True)
        ]
        self._places: Tensor | None = None
        self._split: list[SplitWeight] = []
        if compute_precision == torch.bfloat16 and all(w.dtype == torch.float32 for w in self.superkernels):
            self._split = [SplitWeight(weight) for weight in self.superkernels]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of all weights."""
        self.learning_rate = learning_rate
        set_learning_rate(self._sgd, learning_rate)

    def begin(self) -> None:
        """Before the passes of a step."""
        self._sgd.zero_grad(set_to_none=True)
        for memory in self._memories:
            if memory.filled and memory.tensor is not None and self.clipping is not None:
                memory.tensor.zero_()  # of a step that was given up
            memory.filled = False

    def take_up(self, added: Iterable[Tensor], others: Iterable[Sequence[Tensor | None]]) -> None:
        """After passes in several processes: superkernels with a gradient, and every pass's of :attr:`others`."""
        with_gradient = {id(weight) for weight in added}
        for memory in self._memories:
            memory.filled = id(memory.weight) in with_gradient
        for gradients in others:
            for weight, gradient in zip(self.others, gradients, strict=True):
                if gradient is not None:
                    weight.grad = _laid_out(gradient, weight) if weight.grad is None else weight.grad.add_(gradient)

    def gathered(self) -> list[Tensor]:
        """After the passes: for every weight that has a gradient, what holds it (or the momentum with it)."""
        handed = [weight.grad for weight in self.others if weight.grad is not None]
        return handed + [self._memories[index].take() for index in self._with_gradient()]

    @torch.no_grad()
    def descend(self, superkernel: Tensor) -> None:
        """The step of one superkernel, ahead of that of the others, once nothing will be added to its gradient.

        Only without clipping, which needs the gradients of all.
        """
        assert self.clipping is None
        for part in self._parts([self._places_of[id(superkernel)]]):
            self._descend(part, 1.0)

    @torch.no_grad()
    def step(self) -> None:
        """Descend. Weights without gradient stay as they are, and so do their momenta."""
        scale = 1.0 if self.clipping is None else self._clip(self.clipping)
        self._sgd.step()
        chosen = self._with_gradient()
        for part in self._parts(chosen):
            self._descend(part, scale)
        self._sgd.zero_grad(set_to_none=True)
        for index in chosen:
            self._memories[index].filled = False
        if not self.keep_gradients and self.clipping is not None:
            for memory in self._memories:
                memory.tensor = None

    def close(self) -> None:
        """Leave the superkernels as they were found, but for their values."""
        forget_memory(self.superkernels)
        for split in self._split:
            split.join()
        self._split = []

    def state_dict(self) -> dict[str, Any]:
        """The momenta, those of superkernels as :attr:`momenta` has them, and what the weights lack of float32."""
        rests = [split.rest for split in self._split]
        return {"superkernels": list(self.momenta), "rests": rests, "others": self._sgd.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up :meth:`state_dict`; a KeyError or ValueError where it is that of other weights."""
        theirs, rests = state["superkernels"], state["rests"]
        mine = [split.rest for split in self._split]
        if [(m.shape, m.dtype) for m in theirs] != [(m.shape, m.dtype) for m in self.momenta]:
            raise ValueError("its momenta are not of the shapes and precision of these superkernels")
        if [(m.shape, m.dtype) for m in rests] != [(m.shape, m.dtype) for m in mine]:
            raise ValueError("its weights are of another precision than these superkernels")
        self._sgd.load_state_dict(state["others"])
        for one, other in zip(self.momenta, theirs, strict=True):
            one.copy_(other)
        for one, other in zip(mine, rests, strict=True):
            one.view(torch.int16).copy_(other.view(torch.int16))

    def _with_gradient(self) -> list[int]:
        """Which superkernels have one, those included that it came to another way than theirs."""
        for memory in self._memories:
            if memory.weight.grad is not None:
                memory.take().add_(memory.weight.grad)
                memory.weight.grad = None
        return [index for index, memory in enumerate(self._memories) if memory.filled]

    def _clip(self, largest: float) -> float:
        """What to scale the superkernels' gradients by, so that the norm of all is at most that; others are scaled."""
        norms = torch._foreach_norm(self.gathered())
        norm = float(torch.stack([one.double() for one in norms]).norm())
        if norm <= largest:
            return 1.0
        scale = largest / (norm + 1e-6)  # not a number where the norm is not
        for weight in self.others:
            if weight.grad is not None:
                weight.grad.mul_(scale)
        return scale

    def _parts(self, chosen: Sequence[int]) -> Iterator[_Part]:
        """Some superkernels, or a piece of one, at a time."""
        if chosen and self.superkernels[0].device.type != "cpu":
            for first in range(0, len(chosen), WEIGHTS_AT_ONCE):
                yield _Part(chosen[first : first + WEIGHTS_AT_ONCE], EVERYTHING)
            return
        for index in chosen:
            for first in range(0, self.superkernels[index].numel(), PIECE):
                yield _Part([index], slice(first, first + PIECE))

    def _descend(self, part: _Part, scale: float) -> None:
        """A step of a part. Everything that is to be done to a piece is done while it is in the cache."""
        momenta = [flat(self.momenta[index])[part.values] for index in part.chosen]
        weights = self._weights(part, momenta)
        sums = self._wide(momenta, weights, 1)
        if self.clipping is not None:
            gradients = [flat(self._memories[index].take())[part.values] for index in part.chosen]
            torch._foreach_mul_(sums, self.momentum)
            torch._foreach_add_(sums, self._wide(gradients, weights, 2), alpha=scale)
            torch._foreach_add_(sums, weights, alpha=self.weight_decay)
            torch._foreach_zero_(gradients)
        torch._foreach_add_(weights, sums, alpha=-self.learning_rate)
        if self.clipping is None:  # what the next gradient is added to
            torch._foreach_mul_(sums, self.momentum)
            torch._foreach_add_(sums, weights, alpha=self.weight_decay)
        if sums is not momenta:
            torch._foreach_copy_(momenta, sums)
        if self._split:
            for index, weight in zip(part.chosen, weights, strict=True):
                self._split[index].write(weight, part.values)

    def _weights(self, part: _Part, like: Sequence[Tensor]) -> list[Tensor]:
        """The weights of a part, in full precision; of split ones a copy."""
        if not self._split:
            return [flat(self.superkernels[index])[part.values] for index in part.chosen]
        places = [self._place(0, one, torch.float32) for one in like]
        chosen = zip(part.chosen, places, strict=True)
        return [self._split[index].read(place, part.values) for index, place in chosen]

    def _wide(self, values: list[Tensor], weights: list[Tensor], number: int) -> list[Tensor]:
        """The values in the precision of the weights."""
        if values[0].dtype == weights[0].dtype:
            return values
        return [self._place(number, one, weights[0].dtype).copy_(one) for one in values]

    def _place(self, number: int, like: Tensor, precision: torch.dtype) -> Tensor:
        """Memory for as many values; on a CPU always the same of three for a piece, which stays in the cache."""
        if like.device.type != "cpu":
            return torch.empty_like(like, dtype=precision)
        if self._places is None:
            self._places = torch.empty(3, PIECE, dtype=precision)
        return self._places[number, : len(like)]


@dataclass(frozen=True)
class _Part:
    """Which superkernels, and which of their values."""

    chosen: Sequence[int]
    values: slice


def _laid_out(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the layout of its weight, which fused optimisers read it in."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
