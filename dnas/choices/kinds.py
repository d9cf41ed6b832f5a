"""Kinds of choices: what the choices of one kind have in common in a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dnas.config import Field, config

Sampler = Literal["softmax", "gumbel", "single_path"]


@config
class Kind:
    """Settings of all choices of one kind.

    sampler: "softmax" runs all options, weighted by their probabilities; "gumbel" runs one option, drawn by a hard
        straight-through Gumbel-softmax, with the gradient of the noisy softmax (FasterSeg, Appendix C); "single_path"
        runs one option, drawn from the softmax, with the gradient of its probability. Rates are not sampled.
    temperature: of the Gumbel-softmax.
    learning_rate: factor of the search's ``architecture_learning_rate``.
    latency_weight: factor of the gradient of the expected latency (FasterSeg, Eq. 3).
    """

    sampler: Sampler = "softmax"
    temperature: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1.0, ge=0)
    latency_weight: float = Field(default=1.0, ge=0)


DEFAULT_KINDS: Mapping[str, Kind] = {
    "operator": Kind(),
    "input": Kind(),
    "width": Kind(sampler="gumbel"),
    "repeat": Kind(sampler="gumbel"),
    "rate": Kind(learning_rate=100.0),
}
"""A rate is a number of pixels, not a logit, so its steps are larger."""


def kind_of(name: str, kinds: Mapping[str, Kind]) -> Kind:
    """The settings of the kind ``name``: from ``kinds``, else the defaults."""
    return kinds.get(name) or DEFAULT_KINDS.get(name) or Kind()
