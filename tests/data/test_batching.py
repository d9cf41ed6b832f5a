from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import resource
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnas.data import (
    AugmentationConfig,
    DataConfig,
    batches,
    eval_transform,
    load_data_config,
    open_dataset,
    split_halves,
    train_transform,
)
from dnas.data.batching import _BatchSampler
from dnas.data.workers import WorkerDied
from dnas.errors import UserError

# Warnings of Python and torch about the machine's processes and cores are unrelated to the batches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

RANDOM = AugmentationConfig(
    crop=(24, 40), scale=(0.5, 2.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, flip=0.5
)


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(DataConfig(dataset="rectangles", size=(32, 48), images={"train": 11}, cache=True), "train")


def load(dataset, transform=None, **changes):
    options = {"batch_size": 3, "seed": 5, "epoch": 0, "shuffle": True, "drop_last": False, **changes}
    return batches(dataset, transform or train_transform(RANDOM), **options)


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_batches_have_the_promised_form(dataset):
    loader = load(dataset)
    collected = list(loader)
    assert [len(images) for images, _ in collected] == [3, 3, 3, 2]
    assert len(loader) == 4
    images, labels = collected[0]
    assert (images.shape, images.dtype) == ((3, 3, 24, 40), torch.float32)
    assert (labels.shape, labels.dtype) == ((3, 24, 40), torch.int64)
    assert len(load(dataset, drop_last=True)) == len(list(load(dataset, drop_last=True))) == 3


def test_order_and_augmentation_depend_on_seed_and_epoch(dataset):
    assert_same(load(dataset), load(dataset))
    for changes in ({"seed": 6}, {"epoch": 1}):
        assert not torch.equal(next(iter(load(dataset)))[0], next(iter(load(dataset, **changes)))[0])


def test_a_sample_does_not_depend_on_its_batch(dataset):
    whole = [image for images, _ in load(dataset, shuffle=False) for image in images]
    alone = [image for images, _ in load(dataset, shuffle=False, batch_size=1, indices=[7, 2]) for image in images]
    assert torch.equal(alone[0], whole[7])
    assert torch.equal(alone[1], whole[2])


def test_workers_give_the_same_bits_over_epochs_and_end(dataset):
    before = set(multiprocessing.active_children())
    loader, single = load(dataset, workers=2), load(dataset)
    for epoch in (0, 1, 5):
        loader.set_epoch(epoch)
        single.set_epoch(epoch)
        assert_same(loader, single)
        assert_same(single, load(dataset, epoch=epoch))
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
    next(iter(loader))  # an unfinished iteration does not affect the next one
    assert_same(loader, single)
    loader.close()
    for worker in workers:
        worker.join(10)
    assert set(multiprocessing.active_children()) == before
    assert_same(loader, single)
    del loader
    assert set(multiprocessing.active_children()) == before


def test_workers_leave_ctrl_c_to_the_main_process(dataset):
    loader = load(dataset, workers=1)
    stream = iter(loader)
    collected = [next(stream)]
    (worker,) = multiprocessing.active_children()
    for _ in range(3):
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        collected.append(next(stream))
    assert_same(collected, load(dataset))
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_generators_stay_untouched(dataset, workers: int):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global state is what is checked
    random.seed(3)
    states = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()  # noqa: NPY002
    loader = load(dataset, workers=workers)
    for _ in loader:
        assert torch.equal(torch.get_rng_state(), states[0])
    loader.close()
    assert pickle.dumps(np.random.get_state()) == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]
    torch.manual_seed(99)  # and their state has no effect
    assert_same(loader, load(dataset))
    loader.close()


