"""Images and labels: datasets of files, generated datasets, augmentation and batches.

In order: :func:`load_data_config` -> :func:`open_dataset` -> :func:`train_transform` -> :func:`batches`.
"""

from __future__ import annotations

from dnas.data.batching import Batch, Batches, batches
from dnas.data.config import DataConfig, load_data_config, preset_names
from dnas.data.dataset import SegmentationDataset, check_dataset
from dnas.data.labels import IGNORE_LABEL, Labels
from dnas.data.matching import class_order, match_classes
from dnas.data.opening import open_dataset
from dnas.data.sampling import SamplingConfig
from dnas.data.splitting import evenly_spaced, split_halves, split_parts
from dnas.data.transforms import (
    AugmentationConfig,
    Transform,
    eval_transform,
    finish_device,
    measured_statistics,
    train_transform,
)

__all__ = [
    "IGNORE_LABEL",
    "AugmentationConfig",
    "Batch",
    "Batches",
    "DataConfig",
    "Labels",
    "SamplingConfig",
    "SegmentationDataset",
    "Transform",
    "batches",
    "check_dataset",
    "class_order",
    "eval_transform",
    "evenly_spaced",
    "finish_device",
    "load_data_config",
    "match_classes",
    "measured_statistics",
    "open_dataset",
    "preset_names",
    "split_halves",
    "split_parts",
    "train_transform",
]
