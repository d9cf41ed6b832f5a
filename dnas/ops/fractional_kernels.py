"""The Triton kernels of the fractional-dilation convolution: they interpolate while they load.

Imported only where Triton is installed and the tensors are on a CUDA device (or under Triton's interpreter). Nothing
but the result is written to memory, and the rate stays on the device, so nothing waits for it.

All tensors are addressed by strides, so any memory format will do. A tap at the distance d reads (1 - f) v[floor d] +
f v[floor d + 1] with f = d - floor d, on both axes.
"""
# Triton compiles these functions itself: their parameters are pointers and sizes, which have no Python types.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rate(rate_pointer):
    """The rate, 1 in place of a bad one, and whether it is good: finite and at least 1."""
    rate = tl.load(rate_pointer)
    good = (rate >= 1.0) & (rate < float("inf"))
    # A tap further out than any image reads only zeros, and its distance must fit an integer.
    return tl.where(good, tl.minimum(rate, 1.0e6), 1.0), good


@triton.jit
def load_corner(
    base, y, x, height, width, stride_y, stride_x, spread, channel_offset, channel_mask, TRANSPOSED: tl.constexpr
):
    """Values (positions, channels) at row y and column x, zero beside the map.

    Transposed, (y, x) counts in pixels of the convolution's input, and only every ``spread``-th is in the map.
    """
    inside = (y >= 0) & (x >= 0)
    if TRANSPOSED:
        inside = inside & (y % spread == 0) & (x % spread == 0)
        y = y // spread
        x = x // spread
    inside = inside & (y < height) & (x < width)
    offset = y * stride_y + x * stride_x
    mask = inside[:, None] & channel_mask[None, :]
    return tl.load(base + offset[:, None] + channel_offset[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def contract_kernel(
    source,
    weight,
    result,
    rate_pointer,
    source_height,
    source_width,
    result_width,
    positions,
    groups,
    in_channels,
    out_channels,
    spread,
    source_stride_n,
    source_stride_c,
    source_stride_y,
    source_stride_x,
    result_stride_n,
    result_stride_c,
    result_stride_y,
    result_stride_x,
    weight_stride_group,
    weight_stride_in,
    weight_stride_out,
    KERNEL: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The convolution, or (TRANSPOSED) its gradient with respect to the input, for a block of positions of one image.

    ``in_channels`` and ``out_channels`` (of one group) are those of the source that is read and of the result.
    """
    rate, good = load_rate(rate_pointer)
    image = (tl.program_id(1) // groups).to(tl.int64)
    group = tl.program_id(1) % groups
    position = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    row = position // result_width
    column = position % result_width
    out = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    source_base = source + image * source_stride_n + group * in_channels * source_stride_c
    weight_base = weight + group * weight_stride_group
    half = KERNEL // 2
    total = tl.zeros((BLOCK_POSITIONS, BLOCK_OUT), dtype=tl.float32)
    for tap in range(KERNEL * KERNEL):
        distance_y = (tap // KERNEL - half) * rate
        distance_x = (tap % KERNEL - half) * rate
        low_y = tl.floor(distance_y)
        low_x = tl.floor(distance_x)
        part_y = distance_y - low_y
        part_x = distance_x - low_x
        if TRANSPOSED:
            y = row - low_y.to(tl.int32)
            x = column - low_x.to(tl.int32)
            step = -1
        else:
            y = row * spread + low_y.to(tl.int32)
            x = column * spread + low_x.to(tl.int32)
            step = 1
        for start in range(0, in_channels, BLOCK_IN):
            channel = start + tl.arange(0, BLOCK_IN)
            mask = channel < in_channels
            offset = channel * source_stride_c
            # fmt: off
            v00 = load_corner(source_base, y, x, source_height, source_width, source_stride_y, source_stride_x,
                              spread, offset, mask, TRANSPOSED)
            v01 = load_corner(source_base, y, x + step, source_height, source_width, source_stride_y, source_stride_x,
                              spread, offset, mask, TRANSPOSED)
            v10 = load_corner(source_base, y + step, x, source_height, source_width, source_stride_y, source_stride_x,
                              spread, offset, mask, TRANSPOSED)
            v11 = load_corner(source_base, y + step, x + step, source_height, source_width, source_stride_y,
                              source_stride_x, spread, offset, mask, TRANSPOSED)
            # fmt: on
            upper = v00 + part_x * (v01 - v00)
            lower = v10 + part_x * (v11 - v10)
            values = upper + part_y * (lower - upper)
            weights = tl.load(
                weight_base + tap + channel[:, None] * weight_stride_in + out[None, :] * weight_stride_out,
                mask=mask[:, None] & (out < out_channels)[None, :],
                other=0.0,
            )
            if BLOCK_IN == 1:
                total += values * weights.to(tl.float32)
            else:
                total += tl.dot(values.to(weights.dtype), weights, input_precision=PRECISION)
    total = tl.where(good, total, float("nan"))
    target = result + image * result_stride_n + (group * out_channels + out)[None, :] * result_stride_c
    target += (row * result_stride_y + column * result_stride_x)[:, None]
    mask = (position < positions)[:, None] & (out < out_channels)[None, :]
    tl.store(target, total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def weight_kernel(
    source,
    grad,
    weight,
    grad_weight,
    grad_rate,
    rate_pointer,
    source_height,
    source_width,
    grad_width,
    positions,
    images,
    groups,
    in_channels,
    out_channels,
    spread,
    blocks_per_split,
    source_stride_n,
    source_stride_c,
    source_stride_y,
    source_stride_x,
    grad_stride_n,
    grad_stride_c,
    grad_stride_y,
    grad_stride_x,
    KERNEL: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    OF_RATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of one tap's weights, for a share of all positions, and the tap's share of the rate's gradient.

    ``grad_weight`` is (splits, O, C / groups, taps) and ``grad_rate`` one value a program, both float32, to be summed
    over the splits and the programs: without atomics, so that two runs agree. The rate moves the tap by its index, so
    its gradient is the sum of weights times the same product with the slope of the interpolation.
    """
    rate, good = load_rate(rate_pointer)
    in_blocks = tl.cdiv(in_channels, BLOCK_IN)
    tap = tl.program_id(0) // in_blocks
    channel = (tl.program_id(0) % in_blocks) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out_blocks = tl.cdiv(out_channels, BLOCK_OUT)
    group = tl.program_id(1) // out_blocks
    out = (tl.program_id(1) % out_blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    split = tl.program_id(2)
    half = KERNEL // 2
    index_y = tap // KERNEL - half
    index_x = tap % KERNEL - half
    low_y = tl.floor(index_y * rate)
    low_x = tl.floor(index_x * rate)
    part_y = index_y * rate - low_y
    part_x = index_x * rate - low_x
    channel_mask = channel < in_channels
    out_mask = out < out_channels
    channel_offset = (group * in_channels + channel) * source_stride_c
    out_offset = (group * out_channels + out) * grad_stride_c
    blocks = tl.cdiv(positions, BLOCK_POSITIONS)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    slope_total = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    first = split * blocks_per_split
    for block in range(first, tl.minimum(first + blocks_per_split, blocks * images)):
        image = (block // blocks).to(tl.int64)
        position = (block % blocks) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
        row = position // grad_width
        column = position % grad_width
        y = row * spread + low_y.to(tl.int32)
        x = column * spread + low_x.to(tl.int32)
        base = source + image * source_stride_n
        # fmt: off
        v00 = load_corner(base, y, x, source_height, source_width, source_stride_y, source_stride_x,
                          spread, channel_offset, channel_mask, False)
        v01 = load_corner(base, y, x + 1, source_height, source_width, source_stride_y, source_stride_x,
                          spread, channel_offset, channel_mask, False)
        v10 = load_corner(base, y + 1, x, source_height, source_width, source_stride_y, source_stride_x,
                          spread, channel_offset, channel_mask, False)
        v11 = load_corner(base, y + 1, x + 1, source_height, source_width, source_stride_y, source_stride_x,
                          spread, channel_offset, channel_mask, False)
        # fmt: on
        upper = v00 + part_x * (v01 - v00)
        lower = v10 + part_x * (v11 - v10)
        values = upper + part_y * (lower - upper)
        offset = (row * grad_stride_y + column * grad_stride_x)[:, None] + out_offset[None, :]
        mask = (position < positions)[:, None] & out_mask[None, :]
        passed = tl.load(grad + image * grad_stride_n + offset, mask=mask, other=0.0)
        if OF_RATE:
            slope_x = (v01 - v00) + part_y * ((v11 - v10) - (v01 - v00))
            slopes = index_y * (lower - upper) + index_x * slope_x
        if BLOCK_IN == 1 and BLOCK_OUT == 1:
            total += tl.sum(passed.to(tl.float32) * values, axis=0)[:, None]
            if OF_RATE:
                slope_total += tl.sum(passed.to(tl.float32) * slopes, axis=0)[:, None]
        else:
            flipped = tl.trans(passed)
            total += tl.dot(flipped, values.to(passed.dtype), input_precision=PRECISION)
            if OF_RATE:
                slope_total += tl.dot(flipped, slopes.to(passed.dtype), input_precision=PRECISION)
    total = tl.where(good, total, float("nan"))
    taps = KERNEL * KERNEL
    offset = ((group * out_channels + out)[:, None] * in_channels + channel[None, :]) * taps + tap
    mask = out_mask[:, None] & channel_mask[None, :]
    tl.store(grad_weight + split.to(tl.int64) * groups * out_channels * in_channels * taps + offset, total, mask=mask)
    if OF_RATE:
        weights = tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
        share = tl.where(good, tl.sum(tl.sum(slope_total * weights, axis=1), axis=0), float("nan"))
        program = (split * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
        tl.store(grad_rate + program, share)
