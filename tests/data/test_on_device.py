"""Images that are finished on a device are those that are finished where they are read."""

import pytest
import torch
from torchvision import tv_tensors

from dnas.data import (
    AugmentationConfig,
    DataConfig,
    SamplingConfig,
    batches,
    eval_transform,
    finish_device,
    open_dataset,
    train_transform,
)
from dnas.data.rand_augment import RandAugmentConfig

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")

CPU = torch.device("cpu")
ALL = {"crop": (24, 40), "scale": (0.5, 2.0), "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(DataConfig(dataset="rectangles", size=(32, 48), images={"train": 9}, cache=True), "train")


def load(dataset, transform, *, finish_on=CPU, **changes):
    options = {"batch_size": 4, "seed": 5, "epoch": 3, "shuffle": True, "drop_last": False, **changes}
    return list(batches(dataset, transform, finish_on=finish_on, **options))


def assert_alike(config, ours, theirs):
    """Equal labels; images that differ by one of 255 levels in at most a few values, where a product was rounded."""
    assert len(ours) == len(theirs) > 0
    level = 1 / 255 / min(config.std)
    for (images, labels), (other_images, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, other_labels)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        difference = (images - other_images).abs()
        assert difference.max() <= 1.01 * level
        assert (difference > 1e-5).double().mean() < 1e-3


@pytest.mark.parametrize(
    "values",
    [{}, ALL, {**ALL, "flip": 1.0, "hue": 0.0}, {"flip": 0.0, "contrast": 0.9}, {**ALL, "rand_augment": {"count": 2}}],
    ids=["flip", "all", "without hue", "contrast", "rand_augment"],
)
def test_training_images_are_those_of_the_cpu(dataset, values: dict):
    operators = {"rand_augment": RandAugmentConfig(**values["rand_augment"])} if "rand_augment" in values else {}
    config = AugmentationConfig(**{**values, **operators})
    transform = train_transform(config)
    assert_alike(config, load(dataset, transform), load(dataset, transform, finish_on=None))


def test_evaluation_gives_the_same_bits(dataset):
    transform = eval_transform(AugmentationConfig(), (16, 24))
    for one, other in zip(load(dataset, transform), load(dataset, transform, finish_on=None), strict=True):
        assert one[0].shape[-2:] == (16, 24)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_crops_of_a_class_and_other_channels(dataset):
    config = AugmentationConfig(crop=(8, 12), brightness=0.5)
    sampling = SamplingConfig(rule="class_uniform", share=1.0)
    ours, theirs = (load(dataset, train_transform(config), finish_on=on, sampling=sampling) for on in (CPU, None))
    assert_alike(config, ours, theirs)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_rgb(dataset, channels: int):
    config = AugmentationConfig(**ALL, flip=1.0, mean=(0.5,) * channels, std=(0.2,) * channels)
    transform = train_transform(config)
    images = torch.randint(0, 256, (2, channels, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mask = tv_tensors.Mask(torch.arange(960, dtype=torch.int64).view(24, 40).to(torch.uint8))
    whole, prepared = [], []
    for number, image in enumerate(images):
        for results, method in ((whole, transform), (prepared, transform.prepare)):
            torch.manual_seed(number)
            results.append(method(tv_tensors.Image(image), mask))
    finished = transform.finish(CPU)(*(torch.stack(parts) for parts in zip(*prepared, strict=True)))
    assert_alike(config, [finished], [tuple(torch.stack(parts) for parts in zip(*whole, strict=True))])


def test_workers_and_batches_do_not_change_a_bit(dataset):
    transform = train_transform(AugmentationConfig(**ALL))
    single, alone = load(dataset, transform), load(dataset, transform, batch_size=1)
    for one, other in zip(single, load(dataset, transform, workers=1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    images = torch.cat([images for images, _ in single])
    assert torch.equal(images, torch.cat([images for images, _ in alone]))


def test_workers_hand_over_bytes(dataset):
    for transform in (train_transform(AugmentationConfig(**ALL)), eval_transform(AugmentationConfig())):
        image, mask, numbers = transform.prepare(*dataset[0])
        assert {type(part) for part in (image, mask, numbers)} == {torch.Tensor}
        assert image.dtype == mask.dtype == torch.uint8


def test_the_default_is_the_gpu():
    gpu = torch.device("cuda", 0)
    assert finish_device(AugmentationConfig(), gpu) == gpu
    assert finish_device(AugmentationConfig(), CPU) is None
    assert finish_device(AugmentationConfig(on_device=False), gpu) is None
    assert finish_device(AugmentationConfig(on_device=True), CPU) == CPU


def test_other_transforms_cannot_be_finished(dataset):
    with pytest.raises(TypeError, match="a function cannot be finished"):
        load(dataset, lambda image, mask: (image, mask))
