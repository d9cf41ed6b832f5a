"""Class weights of the cross-entropy."""

import math

import pytest
import torch
from torch.nn import functional as F

from dnas.config import parse_config
from dnas.data import IGNORE_LABEL, DataConfig, open_dataset
from dnas.errors import UserError
from dnas.training import RetrainConfig
from dnas.training.class_weights import class_shares, class_weights
from dnas.training.losses import OhemCrossEntropy


class Masks:
    """Images of one row, with the given labels."""

    name, split = "masks", "train"

    def __init__(self, masks, num_classes):
        self._masks = masks
        self.labels = type("Labels", (), {"num_classes": num_classes})

    def __len__(self):
        return len(self._masks)

    def __getitem__(self, index):
        mask = torch.tensor([self._masks[index]], dtype=torch.uint8)
        return torch.zeros(3, 1, mask.shape[1], dtype=torch.uint8), mask


def test_shares_are_of_labelled_pixels():
    dataset = Masks([[0, 0, 1, 255], [0, 2, 255, 255]], 4)
    assert class_shares(dataset).tolist() == [3 / 5, 1 / 5, 1 / 5, 0]
    assert class_shares(dataset, images=1).tolist() == [2 / 3, 1 / 3, 0, 0]
    assert class_weights("none", dataset) is None


def test_the_rules():
    dataset = Masks([[0, 0, 0, 0, 0, 1, 1, 1, 2, 2]], 4)
    enet = [1 / math.log(1.02 + share) for share in (0.5, 0.3, 0.2, 0.0)]
    assert class_weights("enet", dataset).tolist() == pytest.approx([4 * one / sum(enet) for one in enet])
    median = [0.3 / 0.5, 1.0, 0.3 / 0.2, 10.0]
    found = class_weights("median_frequency", dataset)
    assert found.tolist() == pytest.approx([4 * one / sum(median) for one in median])
    assert class_weights((1.0, 2.0, 0.0, 3.0), dataset).tolist() == [1, 2, 0, 3]


def test_shares_of_a_generated_dataset_equal_a_count():
    dataset = open_dataset(DataConfig(dataset="rectangles", size=(32, 48), images={"train": 5}), "train")
    labels = torch.stack([mask for _, mask in dataset]).long()
    labels = labels[labels != IGNORE_LABEL]
    counted = torch.bincount(labels, minlength=dataset.labels.num_classes).double()
    assert torch.equal(class_shares(dataset), counted / counted.sum())


@pytest.mark.parametrize("threshold", [None, 0.5, 0.01])
def test_the_loss_is_the_weighted_mean_over_hard_pixels(threshold):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 5), generator=generator)
    labels[0, 0] = IGNORE_LABEL
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    loss = OhemCrossEntropy(threshold, 1 / 8, class_weights=weights)(logits, labels)
    (found,) = torch.autograd.grad(loss, logits)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none")
    valid = labels != IGNORE_LABEL
    limit = -1.0 if threshold is None else -math.log(threshold)
    hard = valid & (losses > limit)
    kept = math.floor(valid.sum().item() / 8)
    if hard.sum() < kept:
        hard = valid & (losses >= losses[valid].topk(kept).values[-1])
    expected = F.cross_entropy(logits, labels.masked_fill(~hard, IGNORE_LABEL), weights, ignore_index=IGNORE_LABEL)
    assert torch.allclose(loss, expected)
    assert torch.allclose(found, torch.autograd.grad(expected, logits)[0])


def test_pixels_of_classes_without_weight_alone_give_no_loss():
    criterion = OhemCrossEntropy(None, class_weights=torch.tensor([1.0, 0.0]))
    assert criterion(torch.randn(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.int64)).item() == 0
    assert criterion.state_dict() == {}


def test_mistakes():
    dataset = Masks([[0, 1]], 2)
    with pytest.raises(UserError, match="given 3 weights, masks has 2 classes; give one weight for each"):
        class_weights((1.0, 1.0, 1.0), dataset)
    with pytest.raises(UserError, match="no pixel is labelled"):
        class_weights("enet", Masks([[255, 255]], 2))
    with pytest.raises(UserError, match="class_weights"):
        parse_config(RetrainConfig, {"class_weights": "fair"}, "x")
    assert parse_config(RetrainConfig, {"class_weights": [1, 2.5]}, "x").class_weights == (1.0, 2.5)
