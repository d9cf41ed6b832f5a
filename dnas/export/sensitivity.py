"""Which layers of a network lose most by INT8, and how many of them have to stay in floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dnas.errors import UserError
from dnas.runtimes.quantise import Quantiser

Array = npt.NDArray[Any]


def sensitivities(
    quantiser: Quantiser, outputs: Callable[[bytes], Sequence[Array]], expected: Sequence[Array]
) -> dict[str, float]:
    """For each layer the error of the outputs if it alone is quantised, the largest first.

    ``outputs`` runs a model on some images, ``expected`` is what the model gives in floating point. The error is the
    mean squared difference; of class maps the share of pixels that differ.
    """
    found = {}
    for layer in quantiser.layers:
        others = [name for name in quantiser.layers if name != layer]
        pairs = zip(outputs(quantiser.quantise(others)), expected, strict=True)
        found[layer] = float(np.mean([_error(given, wanted) for given, wanted in pairs]))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def exclude_until(
    quantiser: Quantiser, order: Sequence[str], good: Callable[[bytes], bool]
) -> tuple[tuple[str, ...], bytes]:
    """The fewest first layers of ``order`` to leave in floating point so that the model is ``good``, and that model.

    Tries 1, 2, 4, ... layers, then bisects; more layers are taken to be never worse. Raises :class:`UserError` if not
    even all of them suffice.
    """
    bad, count = 0, 1
    while True:
        count = min(count, len(order))
        model = quantiser.quantise(order[:count])
        if good(model):
            break
        if count == len(order):
            raise UserError(
                "INT8 loses more mIoU than allowed even with all layers in floating point: the calibration images "
                "may not be like those of the network"
            )
        bad, count = count, 2 * count
    while count - bad > 1:
        middle = (bad + count) // 2
        tried = quantiser.quantise(order[:middle])
        if good(tried):
            count, model = middle, tried
        else:
            bad = middle
    return tuple(order[:count]), model


def _error(given: Array, wanted: Array) -> float:
    if np.issubdtype(wanted.dtype, np.integer):
        return float((given != wanted).mean())
    return float(np.square(given.astype(np.float64) - wanted).mean())
