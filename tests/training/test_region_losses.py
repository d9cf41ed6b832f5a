"""Dice and Lovasz losses against their definitions, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from dnas.training.region_losses import dice_loss, lovasz_softmax, region_loss

IGNORE = 255


def _pixels(seed, pixels=7, classes=3):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(pixels, classes, generator=generator, dtype=torch.float64).softmax(1)
    return probabilities, torch.randint(classes, (pixels,), generator=generator)


@pytest.mark.parametrize("seed", range(4))
def test_dice_by_hand(seed):
    probabilities, truth = _pixels(seed)
    losses = []
    for label in sorted(set(truth.tolist())):
        overlap = sum(float(row[label]) for row, true in zip(probabilities, truth, strict=True) if true == label)
        sizes = float(probabilities[:, label].sum()) + int((truth == label).sum())
        losses.append(1 - (2 * overlap + 1) / (sizes + 1))
    assert float(dice_loss(probabilities, truth)) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_is_one_minus_iou_for_decided_pixels(seed):
    """The extension equals the set function where every probability is 0 or 1."""
    _, truth = _pixels(seed)
    _, guess = _pixels(seed + 100)
    decided = torch.nn.functional.one_hot(guess, 3).double()
    losses = []
    for label in sorted(set(truth.tolist())):
        union = ((truth == label) | (guess == label)).sum()
        losses.append(1 - float(((truth == label) & (guess == label)).sum() / union.double()))
    assert float(lovasz_softmax(decided, truth)) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_is_the_greatest_sum_over_all_orders(seed):
    """The extension of a submodular function is its support function (Lovasz 1983)."""
    probabilities, truth = _pixels(seed, pixels=5)
    losses = []
    for label in sorted(set(truth.tolist())):
        foreground = truth == label
        errors = (foreground.double() - probabilities[:, label]).abs()
        best = 0.0
        for order in itertools.permutations(range(5)):
            total, before, wrong = 0.0, 0.0, torch.zeros(5, dtype=torch.bool)
            for pixel in order:
                wrong[pixel] = True
                now = 1 - float((foreground & ~wrong).sum() / (foreground | wrong).sum().double())
                total += float(errors[pixel]) * (now - before)
                before = now
            best = max(best, total)
        losses.append(best)
    assert float(lovasz_softmax(probabilities, truth)) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("kind", ["dice", "lovasz"])
def test_logits_are_resized_and_ignored_pixels_have_no_gradient(kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (2, 5, 6), generator=generator)
    labels[:, 2:] = IGNORE
    (gradient,) = torch.autograd.grad(region_loss(kind, logits, labels), logits)
    assert gradient[:, :, :2].abs().sum() > 0
    assert gradient[:, :, 2:].abs().sum() == 0
    empty = torch.full((2, 10, 12), IGNORE)
    loss = region_loss(kind, logits, empty)
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0
    assert region_loss("none", logits, empty) == 0
