"""Networks near the likeliest one, for the supernet's weights to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Options = Mapping[str, int]
DRAWS_PER_CANDIDATE = 10
"""Samples for each candidate before fewer are accepted: a search that has decided gives the same network each time."""


def distinct_samples(
    logits: Mapping[str, Tensor],
    rates: frozenset[str],
    count: int,
    generator: torch.Generator,
    options_of: Callable[[Mapping[str, Tensor]], dict[str, int]],
    sample_of: Callable[[Mapping[str, Tensor]], dict[str, int]],
    used: Callable[[Options], Options],
) -> list[dict[str, int]]:
    """Up to ``count`` different networks: that of ``logits``, then samples of their softmax.

    ``rates``: the choices that are numbers, which are moved by up to 1 to both sides. ``options_of``: the options of
    the logits; ``sample_of``: those of noisy ones. ``used``: those of the options that the network uses; networks that
    differ in others are the same.
    """
    found: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
    for number, noisy in enumerate(_noisy(logits, rates, count, generator)):
        options = sample_of(noisy) if number else options_of(noisy)
        found.setdefault(tuple(sorted(used(options).items())), options)
        if len(found) == count:
            break
    return list(found.values())


def _noisy(
    logits: Mapping[str, Tensor], rates: frozenset[str], count: int, generator: torch.Generator
) -> Iterator[Mapping[str, Tensor]]:
    """The logits, then with Gumbel noise: the likeliest option of noisy logits is a sample of their softmax."""
    yield logits
    for _ in range(DRAWS_PER_CANDIDATE * count - 1):
        noisy = {}
        for name in sorted(logits):  # the order in which the noise is drawn
            value = logits[name].double().cpu()
            uniform = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            if name in rates:
                noisy[name] = value + 2 * uniform - 1
            else:
                noisy[name] = value - (-uniform.clamp(min=1e-300).log()).clamp(min=1e-300).log()
        yield noisy
