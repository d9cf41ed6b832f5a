"""Decoding masks to labels: indices by a lookup table, colours by integer codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dnas.data.labels import IGNORE_LABEL, Colour, Labels
from dnas.errors import UserError

_UNKNOWN = -1
"""Entry of a lookup table for a value that is not allowed in masks."""


def index_lookup(num_classes: int, ignored: Iterable[int] = ()) -> torch.Tensor:
    """int32 (256,): each class index to itself, ``ignored`` and 255 to 255, anything else to -1 (an error)."""
    lookup = torch.full((256,), _UNKNOWN, dtype=torch.int32)
    lookup[:num_classes] = torch.arange(num_classes, dtype=torch.int32)
    lookup[[*ignored, IGNORE_LABEL]] = IGNORE_LABEL
    return lookup


class MaskDecoder:
    """Decodes stored masks to labels uint8 (H, W).

    lookup: int32 (256,), the label of each stored index, or -1 if the index is not allowed.
    labels: the classes; with ``accept_colours`` masks may contain their colours instead of indices.
    ignore_colour: the colour of ignored pixels in colour masks, if there is one.
    """

    def __init__(
        self,
        lookup: torch.Tensor,
        labels: Labels,
        *,
        accept_colours: bool = False,
        ignore_colour: Colour | None = None,
    ) -> None:
        self._lookup = lookup
        self._accept_colours = accept_colours
        colours = [*labels.colours, *([ignore_colour] if ignore_colour else [])]
        indices = [*range(labels.num_classes), *([IGNORE_LABEL] if ignore_colour else [])]
        codes = _colour_codes(np.array(colours, np.uint8))
        order = np.argsort(codes)
        self._codes = codes[order]
        self._code_labels = np.array(indices, np.uint8)[order]

    def decode(self, stored: npt.NDArray[Any], path: Path) -> torch.Tensor:
        """Labels of a mask from :func:`dnas.data.decode.read_mask`; an unknown value is an error naming ``path``."""
        if stored.ndim == 2:
            return self._from_indices(stored, path)
        if self._accept_colours:
            return self._from_colours(stored, path)
        raise UserError(f"{path}: a colour mask, expected class indices (a grey or palette image)")

    def _from_indices(self, stored: npt.NDArray[Any], path: Path) -> torch.Tensor:
        if stored.dtype != np.uint8:
            beyond = stored[(stored < 0) | (stored > 255)]
            if beyond.size:
                raise self._invalid_label(beyond, path)
        indices = torch.from_numpy(stored.astype(np.int32))
        labels = self._lookup.index_select(0, indices.flatten()).view(indices.shape)
        if bool((labels == _UNKNOWN).any()):
            raise self._invalid_label(indices[labels == _UNKNOWN].numpy(), path)
        return labels.to(torch.uint8)

    def _invalid_label(self, values: npt.NDArray[Any], path: Path) -> UserError:
        found = ", ".join(str(value) for value in np.unique(values)[:5])
        allowed = _ranges(torch.nonzero(self._lookup != _UNKNOWN).flatten().tolist())
        return UserError(
            f"{path}: {values.size} pixels have label {found}, which is outside the classes; expected {allowed}"
        )

    def _from_colours(self, stored: npt.NDArray[Any], path: Path) -> torch.Tensor:
        codes = _colour_codes(stored)
        positions = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = self._codes[positions] != codes
        if unknown.any():
            first = stored[unknown][0].tolist()
            raise UserError(
                f"{path}: {int(unknown.sum())} pixels have a colour that is not a class, the first {first}; "
                "expected the colours of the classes file"
            )
        return torch.from_numpy(self._code_labels[positions])


def _ranges(values: Sequence[int]) -> str:
    """Ascending integers as ranges: ``0 to 11, 255``."""
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ", ".join(
        f"{start} to {end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True)
    )


def _colour_codes(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """One int32 for each uint8 RGB triple (..., 3)."""
    wide = colours.astype(np.int32)
    codes: npt.NDArray[np.int32] = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return codes
