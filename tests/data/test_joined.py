"""Train and validation images as one split."""

from __future__ import annotations

import pytest
import torch

from dnas.data import DataConfig, open_dataset


def test_trainval_is_train_and_then_val():
    config = DataConfig(dataset="rectangles", size=(16, 32), images={"train": 3, "val": 2})
    train, val, both = (open_dataset(config, split) for split in ("train", "val", "trainval"))
    assert (len(both), both.split, both.image_size, both.labels) == (5, "trainval", (16, 32), train.labels)
    for index in range(5):
        part, inner = (train, index) if index < 3 else (val, index - 3)
        assert both.file_name(index) == part.file_name(inner)
        assert all(torch.equal(mine, other) for mine, other in zip(both[index], part[inner], strict=True))
    assert both.fingerprint() != train.fingerprint()
    with pytest.raises(IndexError):
        both[5]
