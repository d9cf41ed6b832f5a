"""Decoding masks to labels: indices by a lookup table, colours by integer codes.

Nothing is guessed: a mask whose values and colours contradict each other is an error that names both readings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from dnas.data.labels import IGNORE_LABEL, ClassesFile, Colour, Labels
from dnas.errors import UserError

MaskReading = Literal["indices", "colours"]
"""What decides the label of a pixel: its stored value, or its colour."""

_UNKNOWN = -1
"""Entry of a lookup table for a value that is not allowed in masks."""
_SETTLE = "set masks: indices or masks: colours in the data to say which holds"


def index_lookup(num_classes: int, ignored: Iterable[int] = ()) -> torch.Tensor:
    """int32 (256,): each class index to itself, ``ignored`` and 255 to 255, anything else to -1 (an error)."""
    lookup = torch.full((256,), _UNKNOWN, dtype=torch.int32)
    lookup[:num_classes] = torch.arange(num_classes, dtype=torch.int32)
    lookup[[*ignored, IGNORE_LABEL]] = IGNORE_LABEL
    return lookup


class MaskDecoder:
    """Decodes stored masks to labels uint8 (H, W).

    lookup: int32 (256,), the label of each stored index, or -1 if the index is not allowed.
    labels: the classes.
    accept_colours: whether masks may contain colours instead of indices: those of the classes and ``ignore_colour``,
        or ``colour_labels``, the label of each colour.
    further: the label of values below 0 or above 255.
    others: whether values and colours that are not listed are an error, or ignored.
    reading: whether values or colours decide; None accepts both, and refuses masks in which they contradict each other.
    is_255_stated: whether the data say what the value 255 means; if not, 255 is an error in masks of two classes where
        it may be the second class as well.
    """

    def __init__(
        self,
        lookup: torch.Tensor,
        labels: Labels,
        *,
        accept_colours: bool = False,
        ignore_colour: Colour | None = None,
        colour_labels: Mapping[Colour, int] | None = None,
        further: Mapping[int, int] | None = None,
        others: Literal["error", "ignore"] = "error",
        reading: MaskReading | None = None,
        is_255_stated: bool = True,
    ) -> None:
        self._labels = labels
        self._accept_colours, self._others, self._reading = accept_colours, others, reading
        self._lookup = lookup
        self._further = dict(further or {})
        if colour_labels is None:
            colour_labels = {colour: index for index, colour in enumerate(labels.colours)}
            colour_labels |= {ignore_colour: IGNORE_LABEL} if ignore_colour else {}
        codes = _colour_codes(np.array(list(colour_labels) or np.zeros((0, 3)), np.uint8))
        order = np.argsort(codes)
        self._codes = codes[order]
        self._code_labels = np.array(list(colour_labels.values()), np.int32)[order]
        self.is_255_stated = is_255_stated

    @classmethod
    def of_classes(cls, classes: ClassesFile, reading: MaskReading | None = None) -> MaskDecoder:
        """The decoder of masks with the values or colours of a classes file."""
        lookup = torch.full((256,), _UNKNOWN, dtype=torch.int32)
        further = {}
        for value, label in classes.value_labels().items():
            if 0 <= value <= 255:
                lookup[value] = label
            else:
                further[value] = label
        stated = IGNORE_LABEL in classes.ignored_values or any(entry.values for entry in classes.classes)
        return cls(
            lookup,
            classes.labels,
            accept_colours=True,
            colour_labels=classes.colour_labels(),
            further=further,
            others=classes.others,
            reading=reading,
            is_255_stated=stated,
        )

    def settings(self) -> str:
        """Everything that decides the labels, as text."""
        colours = list(zip(self._codes.tolist(), self._code_labels.tolist(), strict=True))
        rules = (self._accept_colours, self._others, self._reading, self.is_255_stated, sorted(self._further.items()))
        return repr((self._labels.names, rules, self._lookup.tolist(), colours))

    def decode(
        self, stored: npt.NDArray[Any], path: Path, palette: npt.NDArray[np.uint8] | None = None
    ) -> torch.Tensor:
        """Labels of a mask from :func:`dnas.data.decode.read_mask`, with its ``palette`` if it has one.

        Unknown values, and values and colours that contradict each other, are an error naming ``path``.
        """
        if stored.ndim == 3:
            if self._reading == "indices":
                stored = _single_channel(stored, path)
            elif not self._accept_colours and self._reading is None:
                raise UserError(f"{path}: a colour mask, expected class indices (a grey or palette image)")
            else:
                return self._from_colours(stored, path)
        elif self._reading == "colours":
            return self._from_colours(_shown(stored, palette, path), path)
        elif self._reading is None:
            self._refuse_contradictions(stored, palette, path)
        if not self.is_255_stated and self._labels.num_classes == 2:
            self._refuse_undecided_255(stored, path)
        return self._from_indices(stored, path)

    def _from_indices(self, stored: npt.NDArray[Any], path: Path) -> torch.Tensor:
        if stored.dtype == np.uint8:
            indices = torch.from_numpy(stored.astype(np.int32))
            labels = self._lookup.index_select(0, indices.flatten()).view(indices.shape)
        else:
            values, inverse = np.unique(stored, return_inverse=True)
            found = np.array([self._label_of(int(value)) for value in values], np.int32)
            labels = torch.from_numpy(found[inverse.reshape(stored.shape)])
        unknown = labels == _UNKNOWN
        if bool(unknown.any()):
            if self._others == "error":
                raise self._invalid_label(stored[unknown.numpy()], path)
            labels = labels.masked_fill(unknown, IGNORE_LABEL)
        return labels.to(torch.uint8)

    def _label_of(self, value: int) -> int:
        return int(self._lookup[value]) if 0 <= value <= 255 else self._further.get(value, _UNKNOWN)

    def _invalid_label(self, values: npt.NDArray[Any], path: Path) -> UserError:
        found = ", ".join(str(value) for value in np.unique(values)[:5])
        allowed = _ranges([*torch.nonzero(self._lookup != _UNKNOWN).flatten().tolist(), *sorted(self._further)])
        lossy = "; a JPEG file changes labels, store masks as PNG" if path.suffix.lower() in (".jpg", ".jpeg") else ""
        return UserError(
            f"{path}: {values.size} pixels have label {found}, which is outside the classes; expected {allowed}{lossy}"
        )

    def _from_colours(self, stored: npt.NDArray[Any], path: Path) -> torch.Tensor:
        codes = _colour_codes(stored)
        labels = self._colour_lookup(codes)
        unknown = labels == _UNKNOWN
        if unknown.any():
            if self._others == "error":
                first = stored[unknown][0].tolist()
                raise UserError(
                    f"{path}: {int(unknown.sum())} pixels have a colour that is not a class, the first {first}; "
                    f"expected the colours of the classes file{_hint_for_grey(stored, path)}"
                )
            labels[unknown] = IGNORE_LABEL
        return torch.from_numpy(labels.astype(np.uint8))

    def _colour_lookup(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The label of each code, -1 for unknown ones."""
        if not len(self._codes):
            return np.full(codes.shape, _UNKNOWN, np.int32)
        positions = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        return np.where(self._codes[positions] == codes, self._code_labels[positions], np.int32(_UNKNOWN))

    def _refuse_contradictions(
        self, stored: npt.NDArray[Any], palette: npt.NDArray[np.uint8] | None, path: Path
    ) -> None:
        """Raise :class:`UserError` if values read as indices and their colours mean different classes.

        One contradicting entry of a palette suffices. Grey values may be colours only if there are several and all of
        them are colours of the data.
        """
        if stored.dtype != np.uint8 or not len(self._codes):
            return
        greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
        shown = greys if palette is None else palette
        by_colour = self._colour_lookup(_colour_codes(shown))
        by_index = self._lookup.numpy()[: len(shown)]
        contradicting = (by_colour != _UNKNOWN) & (by_colour != by_index)
        if not contradicting.any():
            return
        used = np.bincount(stored.ravel(), minlength=256)[: len(shown)] > 0
        is_grey = bool((shown[used] == greys[: len(shown)][used]).all())
        if is_grey and (used.sum() < 2 or (by_colour[used] == _UNKNOWN).any()):
            return
        for value in np.flatnonzero(used & contradicting)[:1].tolist():
            raise UserError(
                f"{path}: the value {value} is {self._name(by_index[value])} by its index, but its "
                f"{'grey' if is_grey else 'palette colour'} {shown[value].tolist()} is {self._name(by_colour[value])}; "
                f"{_SETTLE}"
            )

    def _refuse_undecided_255(self, stored: npt.NDArray[Any], path: Path) -> None:
        if not (stored == IGNORE_LABEL).any():
            return
        second = torch.nonzero(self._lookup == 1).flatten().tolist()
        if not np.isin(stored, second).any():
            first, other = self._labels.names
            raise UserError(
                f"{path}: holds the value 255 but not {second[0] if second else 1}, the value of {other!r}: 255 may be "
                f"{other!r} or ignored pixels; write into the classes file values: [255] at {other!r} (and values: [0] "
                f"at {first!r}), or ignore: 255"
            )

    def _name(self, label: int) -> str:
        if label == _UNKNOWN:
            return "no class"
        return "ignored" if label == IGNORE_LABEL else f"class {self._labels.names[label]!r}"


def _single_channel(stored: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """The channel of a colour file whose three channels are equal, as grey files saved as RGB are."""
    if not (stored == stored[..., :1]).all():
        raise UserError(f"{path}: a colour mask, expected class indices (a grey or palette image)")
    return stored[..., 0]


def _shown(stored: npt.NDArray[Any], palette: npt.NDArray[np.uint8] | None, path: Path) -> npt.NDArray[np.uint8]:
    """The colours uint8 (H, W, 3) in which a grey or palette file is displayed."""
    if palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette)] = palette
        shown: npt.NDArray[np.uint8] = colours[stored]
        return shown
    if stored.dtype != np.uint8:
        raise UserError(f"{path}: a mask of {stored.dtype} values, expected colours of 8 bits; set masks: indices")
    return stored[..., None].repeat(3, -1)


def _hint_for_grey(stored: npt.NDArray[Any], path: Path) -> str:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return "; a JPEG file changes colours, store masks as PNG"
    if (stored == stored[..., :1]).all():
        return "; its three channels are equal: set masks: indices if they are class indices"
    return ""


def _ranges(values: Sequence[int]) -> str:
    """Ascending integers as ranges: ``0 to 11, 255``."""
    values = sorted(values)
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
