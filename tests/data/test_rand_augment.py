"""RandAugment for image and mask."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dnas.config import parse_config
from dnas.data import AugmentationConfig, train_transform
from dnas.data.rand_augment import REGSEG_OPERATORS, RandAugmentConfig, change_colours, rand_augment
from dnas.errors import UserError


def _pair():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(24, 32, dtype=torch.uint8)
    mask[8:16, 8:24] = 1
    return tv_tensors.Image(image), tv_tensors.Mask(mask)


@pytest.mark.parametrize("operator", [name for name in REGSEG_OPERATORS if name != "rotate"])
def test_colours_change_as_in_torchvision_and_labels_stay(operator):
    image, mask = _pair()
    references = {
        "auto_contrast": lambda x, _: F.autocontrast(x),
        "equalize": lambda x, _: F.equalize(x),
        "color": F.adjust_saturation,
        "contrast": F.adjust_contrast,
        "brightness": F.adjust_brightness,
        "sharpness": F.adjust_sharpness,
    }
    changed = change_colours(image, operator, 1.18)
    assert (changed.int() - references[operator](image, 1.18).int()).abs().max() <= 1
    assert changed.dtype == torch.uint8
    config = RandAugmentConfig(count=1, magnitude=0.2, operators=(operator,))
    torch.manual_seed(1)
    found, labels = rand_augment(image, mask, config, (1, 2, 3))
    assert isinstance(found, tv_tensors.Image)
    assert torch.equal(labels, mask)
    assert any(torch.equal(found, change_colours(image, operator, factor)) for factor in (0.82, 1.18))


def test_a_rotation_turns_both():
    image, mask = _pair()
    config = RandAugmentConfig(count=1, magnitude=1.0, operators=("rotate",))
    torch.manual_seed(0)
    found, labels = rand_augment(image, mask, config, (1, 2, 3))
    corner = labels == 255
    assert corner.any()
    assert not torch.equal(labels, mask)
    assert 0.7 < (labels == 1).sum() / (mask == 1).sum() < 1.3
    outside = torch.tensor([1, 2, 3], dtype=torch.uint8)
    assert torch.equal(found[:, 0, 0], outside)
    assert labels[0, 0] == 255


def test_all_operators_are_drawn_by_torchs_generator():
    image, mask = _pair()
    transform = train_transform(AugmentationConfig(rand_augment=RandAugmentConfig(), flip=0.0))
    results = []
    for seed in [*range(12), 0]:
        torch.manual_seed(seed)
        results.append(transform(image, mask)[0])
    assert torch.equal(results[0], results[-1])
    assert len({float(result.sum()) for result in results}) > 8


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"operators.0: given \"shear\""):
        parse_config(RandAugmentConfig, {"operators": ["shear"]}, "x")
