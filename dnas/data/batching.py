"""Batches whose order and augmentation depend only on (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from dnas.data.dataset import SegmentationDataset
from dnas.data.on_device import DeviceFinish
from dnas.data.sampling import SamplingConfig, count_labels, draw_epoch
from dnas.data.seeding import mix_seed
from dnas.data.shared_memory import handed_over, received
from dnas.data.splitting import permutation
from dnas.data.transforms import EvalTransform, TrainTransform, Transform
from dnas.data.waiting import Waiting
from dnas.data.workers import no_child_signals, start_worker, worker_died
from dnas.errors import UserError

Batch = tuple[torch.Tensor, torch.Tensor]
_Keys = list[tuple[int, ...]]
"""(epoch, index) of every sample of a batch, followed by the draw and the class of a sampling rule that draws images.

A sample depends on nothing else, so workers persist over epochs.
"""


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
    sampling: SamplingConfig | None = None,
    finish_on: torch.device | None = None,
    waiting: Waiting | None = None,
) -> Batches:
    """Batches of images float32 (N, 3, h, w) and labels int64 (N, h, w), for one epoch or, with ``set_epoch``, several.

    indices: the items of the dataset to use, by default all.
    workers: processes that read and augment in the background; the batches are bit-identical for any number of them.
    pin_memory: for fast copies to a GPU; without a GPU it has no effect.
    rank, world: this process gets its part of every step. The parts are disjoint and all ranks have equally many
        batches; together they see the same images in a step as one process with ``world * batch_size``. If the images
        do not divide evenly and none may be dropped, a rank's last batch can be one image larger.
    sampling: which images an epoch has; None is the rule "plain". Other rules read all masks first, and always shuffle.
    finish_on: a device that mirrors, changes colours and normalises, see :mod:`dnas.data.on_device`; the batches are
        on it then. None: the workers do it, and the batches are on the CPU.
    waiting: measures how long batches are waited for.

    The caller's random generators are not touched. Raises :class:`UserError` for fewer images than one batch (or than
    ``world``) and, while iterating, for images of different sizes in one batch and for unusable files.
    """
    chosen = tuple(range(len(dataset))) if indices is None else tuple(indices)
    for index in chosen:
        if not 0 <= index < len(dataset):
            raise ValueError(f"index {index}: {dataset.name} {dataset.split} has {len(dataset)} images")
    if batch_size < 1 or workers < 0 or not 0 <= rank < world:
        raise ValueError(f"invalid batch size {batch_size}, workers {workers} or rank {rank} of {world}")
    sampler = _BatchSampler(chosen, batch_size, seed, epoch, shuffle, drop_last, rank, world)
    if sampling is not None and sampling.draws:
        unread = torch.zeros(len(chosen), 0, dtype=torch.bool)
        presence = unread if sampling.rule == "plain" else class_presence(dataset, chosen, workers)
        sampler.sampling, sampler.presence = sampling, presence
    if not len(sampler):
        need = f"{batch_size * world} (batch size {batch_size} on {world} process{'es' * (world > 1)})"
        raise UserError(
            f"{dataset.name} {dataset.split}: {len(chosen)} images are fewer than the {need if drop_last else world} "
            "needed for one step; use a smaller batch or more images"
        )
    finish = None
    if finish_on is not None:
        if not isinstance(transform, (TrainTransform, EvalTransform)):
            raise TypeError(f"a {type(transform).__name__} cannot be finished on a device")
        finish = transform.finish(finish_on)
    samples = _Samples(dataset, transform, seed, prepares=finish is not None)
    return Batches(samples, sampler, workers, pin_memory and torch.cuda.is_available(), finish, waiting)


def label_counts(dataset: SegmentationDataset, indices: Sequence[int], workers: int = 0) -> torch.Tensor:
    """The number of pixels of every label in the masks of some images, int64 (indices, 256)."""
    stream = batches(
        dataset,
        count_labels,
        batch_size=1,
        seed=0,
        epoch=0,
        shuffle=False,
        drop_last=False,
        indices=indices,
        workers=workers,
    )
    counts = torch.cat([found.clone() for _, found in stream])  # a copy: in shared memory each would be an open file
    stream.close()
    return counts


def class_presence(dataset: SegmentationDataset, indices: Sequence[int], workers: int = 0) -> torch.Tensor:
    """Whether a class has a pixel in an image, bool (indices, classes); reads every mask once."""
    presence = label_counts(dataset, indices, workers)[:, : dataset.labels.num_classes] > 0
    if not presence.any():
        raise UserError(f"{dataset.name} {dataset.split}: no pixel is labelled, so images cannot be drawn by class")
    return presence


class Batches:
    """A sized iterable of batches; created by :func:`batches`.

    Worker processes start with the first iteration, serve all later epochs, and end with the object or with
    :meth:`close`. There is one iteration at a time: a new one ends the previous one.
    """

    def __init__(
        self,
        samples: _Samples,
        sampler: _BatchSampler,
        workers: int,
        pin_memory: bool,
        finish: DeviceFinish | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        self._samples = samples
        self._sampler = sampler
        self._workers = workers
        self._pin_memory = pin_memory
        self._finish = finish
        self._waiting = waiting
        self._loader: DataLoader[Any] | None = None
        self._iteration: object = None

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        found = self.parts()
        for parts in found if self._waiting is None else self._waiting.over(found):
            yield (parts[0], parts[1]) if self._finish is None else self._finish(*parts)

    def parts(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches before they are finished on a device: images, masks and numbers; else images and labels."""
        self._iteration = iteration = object()
        loader = self._loader = self._loader or self._make_loader()
        items = None
        try:
            with no_child_signals():
                items = iter(loader)
            while (item := next(items, None)) is not None:
                if isinstance(item, UserError):
                    raise item
                yield received(item)
                if self._iteration is not iteration:
                    raise RuntimeError("another iteration over these batches has started, or they were closed")
            return
        except (RuntimeError, OSError, EOFError) as error:
            died = worker_died(error, loader)
            if died is None:
                raise
        finally:
            del loader, items  # a traceback would keep them, and with them the workers
        raise died  # here, as the original error holds the loader as well

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which determines its order and its augmentation."""
        self._sampler.epoch = epoch

    def close(self) -> None:
        """Stop the worker processes; another iteration starts new ones."""
        self._iteration = None
        self._loader = None

    def _make_loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._samples,  # type: ignore[arg-type]
            batch_sampler=self._sampler,
            num_workers=self._workers,
            collate_fn=_identity,
            pin_memory=self._pin_memory,
            worker_init_fn=start_worker,
            persistent_workers=self._workers > 0,
            # The loader draws a seed for its workers, by default from the global generator.
            generator=torch.Generator().manual_seed(0),
        )


@dataclass(eq=False)
class _BatchSampler(Sampler[_Keys]):
    """The keys of each batch of an epoch."""

    indices: tuple[int, ...]
    batch_size: int
    seed: int
    epoch: int
    shuffle: bool
    drop_last: bool
    rank: int = 0
    world: int = 1
    sampling: SamplingConfig | None = None
    presence: torch.Tensor | None = None

    def __len__(self) -> int:
        # Based on the rank with the fewest images, so that no rank waits for a batch that another one does not have.
        return -(-(self._used // self.world) // self.batch_size)

    def __iter__(self) -> Iterator[_Keys]:
        own = [(self.epoch, *item) for item in self._order()[: self._used][self.rank :: self.world]]
        steps = len(self)
        for step in range(steps):
            end = (step + 1) * self.batch_size if step + 1 < steps else None
            yield own[step * self.batch_size : end]

    def _order(self) -> list[tuple[int, ...]]:
        """The samples of the epoch, of all ranks: (index,), or (index, draw, class) if images are drawn."""
        if self.sampling is not None and self.presence is not None:
            draws = draw_epoch(self.sampling, self.presence, self.seed, self.epoch)
            return [(self.indices[row], draw, focus) for row, draw, focus in draws]
        order = list(range(len(self.indices)))
        if self.shuffle:
            order = permutation(len(order), mix_seed("order", self.seed, self.epoch))
        return [(self.indices[position],) for position in order]

    @property
    def _used(self) -> int:
        """Number of images used by all ranks together; without an incomplete last step if ``drop_last``."""
        step = self.batch_size * self.world
        count = len(self.indices) * (1 if self.sampling is None else self.sampling.repeat)
        return count // step * step if self.drop_last else count


class _Samples:
    """Reads, augments and stacks the samples of a batch, in this process or in a worker.

    ``prepares``: they are finished on a device.
    """

    def __init__(self, dataset: SegmentationDataset, transform: Transform, seed: int, *, prepares: bool) -> None:
        self._dataset = dataset
        self._transform = transform
        self._seed = seed
        self._prepares = prepares

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, keys: _Keys) -> tuple[Any, ...] | UserError:
        """A batch, see :func:`handed_over`.

        A UserError is returned, not raised: the loader would add the traceback of the worker to it.
        """
        try:
            samples = [self._sample(*key) for key in keys]
            return handed_over(self._stack(samples, keys))
        except UserError as error:
            return error
        except MemoryError:
            return UserError(
                f"{self._dataset.name}: not enough memory for a batch of {len(keys)} images; "
                "use smaller batches, smaller images or fewer workers"
            )

    def _sample(self, epoch: int, index: int, *drawn: int) -> tuple[torch.Tensor, ...]:
        image, mask = self._dataset[index]
        # Transforms draw from torch's global CPU generator, whose state is restored here. torch.manual_seed would also
        # reseed the GPUs, whose generators fork_rng does not restore with devices=[].
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seed("sample", self._seed, epoch, index, *drawn))
            focus = drawn[-1] if drawn and drawn[-1] >= 0 else None
            transform = self._transform
            if isinstance(transform, TrainTransform):
                if self._prepares:
                    return transform.prepare(image, mask, focus)
                return transform(image, mask) if focus is None else transform.focused(image, mask, focus)
            if self._prepares and isinstance(transform, EvalTransform):
                return transform.prepare(image, mask)
            return transform(image, mask)

    def _stack(self, samples: list[tuple[torch.Tensor, ...]], keys: _Keys) -> tuple[torch.Tensor, ...]:
        first = samples[0][0].shape
        for (image, *_), key in zip(samples, keys, strict=True):
            if image.shape != first:
                raise UserError(
                    f"{self._dataset.file_name(key[1])}: {image.shape[-1]}x{image.shape[-2]} pixels, but "
                    f"{self._dataset.file_name(keys[0][1])} is {first[-1]}x{first[-2]}, and all images of a batch need "
                    "the same size; set the size of the data or the crop of the augmentation, or use batch size 1"
                )
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))


def _identity(batch: Any) -> Any:
    """Collate function: ``_Samples`` already returns stacked batches."""
    return batch
