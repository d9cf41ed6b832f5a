"""Several BatchNorms as one: of maps that lie side by side, followed by ReLU and a weight of each map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def joint_norm_act(x: Tensor, norms: Sequence[nn.BatchNorm2d], weights: Sequence[Tensor | None]) -> Tensor:
    """``weight_i * relu(norm_i(x_i))`` for the parts x_i of (N, sum of C_i, H, W), side by side as they came.

    The weights are scalars of at least zero, so that they go into the norms' scale and shift: relu(w y) = w relu(y).
    None is 1. (At exactly 0 the gradient of the weight is lost; a softmax has none there either.)
    """
    affine = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    result: Tensor = _JointNormAct.apply(x, norms, *weights, *affine)
    return result


class _JointNormAct(torch.autograd.Function):
    """One node instead of some ten: a supernet has hundreds of norms, and small maps take less time than nodes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norms: Sequence[nn.BatchNorm2d], *parameters: Tensor | None) -> Tensor:
        weights = parameters[: len(norms)]
        scale = _join([_times(norm.weight, weight) for norm, weight in zip(norms, weights, strict=True)])
        shift = _join([_times(norm.bias, weight) for norm, weight in zip(norms, weights, strict=True)])
        ctx.training, ctx.eps, ctx.widths = norms[0].training, norms[0].eps, [norm.num_features for norm in norms]
        if not ctx.training:
            statistics = _join([_mean(norm) for norm in norms]), _join([_variance(norm) for norm in norms])
            found = _normalise(x, scale, shift, statistics, training=False, momentum=0.0, eps=ctx.eps)
            ctx.statistics = statistics
        else:
            found = _normalise_batch(x, scale, shift, norms)
            ctx.statistics = (None, None)
        normed, mean, deviation, reserve, ctx.kind = found
        result: Tensor = normed.relu_()
        ctx.save_for_backward(x, result, scale, mean, deviation, reserve, *parameters)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, result, scale, mean, deviation, reserve, *parameters = ctx.saved_tensors
        to_x, to_scale, to_shift = torch.ops.aten._batch_norm_impl_index_backward(
            ctx.kind,
            x,
            torch.ops.aten.threshold_backward(gradient, result, 0),
            scale,
            *ctx.statistics,
            mean,
            deviation,
            ctx.training,
            ctx.eps,
            [ctx.needs_input_grad[0], *[any(ctx.needs_input_grad[2:])] * 2],
            reserve,
        )
        number = len(ctx.widths)
        if not any(ctx.needs_input_grad[2:]):
            return to_x, None, *[None] * (3 * number)
        to_weights: list[Tensor | None] = [None] * number
        to_affine: list[Tensor | None] = [None] * (2 * number)
        parts = zip(to_scale.split_with_sizes(ctx.widths), to_shift.split_with_sizes(ctx.widths), strict=True)
        for index, of_part in enumerate(parts):
            weight = parameters[index]
            if ctx.needs_input_grad[2 + index]:
                scale, shift = parameters[number + 2 * index : number + 2 * index + 2]
                to_weights[index] = (torch.dot(of_part[0], scale) + torch.dot(of_part[1], shift)).to(weight.dtype)
            for place, found in enumerate(of_part, start=2 * index):
                if ctx.needs_input_grad[2 + number + place]:
                    to_affine[place] = _times(found, weight)
        return to_x, None, *to_weights, *to_affine


def _normalise_batch(x: Tensor, scale: Tensor, shift: Tensor, norms: Sequence[nn.BatchNorm2d]) -> Any:
    """By the statistics of the batch, which the norms take into theirs."""
    first, own = norms[0], len(norms) == 1 and norms[0].momentum is not None
    if not first.track_running_stats:
        return _normalise(x, scale, shift, (None, None), training=True, momentum=0.0, eps=first.eps)
    if own:
        _counted(first)
        statistics = _mean(first), _variance(first)
        return _normalise(x, scale, shift, statistics, training=True, momentum=first.momentum, eps=first.eps)
    # Momentum 1 replaces what is there: afterwards these hold the mean and unbiased variance of this batch.
    mean, variance = scale.new_zeros(2, x.shape[1]).unbind()
    found = _normalise(x, scale, shift, (mean, variance), training=True, momentum=1.0, eps=first.eps)
    widths = [norm.num_features for norm in norms]
    parts = zip(norms, mean.split_with_sizes(widths), variance.split_with_sizes(widths), strict=True)
    for norm, new_mean, new_variance in parts:
        count = _counted(norm)
        momentum = 1.0 / float(count) if norm.momentum is None else norm.momentum  # None is a plain mean
        _mean(norm).lerp_(new_mean, momentum)
        _variance(norm).lerp_(new_variance, momentum)
    return found


def _normalise(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    statistics: tuple[Tensor | None, Tensor | None],
    *,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Any:
    """What ``F.batch_norm`` calls: the result, and for the backward pass mean, deviation, a buffer, and its kind."""
    return torch.ops.aten._batch_norm_impl_index(x, scale, shift, *statistics, training, momentum, eps, True)


def _counted(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked.add_(1)


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
