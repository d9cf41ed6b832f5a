"""Training discrete networks: losses, schedules, metrics and the retraining loop."""

from __future__ import annotations

from dnas.training.config import RetrainConfig
from dnas.training.determinism import deterministic_algorithms, fix_workspace
from dnas.training.device import (
    autocast,
    end_processes,
    make_accelerator,
    make_scaler,
    peak_memory_mb,
    reset_peak_memory,
    resolve_precision,
    tuned_convolutions,
)
from dnas.training.inference import InferenceConfig
from dnas.training.losses import OhemCrossEntropy, distillation_loss, resize_logits
from dnas.training.metrics import Evaluation, SegmentationMetrics, evaluate
from dnas.training.optimizers import make_sgd, set_learning_rate
from dnas.training.retrain import RetrainResult, is_channels_last, retrain
from dnas.training.schedules import cosine_decay, exponential_decay, linear_warm_up, poly_decay

__all__ = [
    "Evaluation",
    "InferenceConfig",
    "OhemCrossEntropy",
    "RetrainConfig",
    "RetrainResult",
    "SegmentationMetrics",
    "autocast",
    "cosine_decay",
    "deterministic_algorithms",
    "distillation_loss",
    "end_processes",
    "evaluate",
    "exponential_decay",
    "fix_workspace",
    "is_channels_last",
    "linear_warm_up",
    "make_accelerator",
    "make_scaler",
    "make_sgd",
    "peak_memory_mb",
    "poly_decay",
    "reset_peak_memory",
    "resize_logits",
    "resolve_precision",
    "retrain",
    "set_learning_rate",
    "tuned_convolutions",
]
