"""Kernels in Triton of what follows a convolution; `fused_epilogue` checks and launches them.

Maps are (N, C, H, W) in channels-last memory, so (N, H, W, C) without gaps. A program computes a
tile of pixels and channels of one image. Importing this module needs Triton, which PyTorch's
wheels for CUDA bring along.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE_CHANNELS = 64
"""Every convolution of VGG has a multiple of it; 128 bytes, as much as memory is read at once."""

TILE_PIXELS = 64


@triton.jit
def _activated(x, bias, SIGNED_ZERO: tl.constexpr):
    """Return float32 values of what PyTorch gives for a sum in half precision and its ReLU."""
    # PyTorch adds the bias to the rounded output of cuDNN: in float32, and rounds again.
    total = (x.to(tl.float32) + bias.to(tl.float32)).to(x.dtype).to(tl.float32)
    # Both comparisons are false for NaN, which stays.
    negative = total < 0.0 if SIGNED_ZERO else total <= 0.0
    return tl.where(negative, 0.0, total)


@triton.jit
def _mark(finite, image, values, inside):
    """Store 0 in `finite` of the image, if a value in the tile is infinite or NaN."""
    bad = tl.where(inside & ~(values < float("inf")), 1, 0)
    # All programs that store here store the same, so that no order among them is needed.
    tl.store(finite + image, 0, mask=tl.max(tl.max(bad, 1), 0) > 0)


@triton.jit(do_not_specialize=["pixels", "tiles"])
def bias_relu(
    x,
    bias,
    out,
    finite,
    pixels,
    channels,
    tiles,
    CHECKED: tl.constexpr,
    SIGNED_ZERO: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
):
    """Add the bias and apply the ReLU; `out` may be `x`."""
    program = tl.program_id(0)
    blocks = channels // TILE_CHANNELS
    # 64 bits: a large batch has more than 2 ** 31 values.
    image = (program // blocks // tiles).to(tl.int64)
    start = program // blocks % tiles * TILE_PIXELS
    pixel = tl.arange(0, TILE_PIXELS)
    channel = program % blocks * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = (start + pixel < pixels)[:, None]
    offset = pixel[:, None] * channels + channel[None, :]
    base = (image * pixels + start) * channels
    loaded = tl.load(x + base + offset, mask=inside, other=0.0)
    values = _activated(loaded, tl.load(bias + channel)[None, :], SIGNED_ZERO)
    tl.store(out + base + offset, values.to(loaded.dtype), mask=inside)
    if CHECKED:
        _mark(finite, image, values, inside)


@triton.jit(do_not_specialize=["height", "width", "tiles"])
def bias_relu_pool(
    x,
    bias,
    out,
    finite,
    height,
    width,
    channels,
    tiles,
    CHECKED: tl.constexpr,
    SIGNED_ZERO: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
):
    """Add the bias, apply the ReLU and take the maxima of 2 x 2; pixels of a tile are of `out`."""
    program = tl.program_id(0)
    blocks = channels // TILE_CHANNELS
    pixels = (height // 2) * (width // 2)
    image = (program // blocks // tiles).to(tl.int64)
    pixel = program // blocks % tiles * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
    channel = program % blocks * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = (pixel < pixels)[:, None]
    added = tl.load(bias + channel)[None, :]
    row, column = pixel // (width // 2), pixel % (width // 2)
    corner = (image * height + 2 * row) * width + 2 * column
    largest = tl.full([TILE_PIXELS, TILE_CHANNELS], float("-inf"), tl.float32)
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            offset = ((corner + down * width + right) * channels)[:, None] + channel[None, :]
            loaded = tl.load(x + offset, mask=inside, other=0.0)
            values = _activated(loaded, added, SIGNED_ZERO)
            # As PyTorch does it: the first of equal ones, and NaN from whichever place.
            largest = tl.where((values > largest) | (values != values), values, largest)
    offset = ((image * pixels + pixel) * channels)[:, None] + channel[None, :]
    tl.store(out + offset, largest.to(out.dtype.element_ty), mask=inside)
    if CHECKED:
        _mark(finite, image, largest, inside)
