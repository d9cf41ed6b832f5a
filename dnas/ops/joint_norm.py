"""Several BatchNorms as one: of maps that lie side by side, followed by ReLU and a weight of each map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def joint_norm_act(
    x: Tensor, norms: Sequence[nn.BatchNorm2d], weights: Sequence[Tensor | None], *, update_statistics: bool = True
) -> Tensor:
    """``weight_i * relu(norm_i(x_i))`` for the parts x_i of (N, sum of C_i, H, W), side by side as they came.

    The weights are scalars of at least zero, so that they go into the norms' scale and shift: relu(w y) = w relu(y).
    None is 1. (At exactly 0 the gradient of the weight is lost; a softmax has none there either.)
    ``update_statistics``: whether training norms take these maps into their running statistics.
    """
    first = norms[0]
    scale = _join([_times(norm.weight, weight) for norm, weight in zip(norms, weights, strict=True)])
    shift = _join([_times(norm.bias, weight) for norm, weight in zip(norms, weights, strict=True)])
    if not first.training:
        mean, variance = _join([_mean(norm) for norm in norms]), _join([_variance(norm) for norm in norms])
        return F.relu_(F.batch_norm(x, mean, variance, scale, shift, training=False, eps=first.eps))
    # Momentum 1 replaces what is there: afterwards these hold the mean and unbiased variance of this batch.
    mean, variance = scale.detach().new_zeros(2, x.shape[1]).unbind()
    normed = F.batch_norm(x, mean, variance, scale, shift, training=True, momentum=1.0, eps=first.eps)
    if update_statistics:
        widths = [norm.num_features for norm in norms]
        means, variances = mean.split_with_sizes(widths), variance.split_with_sizes(widths)
        for norm, new_mean, new_variance in zip(norms, means, variances, strict=True):
            _update(norm, new_mean, new_variance)
    return F.relu_(normed)


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """The running statistics move as :class:`torch.nn.BatchNorm2d` moves them; momentum None is a plain mean."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    _mean(norm).lerp_(mean, momentum)
    _variance(norm).lerp_(variance, momentum)


def _mean(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _variance(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    return norm.running_var


def _times(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else values * weight.to(values.dtype)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
