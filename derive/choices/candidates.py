"""Networks near the likeliest one, for the supernet's weights to judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import torch
from torch import Tensor

from dnas.config import Field, parse_config, record
from dnas.files import read_json, write_json
from dnas.runs import RunFolder

CANDIDATES = "candidates.json"
"""File name of the candidates near the latency target, in the run folder of a search."""
Options = Mapping[str, int]
DRAWS_PER_CANDIDATE = 10
"""Samples for each candidate before fewer are accepted: a search that has decided gives the same network each time."""


@record
class Candidates:
    """The candidates of a search with a latency target, the likeliest network first.

    target_ms: the target. wanted: how many were asked for. proven: whether the first is proven to be the likeliest one.
    options: of each network, by the choices' names.
    """

    target_ms: Annotated[float, Field(gt=0, le=1e6)]
    wanted: Annotated[int, Field(ge=1)]
    proven: bool
    options: Annotated[tuple[dict[str, str], ...], Field(min_length=1, max_length=100_000)]

    def save(self, run: RunFolder) -> None:
        """Write them to a run folder: to find them again may take minutes, and within a time limit may find others."""
        write_json(run.path / CANDIDATES, dataclasses.asdict(self))


def saved_candidates(run: RunFolder) -> Candidates | None:
    """The candidates in a run folder; None if there are none. Raises :class:`UserError` for a damaged file."""
    path = run.path / CANDIDATES
    if not path.exists():
        return None
    content = read_json(path, "candidates of the search")
    return parse_config(Candidates, content if isinstance(content, dict) else {}, str(path))


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
