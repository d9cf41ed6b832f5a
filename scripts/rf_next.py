"""Dilation rates by the local search of RF-Next (Gao et al. 2022), with the authors' hook in mmcv, to compare with.

Needs ``pip install mmcv-lite mmengine opencv-python-headless``. The hook runs every convolution at its rate and at a
smaller and a larger one with the same weights, and moves the rate to their weighted mean after each interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dnas.data import SegmentationDataset, batches, train_transform
from dnas.search import JointSearchConfig
from dnas.training import OhemCrossEntropy, resize_logits

_INTERVALS = 12
"""Updates of the rates over the search."""


def local_search(
    network: nn.Module,
    layers: Sequence[str],
    images: SegmentationDataset,
    config: JointSearchConfig,
    *,
    largest: int,
    seed: int,
) -> dict[str, int]:
    """The rates of ``layers`` after training ``network`` with the hook, by the epochs, SGD and loss of ``config``."""
    from mmcv.cnn.rfsearch import RFSearchHook

    others = [
        f"module.{name}"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and name not in layers
    ]
    settings: dict[str, Any] = {
        "step": 0,
        "max_step": _INTERVALS + 1,
        "search_interval": 1,
        "exp_rate": 0.5,
        "init_alphas": 0.01,
        "mmin": 1,
        "mmax": largest,
        "num_branches": 3,
        "skip_layer": others,
    }
    hook = RFSearchHook("search", {"search": settings}, verbose=False)
    hook.init_model(network)
    criterion = OhemCrossEntropy(config.ohem_threshold, config.ohem_min_fraction)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    steps = len(images) // config.batch_size
    every = max(1, config.epochs * steps // _INTERVALS)
    network.train()
    for epoch in range(config.epochs):
        stream = batches(
            images,
            train_transform(config.augmentation),
            batch_size=config.batch_size,
            seed=seed,
            epoch=epoch,
            shuffle=True,
            drop_last=True,
        )
        for step, (pixels, labels) in enumerate(stream, start=epoch * steps + 1):
            optimizer.zero_grad()
            criterion(resize_logits(network(pixels), labels.shape[-2:]), labels).backward()
            optimizer.step()
            if step % every == 0:
                hook.estimate_and_expand(network)
    found = {}
    for name in layers:
        layer: Any = network.get_submodule(name)
        layer.estimate_rates()
        found[name] = int(layer.op_layer.dilation[0])
    return found
