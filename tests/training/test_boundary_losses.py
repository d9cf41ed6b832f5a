"""Losses of boundaries against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from dnas.data import DataConfig, open_dataset
from dnas.training import RetrainConfig
from dnas.training.boundary_losses import boundary_loss, class_edges, details
from dnas.training.objective import Objective


def labels_of(seed: int) -> torch.Tensor:
    """Blocks of three classes with some ignored pixels, int64 (2, 12, 16)."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 3, (2, 3, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return blocks.masked_fill(torch.rand(2, 12, 16, generator=generator) < 0.1, 255)


def test_edges_are_pixels_near_another_class():
    labels = labels_of(0)
    found = class_edges(labels)
    for n in range(2):
        for y in range(12):
            for x in range(16):
                around = labels[n, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                classes = set(around[around != 255].tolist())
                assert bool(found[n, y, x]) == (labels[n, y, x] != 255 and len(classes) > 1)


def test_details_are_where_the_laplacian_is_large():
    """At strides 1 and 2; the third alone is below the threshold."""
    labels = labels_of(1)
    found = details(labels)
    padded = torch.nn.functional.pad(labels, (1, 1, 1, 1))

    def laplacian(n, y, x):
        return 9 * int(padded[n, y + 1, x + 1]) - int(padded[n, y : y + 3, x : x + 3].sum()) > 0

    for n in range(2):
        for y in range(12):
            for x in range(16):
                expected = laplacian(n, y, x) or laplacian(n, y // 2 * 2, x // 2 * 2)
                assert bool(found[n, y, x]) == expected


def by_hand(kind, logits, labels):
    edges = class_edges(labels) if kind == "balanced" else details(labels)
    pairs = [
        (1 / (1 + math.exp(-logit)), bool(edge))
        for logit, edge, label in zip(logits.flatten().tolist(), edges.flatten(), labels.flatten(), strict=True)
        if label != 255
    ]
    share = sum(edge for _, edge in pairs) / len(pairs)
    entropy = overlap = squares = 0.0
    for p, edge in pairs:
        weight = 1.0 if kind == "detail" else 1 - share if edge else share
        entropy -= weight * math.log(p if edge else 1 - p) / len(pairs)
        overlap += 2 * p * edge
        squares += p * p + edge
    return entropy if kind == "balanced" else entropy + 1 - (overlap + 1) / (squares + 1)


def test_a_head_of_one_channel_learns_boundaries():
    """In the objective of the retraining, with its weight; other heads learn classes."""
    config = RetrainConfig(auxiliary_weights=(0.4, 20.0), ohem_threshold=None, boundary_loss="detail")
    data = open_dataset(DataConfig(dataset="rectangles", size=(64, 64), images={"train": 2}), "train")
    labels, images = labels_of(3), torch.zeros(2, 3, 12, 16)
    logits, head = (torch.randn(2, data.labels.num_classes, 12, 16) for _ in range(2))
    edges = torch.randn(2, 1, 12, 16)
    objective = Objective(config, data, None, torch.device("cpu"))
    entropies = [torch.nn.functional.cross_entropy(one, labels, ignore_index=255) for one in (logits, head)]
    expected = entropies[0] + 0.4 * entropies[1] + 20 * boundary_loss("detail", edges, labels)
    torch.testing.assert_close(objective((logits, head, edges), images, labels).total, expected)


@pytest.mark.parametrize("kind", ["balanced", "detail"])
def test_losses_by_hand_and_without_labels(kind):
    labels = labels_of(2)
    logits = torch.randn(2, 1, 12, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = boundary_loss(kind, logits, labels)
    assert float(loss.detach()) == pytest.approx(by_hand(kind, logits[:, 0], labels), rel=1e-5)
    nothing = boundary_loss(kind, logits, torch.full_like(labels, 255))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert boundary_loss(kind, logits[..., ::4, ::4], labels).isfinite()