def test_the_number_of_threads_does_not_change_the_pixels():
    dataset = open_dataset(DataConfig(dataset="streets", size=(256, 512), images={"train": 2}), "train")
    config = AugmentationConfig(scale=(0.7, 1.3), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    threads = torch.get_num_threads()
    collected = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            collected.append(list(load(dataset, train_transform(config), batch_size=2)))
    finally:
        torch.set_num_threads(threads)
    assert_same(collected[0], collected[1])
    assert_same(collected[0], collected[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_one_iteration_at_a_time(dataset, workers: int):
    loader = load(dataset, workers=workers)
    first = iter(loader)
    next(first)
    assert_same(loader, load(dataset))
    with pytest.raises(RuntimeError, match="another iteration"):
        next(first)
    second = iter(loader)
    next(second)
    loader.close()
    with pytest.raises(RuntimeError, match="or they were closed"):
        next(second)


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 5),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
)
def test_ranks_share_the_images(count: int, batch_size: int, world: int, drop_last: bool, shuffle: bool):
    plans = [
        list(_BatchSampler(tuple(range(count)), batch_size, 1, 2, shuffle, drop_last, rank, world))
        for rank in range(world)
    ]
    assert len({len(plan) for plan in plans}) == 1
    shares = [[key for keys in plan for key in keys] for plan in plans]
    together = [key for share in shares for key in share]
    assert len(set(together)) == len(together)
    if not plans[0]:
        assert count < (batch_size * world if drop_last else world)
        return
    assert len(together) == (count // (batch_size * world) * batch_size * world if drop_last else count)
    sizes = {len(keys) for plan in plans for keys in plan}
    assert sizes == {batch_size} if drop_last else max(sizes) <= batch_size + 1
    assert min(sizes) >= 1
    single = list(_BatchSampler(tuple(range(count)), batch_size * world, 1, 2, shuffle, drop_last, 0, 1))
    if drop_last:
        for step, keys in enumerate(single):
            assert {key for plan in plans for key in plan[step]} == set(keys)


def test_subsets_keep_to_their_indices(dataset):
    plan = list(_BatchSampler((4, 9, 2), 2, 0, 0, True, False, 0, 1))
    assert {index for keys in plan for _, index in keys} == {2, 4, 9}
    with pytest.raises(ValueError, match="index 11: "):
        load(dataset, indices=[0, 11])


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 12, "drop_last": True},
        {"indices": []},
        {"world": 12},
        {"batch_size": 4, "world": 3, "drop_last": True},
    ],
)
def test_too_few_images_are_an_error_instead_of_an_empty_epoch(dataset, changes: dict):
    with pytest.raises(UserError, match=r"rectangles train: \d+ images are fewer than"):
        load(dataset, **changes)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"rank": 1}, {"workers": -1}])
def test_impossible_arguments_are_refused(dataset, changes: dict):
    with pytest.raises(ValueError, match="invalid batch size"):
        load(dataset, **changes)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_the_same_one_line_error_from_a_worker(make_folder, write, workers: int):
    root = make_folder()
    (root / "train" / "images" / "im1.png").write_bytes(b"junk")
    dataset = open_dataset(load_data_config(f"folder:{root}"), "train")
    loader = load(dataset, eval_transform(RANDOM), workers=workers, batch_size=3)
    with pytest.raises(UserError, match=r"im1\.png: not a readable image") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    loader.close()


def test_images_of_two_sizes_in_a_batch_are_an_error(make_folder, write, picture):
    root = make_folder()
    write(root / "train" / "images" / "im2.png", picture(0, (9, 9)))
    write(root / "train" / "labels" / "im2.png", np.zeros((9, 9), np.uint8))
    dataset = open_dataset(load_data_config(f"folder:{root}"), "train")
    with pytest.raises(UserError, match=r"im2\.png: 9x9 pixels, but train.images.im0\.png is 14x10"):
        list(load(dataset, eval_transform(RANDOM), shuffle=False))
    assert len(list(load(dataset, eval_transform(RANDOM), batch_size=1))) == 3


def test_the_cache_survives_pickling_empty(dataset):
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    for index in (0, 10):
        assert torch.equal(copy[index][0], dataset[index][0])


def test_forked_workers_fill_the_shared_cache():
    dataset = open_dataset(DataConfig(dataset="rectangles", size=(16, 16), images={"train": 4}, cache=True), "train")
    loader = load(dataset, eval_transform(RANDOM), workers=1, batch_size=1)
    list(loader)
    loader.close()
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("workers share memory only when they are forked")
    assert all(dataset._cache.get(index) is not None for index in range(4))


@given(count=st.integers(2, 300), seed=st.integers(0, 2**31))
def test_halves_are_disjoint_cover_all_and_are_seeded(count: int, seed: int):
    first, second = split_halves(count, seed)
    assert sorted(first + second) == list(range(count))
    assert 0 <= len(first) - len(second) <= 1
    assert split_halves(count, seed) == (first, second)


def test_halves_differ_by_seed_and_need_two_images():
    assert split_halves(100, 0) != split_halves(100, 1)
    with pytest.raises(UserError, match="expected at least 2"):
        split_halves(1, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_worker_is_one_line_where_the_next_batch_is_awaited(dataset, number):
    stream = load(dataset, workers=1)
    running = iter(stream)
    next(running)
    for process in multiprocessing.active_children():
        os.kill(process.pid, number)
    with pytest.raises(WorkerDied) as caught:
        list(running)
    stream.close()
    assert caught.value.terminated == (number == signal.SIGTERM)
    assert "\n" not in str(caught.value)
    assert number.name in str(caught.value)


def _without_shared_memory(image, mask):
    """A transform after which its worker can share no batch: the limit on the size of files holds there too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return eval_transform(AugmentationConfig())(image, mask)


def test_a_worker_without_shared_memory_sends_through_a_pipe(dataset):
    stream = load(dataset, _without_shared_memory, workers=1)
    assert_same(stream, load(dataset, eval_transform(AugmentationConfig())))
    stream.close()
