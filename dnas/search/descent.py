"""SGD over the weights of a supernet, whose superkernels gather their gradients themselves.

Superkernels are nearly all of the weights, and of a search's memory: weight, momentum and gradient have a gigabyte each
in the paper's space. Here momenta and gradients may be of a lower precision, and without clipping the momentum is all
that a superkernel has besides its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.ops import GradientMemory, RoundedCopy, forget_memory, self_gathering
from dnas.training.optimizers import make_sgd, set_learning_rate

PIECE = 1 << 18
"""Values that a step of descent takes at a time on a CPU: a piece stays in the cache meanwhile."""
WEIGHTS_AT_ONCE = 64
"""Weights that it takes at a time elsewhere, by the same few kernels."""


class SupernetSGD:
    """SGD with momentum (as ``torch.optim.SGD``) over all trainable weights of a network.

    A step of training is :meth:`begin`, some backward passes, :meth:`step`.
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
    ) -> None:
        """``clipping``: the largest norm of all gradients together, if any.

        ``precision`` is that of the superkernels' momenta and gradients. In a ``compute_precision`` other than the
        weights' the superkernels are held as well, rounded once a step. ``keep_gradients``: hold their memory
        from one step to the next, rather than giving it back.
        """
        self.superkernels = [weight for weight in self_gathering(network) if weight.requires_grad]
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.clipping, self.keep_gradients = clipping, keep_gradients
        gathering = {id(weight) for weight in self.superkernels}
        self.others = [p for p in network.parameters() if p.requires_grad and id(p) not in gathering]
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
        self.momenta = [
            torch.zeros_like(weight, dtype=kind) for weight, kind in zip(self.superkernels, kinds, strict=True)
        ]
        # Clipping needs the norm of the gradients alone; otherwise they are gathered in their momenta.
        own = self.momenta if clipping is None else [None] * len(kinds)
        self._memories = [
            GradientMemory(weight, tensor, kind)
            for weight, tensor, kind in zip(self.superkernels, own, kinds, strict=True)
        ]
        self._places: Tensor | None = None
        rounds = compute_precision != torch.float32 and all(w.dtype == torch.float32 for w in self.superkernels)
        self._copies = [RoundedCopy(weight, compute_precision) for weight in self.superkernels] if rounds else []

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of all weights."""
        self.learning_rate = learning_rate
        set_learning_rate(self._sgd, learning_rate)

    def begin(self) -> None:
        """Before the passes of a step."""
        self._sgd.zero_grad(set_to_none=True)
        for memory in self._memories:
            if self.clipping is None:
                memory.begin(self.momentum, self.weight_decay)
            else:
                memory.begin()
        for copy in self._copies:
            if not copy.holds:
                copy.refresh()

    def gathered(self) -> list[Tensor]:
        """After the passes: for every weight that has a gradient, what holds it (or the momentum with it)."""
        handed = [weight.grad for weight in self.others if weight.grad is not None]
        return handed + [self._memories[index].take() for index in self._with_gradient()]

    @torch.no_grad()
    def step(self) -> None:
        """Descend. Weights without gradient stay as they are, and so do their momenta."""
        scale = 1.0 if self.clipping is None else self._clip(self.clipping)
        self._sgd.step()
        chosen = self._with_gradient()
        for weights, momenta, gradients in self._pieces(chosen):
            self._descend(weights, momenta, gradients, scale)
        for index in chosen if self._copies else ():
            self._copies[index].refresh()
        if not self.keep_gradients and self.clipping is not None:
            for memory in self._memories:
                memory.tensor = None

    def close(self) -> None:
        """Leave the superkernels as they were found, but for their values."""
        forget_memory(self.superkernels)

    def state_dict(self) -> dict[str, Any]:
        """The momenta."""
        return {"superkernels": list(self.momenta), "others": self._sgd.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up :meth:`state_dict`; a KeyError or ValueError where it is that of other weights."""
        theirs = state["superkernels"]
        if [(m.shape, m.dtype) for m in theirs] != [(m.shape, m.dtype) for m in self.momenta]:
            raise ValueError("its momenta are not of the shapes and precision of these superkernels")
        self._sgd.load_state_dict(state["others"])
        for mine, other in zip(self.momenta, theirs, strict=True):
            mine.copy_(other)

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

    def _pieces(self, chosen: Sequence[int]) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """Weights, momenta and gradients of some superkernels, flat and side by side, some at a time."""
        whole = [
            (_flat(self.superkernels[index]), _flat(self.momenta[index]), _flat(self._memories[index].take()))
            for index in chosen
        ]
        if whole and whole[0][0].device.type != "cpu":
            for first in range(0, len(whole), WEIGHTS_AT_ONCE):
                weights, momenta, gradients = zip(*whole[first : first + WEIGHTS_AT_ONCE], strict=True)
                yield list(weights), list(momenta), list(gradients)
            return
        for three in whole:
            for first in range(0, len(three[0]), PIECE):
                weight, momentum, gradient = (values[first : first + PIECE] for values in three)
                yield [weight], [momentum], [gradient]

    def _descend(self, weights: list[Tensor], momenta: list[Tensor], gradients: list[Tensor], scale: float) -> None:
        sums = self._wide(momenta, weights, 0)
        if self.clipping is not None:
            torch._foreach_mul_(sums, self.momentum)
            torch._foreach_add_(sums, self._wide(gradients, weights, 1), alpha=scale)
            torch._foreach_add_(sums, weights, alpha=self.weight_decay)
            if sums is not momenta:
                torch._foreach_copy_(momenta, sums)
        torch._foreach_add_(weights, sums, alpha=-self.learning_rate)

    def _wide(self, values: list[Tensor], weights: list[Tensor], place: int) -> list[Tensor]:
        """The values in the weights' precision; on a CPU in one of two places for a piece, which stays in the cache."""
        if values[0].dtype == weights[0].dtype:
            return values
        if weights[0].device.type != "cpu":
            return [one.to(weight.dtype) for one, weight in zip(values, weights, strict=True)]
        if self._places is None:
            self._places = weights[0].new_empty(2, PIECE)
        found = self._places[place, : len(values[0])]
        return [found.copy_(values[0])]


def _flat(values: Tensor) -> Tensor:
    """All values in the order in which they lie in memory."""
    return values.as_strided((values.numel(),), (1,))
