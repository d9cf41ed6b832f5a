"""BatchNorm, ReLU and multiplication by a scalar as one autograd function for several concatenated maps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def fused_bn_relu(
    x: Tensor,
    norms: Sequence[nn.BatchNorm2d],
    weights: Sequence[Sequence[Tensor | None]],
    one: Tensor | None = None,
) -> Tensor:
    """``weight_i * relu(norm_i(x_i))`` for the maps x_i that are concatenated in (N, sum of C_i, H, W); same shape.

    ``weights`` holds for every map one weight per part of the batch. The parts are of equal size and are normalised by
    separate statistics, like separate batches. A weight is a non-negative scalar, so that it can be folded into scale
    and shift of the norm: relu(w y) = w relu(y). None means 1. (At exactly 0 the gradient of the weight is lost; that
    of a softmax is 0 there, too.) ``one``: a scalar 1 on the device, which is made if it is needed and not given.
    """
    affine = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    by_part = [weight for part in zip(*weights, strict=True) for weight in part]
    result: Tensor = _FusedBNReLU.apply(x, norms, one, *affine, *by_part)
    return result


class _FusedBNReLU(torch.autograd.Function):
    """One autograd node instead of about ten: on small maps, the overhead of nodes dominates the cost of norms."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norms: Sequence[nn.BatchNorm2d], one: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        scales, shifts = [norm.weight for norm in norms], [norm.bias for norm in norms]
        weights = parameters[2 * len(norms) :]
        ctx.training, ctx.eps, ctx.widths = norms[0].training, norms[0].eps, [norm.num_features for norm in norms]
        ctx.statistics = (None, None)
        if not ctx.training:
            ctx.statistics = _join([_mean(norm) for norm in norms]), _join([_variance(norm) for norm in norms])
        parts = _split(x, len(weights) // len(norms))
        plain, factors, scaled = _scaled(scales, shifts, weights, one)
        maps: list[Tensor] = []
        kept: list[Tensor | None] = list(plain)
        for part, factor, (scale, shift) in zip(parts, factors, scaled, strict=True):
            if ctx.training:
                found = _normalise_by_batch(part, scale, shift, norms)
            else:
                found = _normalise(part, scale, shift, ctx.statistics, training=False, momentum=0.0, eps=ctx.eps)
            normed, mean, deviation, reserve, ctx.kind = found
            maps.append(normed)
            kept += [scale, factor, mean, deviation, reserve]
        result = _join(maps).relu_()
        ctx.save_for_backward(x, result, *parameters, *kept)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, result, *saved = ctx.saved_tensors
        widths, needs = ctx.widths, ctx.needs_input_grad[3:]
        parameters, plain, kept = saved[: len(needs)], saved[len(needs) :][:2], saved[len(needs) + 2 :]
        parts, trained = len(kept) // 5, any(needs)
        of_affine: list[Sequence[Tensor]] = []
        gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        to_x: list[Tensor] = []
        to_parameters: list[Tensor | None] = [None] * len(needs)
        for index, (part, of_part) in enumerate(zip(_split(x, parts), _split(gradient, parts), strict=True)):
            scale, _, mean, deviation, reserve = kept[5 * index : 5 * index + 5]
            to_part, to_scale, to_shift = torch.ops.aten._batch_norm_impl_index_backward(
                ctx.kind,
                part,
                of_part,
                scale,
                *ctx.statistics,
                mean,
                deviation,
                ctx.training,
                ctx.eps,
                [ctx.needs_input_grad[0], trained, trained],
                reserve,
            )
            to_x.append(to_part)
            first = (2 + index) * len(widths)  # index of this part's weights, which come after scales and shifts
            if any(needs[first : first + len(widths)]):
                found = _weight_gradients(to_scale, to_shift, plain, widths)
                for place, to_weight in enumerate(found, start=first):
                    if needs[place]:
                        to_parameters[place] = to_weight.to(parameters[place].dtype)
            of_affine.append((to_scale, to_shift))
        affine: Sequence[Tensor] = ()
        if any(needs[: 2 * len(widths)]):
            affine, *others = _times(of_affine, kept[1::5])
            for terms in others:
                affine = torch._foreach_add(list(terms), list(affine))
        for at, of_maps in enumerate(affine):
            for place, of_norm in enumerate(of_maps.split_with_sizes(widths)):
                if needs[2 * place + at]:
                    to_parameters[2 * place + at] = of_norm
        return _join(to_x) if ctx.needs_input_grad[0] else None, None, None, *to_parameters


def _normalise_by_batch(x: Tensor, scale: Tensor, shift: Tensor, norms: Sequence[nn.BatchNorm2d]) -> Any:
    """Normalise by batch statistics and update the running statistics of the norms."""
    if x.numel() == x.shape[1]:  # as torch's own layers: the variance of a single value is 0
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    first, update_in_place = norms[0], len(norms) == 1 and norms[0].momentum is not None
    if not first.track_running_stats:
        return _normalise(x, scale, shift, (None, None), training=True, momentum=0.0, eps=first.eps)
    if update_in_place:
        _increment_batch_count(first)
        statistics = _mean(first), _variance(first)
        return _normalise(x, scale, shift, statistics, training=True, momentum=first.momentum, eps=first.eps)
    # With momentum 1 these are set to the mean and the unbiased variance of this batch.
    mean, variance = scale.new_zeros(2, x.shape[1]).unbind()
    found = _normalise(x, scale, shift, (mean, variance), training=True, momentum=1.0, eps=first.eps)
    widths = [norm.num_features for norm in norms]
    parts = zip(norms, mean.split_with_sizes(widths), variance.split_with_sizes(widths), strict=True)
    for norm, new_mean, new_variance in parts:
        count = _increment_batch_count(norm)
        momentum = 1.0 / float(count) if norm.momentum is None else norm.momentum  # None: cumulative average
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
    """The operator behind ``F.batch_norm``: returns output, saved mean and deviation, reserve, implementation index."""
    return torch.ops.aten._batch_norm_impl_index(x, scale, shift, *statistics, training, momentum, eps, True)


def _increment_batch_count(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked.add_(1)


def _mean(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _variance(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    return norm.running_var


def _weight_gradients(
    to_scale: Tensor, to_shift: Tensor, plain: Sequence[Tensor], widths: Sequence[int]
) -> Sequence[Tensor]:
    """The gradients of the weights of all maps, scalars; ``plain``: scale and shift of all maps."""
    if to_scale.is_cuda:
        return weight_gradients_together(to_scale, to_shift, plain, widths)
    scale, shift = plain
    of_maps = zip(*(tensor.split_with_sizes(widths) for tensor in (to_scale, scale, to_shift, shift)), strict=True)
    return [torch.dot(a, b) + torch.dot(c, d) for a, b, c, d in of_maps]


def weight_gradients_together(
    to_scale: Tensor, to_shift: Tensor, plain: Sequence[Tensor], widths: Sequence[int]
) -> Sequence[Tensor]:
    """The same by a few kernels for all maps instead of three for each, as launches are what a GPU would wait for."""
    runs = [(width, len(list(group))) for width, group in itertools.groupby(widths)]
    if len(runs) == 1:  # scalar products, as those of matrices
        ((width, count),) = runs
        rows = [terms.reshape(count, 1, width) for terms in (to_scale, to_shift)]
        columns = [values.reshape(count, width, 1) for values in plain]
        return torch.baddbmm(torch.bmm(rows[0], columns[0]), rows[1], columns[1]).flatten().unbind()
    product = torch.addcmul(to_scale * plain[0], to_shift, plain[1])
    blocks = product.split_with_sizes([width * count for width, count in runs])
    return [
        total
        for block, (width, count) in zip(blocks, runs, strict=True)
        for total in block.view(count, width).sum(1).unbind()
    ]


def _scaled(
    scales: Sequence[Tensor], shifts: Sequence[Tensor], weights: Sequence[Tensor | None], one: Tensor | None
) -> tuple[Sequence[Tensor], Sequence[Tensor | None], Sequence[Sequence[Tensor]]]:
    """Scale and shift of all maps, and for every part the weights of their channels and both times these.

    The weights of a part are None if all weights are 1, and one scalar for a single map of a single part.
    """
    parts, dtype = len(weights) // len(scales), scales[0].dtype
    if all(weight is None for weight in weights):
        plain = _affine(scales, shifts)
        return plain, [None] * parts, [plain] * parts
    if len(weights) == 1 and weights[0] is not None:
        plain, factor = (scales[0], shifts[0]), weights[0].to(dtype)
        return plain, [factor], _times([plain], [factor])
    if one is None and any(weight is None for weight in weights):
        one = scales[0].new_ones(())
    each = zip(weights, [*scales] * parts, strict=True)
    filled = [(one if weight is None else weight.to(dtype), len(scale)) for weight, scale in each]
    expanded = [weight.expand(width) for weight, width in filled if weight is not None]
    # Joined by one kernel, as each costs more than its work.
    rows = torch.cat([*scales, *shifts, *expanded]).view(2 + parts, -1)
    found = rows[:2] * rows[2:, None]
    return rows[:2].unbind(), rows[2:].unbind(), [pair.unbind() for pair in found.unbind()]


def _affine(scales: Sequence[Tensor], shifts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Scale and shift of all maps."""
    if len(scales) == 1:
        return scales[0], shifts[0]
    return torch.cat([*scales, *shifts]).view(2, -1).unbind()


def _times(pairs: Sequence[Sequence[Tensor]], factors: Sequence[Tensor | None]) -> Sequence[Sequence[Tensor]]:
    """Both tensors of each pair times the factor of its part, by one kernel. The factors are all None, or none is."""
    present = [factor for factor in factors if factor is not None]
    if not present:
        return pairs
    tensors = [tensor for pair in pairs for tensor in pair]
    by_tensor = present[0] if present[0].dim() == 0 else [factor for factor in present for _ in range(2)]
    found = iter(torch._foreach_mul(tensors, by_tensor))
    return list(zip(found, found, strict=True))


def _split(x: Tensor, parts: int) -> Sequence[Tensor]:
    return (x,) if parts == 1 else x.chunk(parts)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
