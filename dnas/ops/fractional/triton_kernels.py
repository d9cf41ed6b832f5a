"""The Triton kernels of the fractional-dilation convolution, an implicit GEMM that interpolates while loading.

Imported only where Triton is installed and the tensors are on a CUDA device (or under Triton's interpreter). No
intermediate map is written to memory, and the rate is read on the device, so the host does not synchronise.

All tensors are addressed by strides, so any memory format works. A tap at the offset d reads (1 - f) v[floor d] +
f v[floor d + 1] with f = d - floor d, on both axes.
"""
# Triton compiles these functions: their parameters are pointers and sizes, which have no Python types.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rate(rate_pointer):
    """The rate, replaced by 1 if it is invalid, and whether it is valid: finite and at least 1."""
    rate = tl.load(rate_pointer)
    is_valid = (rate >= 1.0) & (rate < float("inf"))
    # A tap outside the largest image reads only zeros at any rate; this limit keeps its offset within int32.
    return tl.where(is_valid, tl.minimum(rate, 1.0e6), 1.0), is_valid


@triton.jit
def load_pixels(
    base, y, x, height, width, stride_y, stride_x, conv_stride, channel_offset, channel_mask, TRANSPOSED: tl.constexpr
):
    """Load the values (positions, channels) at row y and column x, zero outside the map.

    If TRANSPOSED, the map is the output gradient, and (y, x) are pixels of the convolution's input: only every
    ``conv_stride``-th of them belongs to an output.
    """
    inside = (y >= 0) & (x >= 0)
    if TRANSPOSED:
        inside = inside & (y % conv_stride == 0) & (x % conv_stride == 0)
        y = y // conv_stride
        x = x // conv_stride
    inside = inside & (y < height) & (x < width)
    offset = y * stride_y + x * stride_x
    mask = inside[:, None] & channel_mask[None, :]
    return tl.load(base + offset[:, None] + channel_offset[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def convolution_kernel(
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
    conv_stride,
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
    KERNEL_SIZE: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The convolution, or (TRANSPOSED) its gradient with respect to the input, for a block of positions of one image.

    Reads ``source``, writes ``result``; ``in_channels`` and ``out_channels`` are theirs in one group. The grid is
    (blocks of positions, images x groups, blocks of output channels).
    """
    rate, is_valid = load_rate(rate_pointer)
    image = (tl.program_id(1) // groups).to(tl.int64)
    group = tl.program_id(1) % groups
    position = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    row = position // result_width
    column = position % result_width
    out_channel = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    source_base = source + image * source_stride_n + group * in_channels * source_stride_c
    weight_base = weight + group * weight_stride_group
    half = KERNEL_SIZE // 2
    accumulator = tl.zeros((BLOCK_POSITIONS, BLOCK_OUT), dtype=tl.float32)
    for tap in range(KERNEL_SIZE * KERNEL_SIZE):
        offset_y = (tap // KERNEL_SIZE - half) * rate
        offset_x = (tap % KERNEL_SIZE - half) * rate
        floor_y = tl.floor(offset_y)
        floor_x = tl.floor(offset_x)
        fraction_y = offset_y - floor_y
        fraction_x = offset_x - floor_x
        if TRANSPOSED:
            y = row - floor_y.to(tl.int32)
            x = column - floor_x.to(tl.int32)
            step = -1
        else:
            y = row * conv_stride + floor_y.to(tl.int32)
            x = column * conv_stride + floor_x.to(tl.int32)
            step = 1
        for start in range(0, in_channels, BLOCK_IN):
            channel = start + tl.arange(0, BLOCK_IN)
            mask = channel < in_channels
            offset = channel * source_stride_c
            # fmt: off
            v00 = load_pixels(source_base, y, x, source_height, source_width, source_stride_y, source_stride_x,
                              conv_stride, offset, mask, TRANSPOSED)
            v01 = load_pixels(source_base, y, x + step, source_height, source_width, source_stride_y, source_stride_x,
                              conv_stride, offset, mask, TRANSPOSED)
            v10 = load_pixels(source_base, y + step, x, source_height, source_width, source_stride_y, source_stride_x,
                              conv_stride, offset, mask, TRANSPOSED)
            v11 = load_pixels(source_base, y + step, x + step, source_height, source_width, source_stride_y,
                              source_stride_x, conv_stride, offset, mask, TRANSPOSED)
            # fmt: on
            upper = v00 + fraction_x * (v01 - v00)
            lower = v10 + fraction_x * (v11 - v10)
            values = upper + fraction_y * (lower - upper)
            weights = tl.load(
                weight_base + tap + channel[:, None] * weight_stride_in + out_channel[None, :] * weight_stride_out,
                mask=mask[:, None] & (out_channel < out_channels)[None, :],
                other=0.0,
            )
            if BLOCK_IN == 1:
                accumulator += values * weights.to(tl.float32)
            else:
                accumulator += tl.dot(values.to(weights.dtype), weights, input_precision=PRECISION)
    accumulator = tl.where(is_valid, accumulator, float("nan"))
    target = result + image * result_stride_n + (group * out_channels + out_channel)[None, :] * result_stride_c
    target += (row * result_stride_y + column * result_stride_x)[:, None]
    mask = (position < positions)[:, None] & (out_channel < out_channels)[None, :]
    tl.store(target, accumulator.to(result.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradient_kernel(
    source,
    grad_output,
    weight,
    partial_grad_weight,
    partial_grad_rate,
    rate_pointer,
    source_height,
    source_width,
    out_width,
    positions,
    images,
    groups,
    in_channels,
    out_channels,
    conv_stride,
    blocks_per_split,
    source_stride_n,
    source_stride_c,
    source_stride_y,
    source_stride_x,
    grad_stride_n,
    grad_stride_c,
    grad_stride_y,
    grad_stride_x,
    KERNEL_SIZE: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    NEEDS_RATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial gradients of the weight and of the rate, for one tap and one split of the positions (split-K).

    ``partial_grad_weight`` is (splits, O, C / groups, taps) and ``partial_grad_rate`` one value per program, both
    float32. The caller sums them over splits and programs: without atomics the result is deterministic. The offset of a
    tap is its index times the rate, so the rate's gradient is the sum of the weights times the same product with the
    derivatives of the interpolation. The grid is (taps x blocks of input channels, groups x blocks of output channels,
    splits).
    """
    rate, is_valid = load_rate(rate_pointer)
    in_blocks = tl.cdiv(in_channels, BLOCK_IN)
    tap = tl.program_id(0) // in_blocks
    channel = (tl.program_id(0) % in_blocks) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out_blocks = tl.cdiv(out_channels, BLOCK_OUT)
    group = tl.program_id(1) // out_blocks
    out_channel = (tl.program_id(1) % out_blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    split = tl.program_id(2)
    half = KERNEL_SIZE // 2
    index_y = tap // KERNEL_SIZE - half
    index_x = tap % KERNEL_SIZE - half
    floor_y = tl.floor(index_y * rate)
    floor_x = tl.floor(index_x * rate)
    fraction_y = index_y * rate - floor_y
    fraction_x = index_x * rate - floor_x
    channel_mask = channel < in_channels
    out_mask = out_channel < out_channels
    channel_offset = (group * in_channels + channel) * source_stride_c
    out_offset = (group * out_channels + out_channel) * grad_stride_c
    blocks = tl.cdiv(positions, BLOCK_POSITIONS)
    accumulator = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    slope_accumulator = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    first = split * blocks_per_split
    for block in range(first, tl.minimum(first + blocks_per_split, blocks * images)):
        image = (block // blocks).to(tl.int64)
        position = (block % blocks) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
        row = position // out_width
        column = position % out_width
        y = row * conv_stride + floor_y.to(tl.int32)
        x = column * conv_stride + floor_x.to(tl.int32)
        base = source + image * source_stride_n
        # fmt: off
        v00 = load_pixels(base, y, x, source_height, source_width, source_stride_y, source_stride_x,
                          conv_stride, channel_offset, channel_mask, False)
        v01 = load_pixels(base, y, x + 1, source_height, source_width, source_stride_y, source_stride_x,
                          conv_stride, channel_offset, channel_mask, False)
        v10 = load_pixels(base, y + 1, x, source_height, source_width, source_stride_y, source_stride_x,
                          conv_stride, channel_offset, channel_mask, False)
        v11 = load_pixels(base, y + 1, x + 1, source_height, source_width, source_stride_y, source_stride_x,
                          conv_stride, channel_offset, channel_mask, False)
        # fmt: on
        upper = v00 + fraction_x * (v01 - v00)
        lower = v10 + fraction_x * (v11 - v10)
        values = upper + fraction_y * (lower - upper)
        offset = (row * grad_stride_y + column * grad_stride_x)[:, None] + out_offset[None, :]
        mask = (position < positions)[:, None] & out_mask[None, :]
        grads = tl.load(grad_output + image * grad_stride_n + offset, mask=mask, other=0.0)
        if NEEDS_RATE:
            slope_x = (v01 - v00) + fraction_y * ((v11 - v10) - (v01 - v00))
            slopes = index_y * (lower - upper) + index_x * slope_x
        if BLOCK_IN == 1 and BLOCK_OUT == 1:
            accumulator += tl.sum(grads.to(tl.float32) * values, axis=0)[:, None]
            if NEEDS_RATE:
                slope_accumulator += tl.sum(grads.to(tl.float32) * slopes, axis=0)[:, None]
        else:
            transposed_grads = tl.trans(grads)
            accumulator += tl.dot(transposed_grads, values.to(grads.dtype), input_precision=PRECISION)
            if NEEDS_RATE:
                slope_accumulator += tl.dot(transposed_grads, slopes.to(grads.dtype), input_precision=PRECISION)
    accumulator = tl.where(is_valid, accumulator, float("nan"))
    taps = KERNEL_SIZE * KERNEL_SIZE
    offset = ((group * out_channels + out_channel)[:, None] * in_channels + channel[None, :]) * taps + tap
    mask = out_mask[:, None] & channel_mask[None, :]
    split_base = partial_grad_weight + split.to(tl.int64) * groups * out_channels * in_channels * taps
    tl.store(split_base + offset, accumulator, mask=mask)
    if NEEDS_RATE:
        weights = tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
        grad_rate = tl.sum(tl.sum(slope_accumulator * weights, axis=1), axis=0)
        program = (split * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
        tl.store(partial_grad_rate + program, tl.where(is_valid, grad_rate, float("nan")))
