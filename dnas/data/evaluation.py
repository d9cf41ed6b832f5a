"""Images to evaluate on: whole, normalised, on a device, and decoded once for several networks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from dnas.data.batching import Batch, batches
from dnas.data.dataset import SegmentationDataset
from dnas.data.transforms import AugmentationConfig, eval_transform, finish_device

_MOST_KEPT = 2 * 2**30
_UNKNOWN_MEMORY = 2**30
_MEMORY = Path("/proc/meminfo")


class EvaluationImages:
    """Batches of images in their order that can be iterated several times.

    Images may have different sizes: consecutive ones of equal size form batches of up to ``batch_size``. Workers, if
    any, live as long as an iteration.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        augmentation: AugmentationConfig,
        indices: Sequence[int],
        device: torch.device,
        *,
        batch_size: int = 1,
        image_size: tuple[int, int] | None = None,
        layout: torch.memory_format = torch.contiguous_format,
        workers: int = 0,
        keep: int = 0,
    ) -> None:
        """``indices``: of the images, possibly none. ``layout``: the memory format of the batches.

        ``image_size``: (height, width) to which images, but not their labels, are resized.
        ``keep``: bytes of decoded images that stay in memory for further iterations, see :func:`memory_to_keep`. The
        values are the same with and without.
        """
        self._dataset, self._indices, self._device, self._layout = dataset, tuple(indices), device, layout
        self._transform = eval_transform(augmentation, image_size)
        self._finish_on = finish_device(augmentation, device) or (torch.device("cpu") if keep else None)
        self._finish = None if self._finish_on is None else self._transform.finish(self._finish_on)
        self._batch_size, self._workers, self._room = batch_size, workers, keep
        self._kept: list[tuple[torch.Tensor, ...]] = []

    def __len__(self) -> int:
        """The number of images."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        """Images float32 (N, C, h, w) and labels int64 (N, H, W) on the device."""
        return join_sizes(self._singles(), self._batch_size)

    def _singles(self) -> Iterator[Batch]:
        for parts in self._parts():
            images, labels = (parts[0], parts[1]) if self._finish is None else self._finish(*parts)
            # Moved before they are joined: pinned memory is copied without waiting, and joined images are not pinned.
            moved = images.to(self._device, non_blocking=True, memory_format=self._layout)
            yield moved, labels.to(self._device, non_blocking=True)

    def _parts(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Every image as workers hand it over; those at the beginning are kept while there is room."""
        yield from self._kept
        done = len(self._kept)
        if done == len(self._indices):
            return
        stream = batches(
            self._dataset,
            self._transform,
            batch_size=1,  # images may differ in size
            seed=0,
            epoch=0,
            shuffle=False,
            drop_last=False,
            indices=self._indices[done:],
            workers=self._workers,
            pin_memory=self._device.type == "cuda",
            finish_on=self._finish_on,
        )
        try:
            for position, parts in enumerate(stream.parts(), start=done):
                self._room -= sum(part.nbytes for part in parts)
                if self._room >= 0 and len(self._kept) == position:
                    self._kept.append(tuple(_unshared(part) for part in parts))
                yield parts
        finally:
            stream.close()


def _unshared(part: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor in shared memory, which is small, and where each tensor costs an open file."""
    return part.clone() if part.is_shared() else part  # type: ignore[no-untyped-call]


def memory_to_keep(dataset: SegmentationDataset, memory: Path = _MEMORY) -> int:
    """Bytes of decoded images to keep while several networks are evaluated; 0 if the dataset has a cache itself.

    At most a quarter of the memory that the system (``memory``: its file) says is available.
    """
    if dataset.kept_in is not None:
        return 0
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", memory.read_text(), re.MULTILINE)
    except OSError:
        found = None
    available = _UNKNOWN_MEMORY if found is None else 1024 * int(found[1])
    return min(_MOST_KEPT, available // 4)


def join_sizes(singles: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Join batches of one image into batches of up to ``batch_size`` consecutive images of equal size."""
    waiting: list[Batch] = []
    for images, labels in singles:
        sizes = (images.shape, labels.shape)
        if waiting and (len(waiting) == batch_size or (waiting[0][0].shape, waiting[0][1].shape) != sizes):
            yield _joined(waiting)
            waiting = []
        waiting.append((images, labels))
    if waiting:
        yield _joined(waiting)


def _joined(waiting: list[Batch]) -> Batch:
    return torch.cat([images for images, _ in waiting]), torch.cat([labels for _, labels in waiting])
