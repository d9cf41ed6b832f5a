"""Classes are matched by their names: the same names in another order are mapped, other names refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torchvision import tv_tensors

from dnas.data.dataset import SegmentationDataset
from dnas.data.labels import IGNORE_LABEL, Labels
from dnas.errors import UserError


def class_order(names: Sequence[str], expected: Sequence[str], source: str, wanted_by: str) -> tuple[int, ...]:
    """The position of each of the ``expected`` class names in ``names``.

    Raises :class:`UserError` if these are not the same names: ``source`` has the first, ``wanted_by`` expects the
    others.
    """
    if set(names) != set(expected):
        counts = (
            f"{source} has {len(names)} classes, {wanted_by} expects {len(expected)}"
            if len(names) != len(expected)
            else f"the classes of {source} are not those that {wanted_by} expects"
        )
        missing = _shown([name for name in expected if name not in names])
        unknown = _shown([name for name in names if name not in expected])
        raise UserError(
            f"{counts}: missing {missing}; not expected {unknown}; use data with the same class names, or rename them "
            "in the classes file"
        )
    return tuple(list(names).index(name) for name in expected)


def match_classes(dataset: SegmentationDataset, expected: Sequence[str], wanted_by: str) -> SegmentationDataset:
    """``dataset`` with its classes in the order of ``expected``, the names that ``wanted_by`` (a run) was trained for.

    Raises :class:`UserError` for other names.
    """
    names = dataset.labels.names
    order = class_order(names, expected, dataset.name, wanted_by)
    return dataset if tuple(expected) == names else _Relabelled(dataset, order)


class _Relabelled(SegmentationDataset):
    """A dataset with its classes in another order: class i is the class ``order[i]`` of the original."""

    def __init__(self, original: SegmentationDataset, order: Sequence[int]) -> None:
        names, colours = original.labels.names, original.labels.colours
        labels = Labels(tuple(names[index] for index in order), tuple(colours[index] for index in order))
        super().__init__(
            name=original.name, split=original.split, labels=labels, count=len(original), size=None, cache=False
        )
        self._original = original
        self._lookup = torch.full((256,), IGNORE_LABEL, dtype=torch.uint8)
        self._lookup[list(order)] = torch.arange(len(order), dtype=torch.uint8)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of item 0."""
        return self._original.image_size

    @property
    def kept_in(self) -> Literal["memory", "disk"] | None:
        """Where the original keeps its images."""
        return self._original.kept_in

    def file_name(self, index: int) -> str:
        """The name of item ``index``."""
        return self._original.file_name(index)

    def fingerprint(self) -> str:
        """The fingerprint of the original: the order of the classes does not matter."""
        return self._original.fingerprint()

    def native_size(self, index: int) -> tuple[int, int]:
        """(height, width) of item ``index`` before resizing."""
        return self._original.native_size(index)

    def skipped(self) -> tuple[str, ...]:
        """What lies beside the files and is not read."""
        return self._original.skipped()

    @property
    def is_255_stated(self) -> bool:
        """Whether the data say what the value 255 means."""
        return self._original.is_255_stated

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, mask = self._original[index]
        return image, tv_tensors.Mask(self._lookup[mask.as_subclass(torch.Tensor).long()])

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self[index]

    def _native_size(self, index: int) -> tuple[int, int]:
        return self._original.native_size(index)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "none") + more
