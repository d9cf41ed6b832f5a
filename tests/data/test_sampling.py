"""Sampling rules: what they draw, and that draws have an address."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from dnas.data import AugmentationConfig, DataConfig, SamplingConfig, batches, open_dataset, train_transform
from dnas.data.batching import class_presence
from dnas.data.rand_augment import RandAugmentConfig
from dnas.data.sampling import draw_epoch, repeat_factors

#: Classes 0 everywhere, 1 in every second image, 2 in one image, 3 nowhere.
PRESENCE = torch.tensor([[True, row % 2 == 0, row == 5, False] for row in range(20)])


def test_class_uniform_gives_every_class_its_share():
    draws = draw_epoch(SamplingConfig(rule="class_uniform", share=0.5), PRESENCE, seed=1, epoch=0)
    assert len(draws) == 20
    assert Counter(focus for _, _, focus in draws) == {-1: 11, 0: 3, 1: 3, 2: 3}
    assert all(PRESENCE[row, focus] for row, _, focus in draws if focus >= 0)
    assert [row for row, _, focus in draws if focus == 2] == [5, 5, 5]
    # Images of a class come once before any comes again; so do the others.
    assert max(Counter(row for row, _, focus in draws if focus == 1).values()) == 1
    assert max(Counter(row for row, _, focus in draws if focus == -1).values()) == 1
    assert len({(row, draw) for row, draw, _ in draws}) == 20  # no two draws have the same random numbers


def test_class_balanced_draws_by_repeat_factor():
    factors = repeat_factors(PRESENCE, threshold=0.2)
    expected = torch.ones(20, dtype=torch.float64)
    expected[5] = (0.2 / 0.05) ** 0.5
    torch.testing.assert_close(factors, expected, rtol=1e-14, atol=0)
    config = SamplingConfig(rule="class_balanced", threshold=0.2)
    counts: Counter[int] = Counter()
    for epoch in range(400):
        counts.update(row for row, _, _ in draw_epoch(config, PRESENCE, seed=0, epoch=epoch))
    # Expected 400 * 20 * 2 / 21 = 762 with a deviation of 26.
    assert abs(counts[5] - 762) < 4 * 26


def test_an_epoch_may_have_every_image_several_times():
    draws = draw_epoch(SamplingConfig(repeat=3), torch.zeros(5, 0, dtype=torch.bool), seed=0, epoch=0)
    assert sorted(draws) == [(row, draw, -1) for row in range(5) for draw in range(3)]
    dataset = open_dataset(DataConfig(dataset="rectangles", size=(16, 32), images={"train": 5}), "train")
    options = {"batch_size": 4, "seed": 0, "epoch": 0, "shuffle": True, "sampling": SamplingConfig(repeat=3)}
    loader = batches(dataset, train_transform(AugmentationConfig()), drop_last=True, **options)
    assert len(loader) == len(list(loader)) == 3


@pytest.mark.parametrize("rule", ["class_uniform", "class_balanced"])
def test_draws_depend_on_seed_and_epoch_only(rule):
    config = SamplingConfig(rule=rule)
    first = draw_epoch(config, PRESENCE, seed=3, epoch=4)
    torch.rand(3)
    assert draw_epoch(config, PRESENCE, seed=3, epoch=4) == first
    assert draw_epoch(config, PRESENCE, seed=3, epoch=5) != first
    assert draw_epoch(config, PRESENCE, seed=4, epoch=4) != first


def test_presence_is_read_from_the_masks():
    dataset = open_dataset(DataConfig(dataset="rectangles", size=(16, 32), images={"train": 4}), "train")
    presence = class_presence(dataset, [2, 0])
    for row, index in enumerate([2, 0]):
        found = set(dataset[index][1].unique().tolist()) - {255}
        assert set(presence[row].nonzero().flatten().tolist()) == found


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("rule", ["class_uniform", "class_balanced"])
def test_ranks_and_workers_share_the_drawn_images(rule):
    dataset = open_dataset(DataConfig(dataset="rectangles", size=(24, 32), images={"train": 8}), "train")
    transform = train_transform(AugmentationConfig(crop=(16, 16), scale=(0.5, 2.0), rand_augment=RandAugmentConfig()))

    def load(**values):
        loader = batches(
            dataset,
            transform,
            **{"batch_size": 4, "seed": 1, "epoch": 2, "shuffle": True, "drop_last": True, **values},
            sampling=SamplingConfig(rule=rule, share=0.8),
        )
        found = [image for images, _ in loader for image in images]
        loader.close()
        return found

    single = load()
    assert all(torch.equal(a, b) for a, b in zip(single, load(workers=1), strict=True))
    halves = [load(batch_size=2, rank=rank, world=2) for rank in range(2)]
    together = [image for pair in zip(*halves, strict=True) for image in pair]
    assert all(torch.equal(a, b) for a, b in zip(single, together, strict=True))
    assert len({tuple(image.flatten()[:50].tolist()) for image in single}) == 8  # repeated images look different
