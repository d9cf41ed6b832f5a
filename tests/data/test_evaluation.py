"""Images for evaluation are decoded once, and their bits do not depend on what is kept."""

import pytest
import torch

from dnas.data import AugmentationConfig, DataConfig, SegmentationDataset, eval_transform, open_dataset
from dnas.data.evaluation import EvaluationImages, memory_to_keep
from dnas.data.labels import builtin_classes

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")

CPU = torch.device("cpu")
SIZES = [(8, 12), (8, 12), (8, 12), (16, 12), (8, 12)]
ALL = sum(4 * height * width for height, width in SIZES)


class Pictures(SegmentationDataset):
    """Random images of several sizes; records which are read."""

    def __init__(self):
        labels = builtin_classes("rectangles").labels
        super().__init__(name="pictures", split="val", labels=labels, count=len(SIZES), size=None, cache=False)
        self.read = []

    def file_name(self, index):
        return str(index)

    def _native_size(self, index):
        return SIZES[index]

    def _read(self, index):
        self.read.append(index)
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, *SIZES[index]), dtype=torch.uint8, generator=generator)
        return image, torch.randint(0, 6, SIZES[index], dtype=torch.uint8, generator=generator)


def images(dataset, **changes):
    return EvaluationImages(dataset, AugmentationConfig(), range(len(SIZES)), CPU, **{"batch_size": 2, **changes})


def expected():
    transform, dataset = eval_transform(AugmentationConfig()), Pictures()
    return [transform(*dataset[index]) for index in range(len(SIZES))]


def assert_expected(batches):
    batches = list(batches)
    assert [len(batch) for batch, _ in batches] == [2, 1, 1, 1]
    found = [(image, labels) for batch, truth in batches for image, labels in zip(batch, truth, strict=True)]
    for (image, labels), (other, other_labels) in zip(found, expected(), strict=True):
        assert torch.equal(image, other)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize(
    ("keep", "read_again"), [(0, [0, 1, 2, 3, 4]), (ALL, []), (ALL - 1, [4]), (4 * 8 * 12, [1, 2, 3, 4])]
)
def test_what_is_kept_is_not_read_again(keep: int, read_again: list[int]):
    dataset = Pictures()
    batches = images(dataset, keep=keep)
    assert_expected(batches)
    assert dataset.read == [0, 1, 2, 3, 4]
    for _ in range(2):
        dataset.read.clear()
        assert_expected(batches)
        assert dataset.read == read_again


def test_an_unfinished_iteration_keeps_what_it_has_read():
    dataset = Pictures()
    batches = images(dataset, keep=ALL, batch_size=1)
    next(iter(batches))
    assert_expected(images(dataset, keep=ALL))
    dataset.read.clear()
    assert [len(batch) for batch, _ in batches] == [1] * len(SIZES)
    assert dataset.read[-1] == 4
    assert 0 not in dataset.read


def test_workers_hand_over_what_is_kept():
    dataset = Pictures()
    batches = images(dataset, keep=ALL, workers=1)
    for _ in range(2):
        assert_expected(batches)
    assert not dataset.read  # by the worker alone
    assert not any(part.is_shared() for parts in batches._kept for part in parts)


def test_the_layout_and_no_images():
    batches = images(Pictures(), layout=torch.channels_last, keep=ALL)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in batches)
    assert list(EvaluationImages(Pictures(), AugmentationConfig(), (), CPU)) == []


def test_a_share_of_the_memory_is_kept_unless_there_is_a_cache(tmp_path):
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 99 kB\nMemAvailable:    4096 kB\n")
    assert memory_to_keep(Pictures(), memory) == 2**20
    memory.write_text("MemAvailable: 999999999 kB\n")
    assert memory_to_keep(Pictures(), memory) == 2**31
    assert memory_to_keep(Pictures(), tmp_path / "missing") == 2**28
    cached = open_dataset(DataConfig(dataset="rectangles", size=(32, 48), images={"val": 1}, cache=True), "val")
    assert memory_to_keep(cached, memory) == 0
