from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dnas.config import parse_config
from dnas.data import IGNORE_LABEL, AugmentationConfig, eval_transform, train_transform
from dnas.data.colours import adjust_contrast
from dnas.data.transforms import _window
from dnas.errors import UserError


def coded(height: int, width: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image whose red channel is its mask, which reveals a misalignment of the two."""
    mask = (torch.arange(height)[:, None] // 4 * 16 + torch.arange(width) // 4).to(torch.uint8)
    return tv_tensors.Image(mask.repeat(3, 1, 1)), tv_tensors.Mask(mask)


def plain(**changes) -> AugmentationConfig:
    return AugmentationConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **changes)


def test_normalisation_is_the_formula():
    image, mask = coded(8, 12)
    out, labels = eval_transform(AugmentationConfig())(image, mask)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(out, (image.as_subclass(torch.Tensor) / 255 - mean) / std)
    assert out.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert type(out) is type(labels) is torch.Tensor
    assert torch.equal(labels, mask.as_subclass(torch.Tensor).long())


def test_without_randomness_training_equals_evaluation():
    pair = coded(8, 12)
    config = AugmentationConfig(flip=0.0)
    for one, other in zip(train_transform(config)(*pair), eval_transform(config)(*pair), strict=True):
        assert torch.equal(one, other)


def test_a_certain_flip_mirrors_both():
    pair = coded(8, 12)
    image, labels = train_transform(plain(flip=1.0))(*pair)
    assert torch.equal(labels, pair[1].as_subclass(torch.Tensor).long().flip(-1))
    assert torch.equal((image * 255).round()[0].long(), labels)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**30), height=st.integers(8, 60), width=st.integers(8, 60), crop=st.integers(8, 70))
def test_crop_and_mask_stay_aligned_and_padding_is_ignored(seed: int, height: int, width: int, crop: int):
    torch.manual_seed(seed)
    image, labels = train_transform(plain(crop=(crop, crop)))(*coded(height, width))
    assert image.shape == (3, crop, crop)
    assert labels.shape == (crop, crop)
    seen = labels != IGNORE_LABEL
    assert int(seen.sum()) == min(height, crop) * min(width, crop)
    assert torch.equal((image * 255).round()[0].long()[seen], labels[seen])


def test_padding_is_the_mean_colour():
    image, labels = train_transform(AugmentationConfig(crop=(40, 40)))(*coded(8, 12))
    assert image[:, labels == IGNORE_LABEL].abs().max() < 0.5 / 255 / 0.22


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**30), low=st.floats(0.3, 1), extra=st.floats(0, 2))
def test_scaled_crops_keep_their_size_and_labels(seed: int, low: float, extra: float):
    torch.manual_seed(seed)
    image, mask = coded(32, 48)
    out, labels = train_transform(plain(crop=(24, 40), scale=(low, low + extra)))(image, mask)
    assert out.shape == (3, 24, 40)
    assert set(labels.unique().tolist()) <= {*mask.unique().tolist(), IGNORE_LABEL}
    assert 0 <= out.min() <= out.max() <= 1


def test_a_scaled_crop_equals_scaling_first_and_cropping_then():
    """The crop comes before resizing; away from its border the result is the same."""
    torch.manual_seed(0)
    smooth = F.gaussian_blur(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), [9, 9])
    pair = tv_tensors.Image(smooth), tv_tensors.Mask(torch.zeros(64, 64, dtype=torch.uint8))
    torch.manual_seed(3)
    out, _ = train_transform(plain(crop=(64, 64), scale=(2.0, 2.0), flip=0.0))(*pair)
    torch.manual_seed(3)
    torch.rand(())
    top, left = (int(torch.randint(65, ()).item()) for _ in range(2))
    whole = F.resize(smooth, [128, 128], antialias=True)[:, top : top + 64, left : left + 64] / 255
    assert (out - whole)[:, 4:-4, 4:-4].abs().mean() < 0.012


def test_without_a_crop_scaling_keeps_the_image_size():
    for scale in (0.5, 2.0):
        image, _ = train_transform(plain(scale=(scale, scale)))(*coded(32, 48))
        assert image.shape == (3, 32, 48)


@given(length=st.integers(1, 300), crop=st.integers(1, 300), scale=st.floats(0.05, 8))
def test_windows_lie_inside(length: int, crop: int, scale: float):
    start, cut, resized, before = _window(length, crop, scale)
    assert start >= 0
    assert cut >= 1
    assert start + cut <= length
    assert 1 <= resized <= crop
    assert 0 <= before <= crop - resized


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**30), scale=st.floats(1.0, 3.0))
def test_a_focused_crop_shows_its_class(seed: int, scale: float):
    torch.manual_seed(seed)
    image, mask = coded(32, 48)
    mask = tv_tensors.Mask(torch.zeros_like(mask))
    mask[seed % 31, seed % 47] = 7
    _, labels = train_transform(plain(crop=(8, 12), scale=(scale, scale))).focused(image, mask, 7)
    assert (labels == 7).any()
    _, other = train_transform(plain(crop=(8, 12))).focused(image, mask, 3)
    assert other.shape == (8, 12)


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.8])
def test_contrast_is_torchvisions(factor: float):
    image = torch.randint(0, 256, (3, 33, 47), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    difference = adjust_contrast(image, factor).int() - F.adjust_contrast(image, factor).int()
    assert difference.abs().max() <= 1


def test_colours_change_the_image_only():
    pair = coded(16, 16)
    config = plain(flip=0.0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    torch.manual_seed(1)
    image, labels = train_transform(config)(*pair)
    assert torch.equal(labels, pair[1].as_subclass(torch.Tensor).long())
    assert (image * 255 - pair[0].as_subclass(torch.Tensor)).abs().max() > 2


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"scale": [2.0, 1.0]}, "expected the smaller number first"),
        ({"scale": [0.0, 1.0]}, "scale.0"),
        ({"flip": 1.5}, "flip: given 1.5"),
        ({"hue": 0.6}, "hue: given 0.6"),
        ({"std": [0.2, 0.0, 0.2]}, "std.1"),
        ({"crop": [0, 5]}, "crop.0"),
    ],
)
def test_bad_augmentation_names_its_key(values: dict, part: str):
    with pytest.raises(UserError, match="mine") as caught:
        parse_config(AugmentationConfig, values, "mine")
    assert part in str(caught.value)
