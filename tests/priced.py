"""Latency tables with made-up prices, for tests."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from dnas.latency import Effort, LatencyTable, Measurement, OperatorSpec, make_setup
from dnas.latency.provenance import start_provenance
from search_spaces.base import SearchSpace

COSTS = {"skip": 0.001, "conv": 0.01, "conv_x2": 0.02, "zoomed_conv": 0.005, "zoomed_conv_x2": 0.009}


def priced_table(space: SearchSpace[Any], price: Callable[[OperatorSpec], float]) -> LatencyTable:
    """A table of all operators of a space, each with ``price`` in ms."""
    provenance = start_provenance(make_setup("cpu"), Effort(), space="test", input_size=space.input_size, command=None)
    prices = {item.spec.key: price(item.spec) for item in space.inventory()}
    return LatencyTable(provenance, {key: Measurement(ms, ms, ms, 1, 1) for key, ms in prices.items()})


def by_width(spec: OperatorSpec) -> float:
    """A price that grows with the channels, plus irregular noise of up to a tenth."""
    channels = sum(shape[0] for shape in spec.inputs) + spec.out_channels
    return COSTS.get(spec.operator, 0.003) * channels * (1 + zlib.crc32(spec.key.encode()) % 97 / 970)
