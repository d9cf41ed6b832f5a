"""Batches whose order and augmentation depend on (seed, epoch, index) alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from dnas.data.dataset import SegmentationDataset
from dnas.data.seeding import mix_seed
from dnas.data.transforms import Transform
from dnas.errors import UserError

Batch = tuple[torch.Tensor, torch.Tensor]
_Keys = list[tuple[int, int]]
"""(epoch, index) of every sample of a batch: all that a sample depends on, so that workers can outlive an epoch."""


def batches(
    dataset: SegmentationDataset,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    drop_last: bool,
    indices: Sequence[int] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """Batches of images float32 (N, 3, h, w) and labels int64 (N, h, w), for one epoch or, with ``set_epoch``, many.

    indices: the part of the dataset to use, all of it by default.
    workers: processes that read and augment ahead; the batches are bit-identical for any number of them.
    pin_memory: for fast copies to a GPU; without one it has no effect.
    rank, world: this process takes its share of every step. The shares are disjoint and have equally many batches;
        all processes together see the same images in a step as one process with ``world * batch_size``. When the
        images do not divide evenly and none may be dropped, a rank's last batch can be one image larger.

    Random number generators of the caller stay untouched. Fewer images than one batch (or than ``world``) raise
    :class:`UserError`, as do images of different sizes in one batch.
    """
    chosen = tuple(range(len(dataset))) if indices is None else tuple(indices)
    for index in chosen:
        if not 0 <= index < len(dataset):
            raise ValueError(f"index {index} is outside the {len(dataset)} images of {dataset.name} {dataset.split}")
    if batch_size < 1 or workers < 0 or not 0 <= rank < world:
        raise ValueError(f"no batches of {batch_size} with {workers} workers for rank {rank} of {world}")
    plan = _Plan(chosen, batch_size, seed, epoch, shuffle, drop_last, rank, world)
    if not len(plan):
        need = f"{batch_size * world} (batch size {batch_size} on {world} process{'es' * (world > 1)})"
        raise UserError(
            f"{dataset.name} {dataset.split}: {len(chosen)} images are fewer than the {need if drop_last else world} "
            "needed for one step; use a smaller batch or more images"
        )
    return Batches(_Samples(dataset, transform, seed), plan, workers, pin_memory and torch.cuda.is_available())


def split_halves(count: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two disjoint halves of ``range(count)``, drawn by ``seed``, each in ascending order; the first is the larger.

    The bilevel search trains weights on one half and architecture parameters on the other (FasterSeg, Appendix F).
    """
    if count < 2:
        raise UserError(f"given {count} images, expected at least 2 to split them into halves")
    order = _permutation(count, mix_seed("halves", seed))
    middle = (count + 1) // 2
    return tuple(sorted(order[:middle])), tuple(sorted(order[middle:]))


class Batches:
    """An iterable of batches with a length; made by :func:`batches`.

    Worker processes start with the first iteration, stay for further epochs, and end with the object (or with
    ``close``). Only one iteration at a time: starting another one ends the first.
    """

    def __init__(self, samples: _Samples, plan: _Plan, workers: int, pin_memory: bool) -> None:
        self._samples = samples
        self._plan = plan
        self._workers = workers
        self._pin_memory = pin_memory
        self._loader: DataLoader[Any] | None = None
        self._iteration = 0

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        return self._iterate(self._iteration)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration: its order and its augmentation."""
        self._plan.epoch = epoch

    def close(self) -> None:
        """End the worker processes; a further iteration starts new ones."""
        self._iteration += 1
        self._loader = None

    def _iterate(self, iteration: int) -> Iterator[Batch]:
        for item in self._load() if self._workers else map(self._fetch, self._plan):
            if isinstance(item, UserError):
                raise UserError(str(item))
            yield item
            if self._iteration != iteration:
                raise RuntimeError("another iteration over these batches has started, or they were closed")

    def _fetch(self, keys: _Keys) -> Batch | UserError:
        item = self._samples.__getitems__(keys)
        if self._pin_memory and not isinstance(item, UserError):
            return item[0].pin_memory(), item[1].pin_memory()
        return item

    def _load(self) -> DataLoader[Any]:
        if self._loader is None:
            # The loader seeds its workers from the generator given here instead of drawing from the global one.
            self._loader = DataLoader(
                self._samples,  # type: ignore[arg-type]
                batch_sampler=self._plan,
                num_workers=self._workers,
                collate_fn=_as_it_is,
                pin_memory=self._pin_memory,
                worker_init_fn=_start_worker,
                persistent_workers=True,
                generator=torch.Generator().manual_seed(0),
            )
        return self._loader


class _Plan:
    """Which samples make up each batch of the epoch: an iterable of lists of keys."""

    def __init__(
        self,
        indices: tuple[int, ...],
        batch_size: int,
        seed: int,
        epoch: int,
        shuffle: bool,
        drop_last: bool,
        rank: int,
        world: int,
    ) -> None:
        self.epoch = epoch
        self._indices = indices
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._rank, self._world = rank, world
        step = batch_size * world
        self._used = len(indices) // step * step if drop_last else len(indices)
        # Counted on the smallest share, so that no rank waits for a batch that another one does not have.
        self._steps = -(-(self._used // world) // batch_size)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[_Keys]:
        order = list(self._indices)
        if self._shuffle:
            shuffled = _permutation(len(order), mix_seed("order", self._seed, self.epoch))
            order = [order[position] for position in shuffled]
        share = [(self.epoch, index) for index in order[: self._used][self._rank :: self._world]]
        last = self._steps - 1
        cuts = [
            (step * self._batch_size, None if step == last else (step + 1) * self._batch_size)
            for step in range(last + 1)
        ]
        return iter([share[start:end] for start, end in cuts])


class _Samples:
    """Reads, augments and stacks the samples of a batch, in whatever process that happens."""

    def __init__(self, dataset: SegmentationDataset, transform: Transform, seed: int) -> None:
        self._dataset = dataset
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, keys: _Keys) -> Batch | UserError:
        """A batch; a mistake is returned rather than raised, as the loader would wrap it in a worker's traceback."""
        try:
            samples = [self._sample(epoch, index) for epoch, index in keys]
            return self._stack(samples, keys)
        except UserError as error:
            return error

    def _sample(self, epoch: int, index: int) -> Batch:
        image, mask = self._dataset[index]
        # Transforms draw from torch's global CPU generator: lend it to the sample and put its state back. Seeding by
        # torch.manual_seed would reseed the GPUs too, which fork_rng was told to leave alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seed("sample", self._seed, epoch, index))
            return self._transform(image, mask)

    def _stack(self, samples: list[Batch], keys: _Keys) -> Batch:
        first = samples[0][0].shape
        for (image, _), (_, index) in zip(samples, keys, strict=True):
            if image.shape != first:
                raise UserError(
                    f"{self._dataset.file_name(index)}: {image.shape[-1]}x{image.shape[-2]} pixels, but "
                    f"{self._dataset.file_name(keys[0][1])} is {first[-1]}x{first[-2]}, and a batch has one size; "
                    "give the data a size, the augmentation a crop, or use batches of 1"
                )
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(labels)


def _permutation(count: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _as_it_is(batch: Any) -> Any:
    """The samples come stacked already."""
    return batch


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal: the main one decides when to stop and still needs its batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler inherited from the main process would keep the worker from ending when it is told to.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
