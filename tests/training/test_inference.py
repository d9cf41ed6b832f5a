from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dnas.config import parse_config
from dnas.errors import UserError
from dnas.training import InferenceConfig
from dnas.training.inference import predict, window_starts

SIZE = (20, 32)


def _pointwise(images):
    """Logits that depend on each pixel alone, at full size."""
    return torch.cat([images, 2 - images[:, :1] ** 2], dim=1)


def _pooled(images):
    """Coarse logits that depend on the neighbourhood and on the side."""
    ramp = torch.linspace(0, 1, images.shape[-1]).expand(len(images), 1, images.shape[-2], -1)
    return F.avg_pool2d(torch.cat([images, ramp], dim=1), 4)


@pytest.fixture
def images():
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def test_without_options_the_networks_logits_are_passed_on(images):
    logits = _pooled(images)
    assert predict(lambda given: logits, images, SIZE, InferenceConfig()) is logits


def test_windows_over_a_pointwise_function_change_nothing(images):
    for window, stride in (((8, 8), None), ((8, 12), (3, 5)), ((16, 40), None), ((64, 64), (1, 1))):
        options = InferenceConfig(window=window, stride=stride)
        torch.testing.assert_close(predict(_pointwise, images, SIZE, options), _pointwise(images))


def test_overlapping_windows_are_averaged(images):
    """Two windows of 20x24 of an image of 20x32 share the columns 8 to 23."""
    options = InferenceConfig(window=(20, 24), stride=(20, 8))
    left, right = (
        F.interpolate(_pooled(part), size=(20, 24), mode="bilinear") for part in (images[..., :24], images[..., 8:])
    )
    expected = torch.zeros(2, 4, *SIZE)
    expected[..., :24] += left
    expected[..., 8:] += right
    expected[..., 8:24] /= 2
    torch.testing.assert_close(predict(_pooled, images, SIZE, options), expected)


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(20, 8, 5), (20, 8, 8), (21, 8, 6), (8, 8, 3), (5, 8, 3), (9, 8, 8)]
)
def test_every_pixel_is_in_a_window(length, window, stride):
    starts = window_starts(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, min(length, start + window))}
    assert covered == set(range(length))
    assert len(set(starts)) == len(starts)
    assert max(starts) == max(0, length - window)


def test_scales_and_flip_average_probabilities_at_the_size_of_the_labels(images):
    options = InferenceConfig(scales=(0.5, 1.0), flip=True)
    expected = torch.zeros(2, 4, 40, 64)
    for size in ((10, 16), SIZE):
        scaled = F.interpolate(images, size=size, mode="bilinear", antialias=True) if size != SIZE else images
        for mirrored in (False, True):
            logits = _pooled(scaled.flip(-1)).flip(-1) if mirrored else _pooled(scaled)
            expected += F.interpolate(logits, size=(40, 64), mode="bilinear").softmax(1) / 4
    torch.testing.assert_close(predict(_pooled, images, (40, 64), options), expected)


def test_the_prediction_with_flip_is_that_of_the_mirrored_image_mirrored(images):
    options = InferenceConfig(flip=True)
    mirrored = predict(_pooled, images.flip(-1), SIZE, options).flip(-1)
    torch.testing.assert_close(mirrored, predict(_pooled, images, SIZE, options))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stride": [4, 4]}, "there is no window"),
        ({"window": [16, 16], "stride": [17, 8]}, "pixels would be missed"),
        ({"scales": []}, "expected at least one"),
        ({"scales": [0]}, r"scales\.0"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        parse_config(InferenceConfig, values, "inference")
