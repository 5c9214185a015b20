"""A 3 x 3 depthwise convolution for cards, with channels last, forwards and backwards.

The library's kernels for it are slow, backwards above all; written out as nine shifted products it keeps the compiler busy for
minutes. As an operator of its own it is neither: it reads and writes every number once, and the compiler goes round it.
Needs Triton, which comes with PyTorch for CUDA.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHANNELS = 32, 64  # of a program's tile
ROUNDS = 32  # tiles that one program adds up for the kernels' gradient
SUMS = 10  # numbers a channel that it adds up: nine taps, and the bias


@triton.jit
def _shifted(at, p, c, tap, count, height, width, channels):
    """A tile of `at` (pixels, channels), moved by a tap's offset; zero beyond the picture's border."""
    down, right = tap // 3 - 1, tap % 3 - 1
    row, column = (p // width) % height + down, p % width + right
    inside = (p < count) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = (p + down * width + right)[:, None] * channels + c[None, :]
    return tl.load(at + place, mask=inside[:, None] & (c < channels)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _convolve(
    x, taps, bias, y, count, height, width, channels, TURNED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = c < channels
    total = tl.zeros((PIXELS, CHANNELS), tl.float32) + tl.load(bias + c, mask=known, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        if TURNED:
            weight = tl.load(taps + c * 9 + (8 - tap), mask=known, other=0.0)
        else:
            weight = tl.load(taps + c * 9 + tap, mask=known, other=0.0)
        total += _shifted(x, p, c, tap, count, height, width, channels) * weight.to(tl.float32)[None, :]
    place = p[:, None] * channels + c[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(p < count)[:, None] & known[None, :])


@triton.jit
def _add_up(
    x,
    gradient,
    sums,
    count,
    height,
    width,
    channels,
    ROUNDS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUMS: tl.constexpr,
):
    first = tl.program_id(0) * PIXELS * ROUNDS
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = c < channels
    for tap in tl.static_range(SUMS):
        total = tl.zeros((PIXELS, CHANNELS), tl.float32)
        for i in range(ROUNDS):
            p = first + i * PIXELS + tl.arange(0, PIXELS)
            place = p[:, None] * channels + c[None, :]
            g = tl.load(gradient + place, mask=(p < count)[:, None] & known[None, :], other=0.0).to(tl.float32)
            if tap < 9:
                g = g * _shifted(x, p, c, tap, count, height, width, channels)
            total += g
        tl.store(sums + (tl.program_id(0) * SUMS + tap) * channels + c, tl.sum(total, 0), mask=known)


def _blocks(x: Tensor, pixels: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    B, h, w, C = x.shape
    return (triton.cdiv(B * h * w, pixels), triton.cdiv(C, CHANNELS)), (B * h * w, h, w, C)


def _run(x: Tensor, taps: Tensor, bias: Tensor, turned: bool) -> Tensor:
    y = torch.empty_like(x)
    blocks, sizes = _blocks(x, PIXELS)
    _convolve[blocks](x, taps, bias, y, *sizes, TURNED=turned, PIXELS=PIXELS, CHANNELS=CHANNELS)
    return y


@torch.library.custom_op("moebius_lab::depthwise", mutates_args=())
def depthwise(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """The convolution with a border of zeros.

    Args:
        x: (B, h, w, C), contiguous.
        taps: (C, 9), contiguous: the kernels row by row.
        bias: (C,).

    Returns:
        (B, h, w, C) in the type of `x`; sums are float32.
    """
    return _run(x, taps, bias, False)


@depthwise.register_fake
def _(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("moebius_lab::depthwise_backward", mutates_args=())
def depthwise_backward(gradient: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the taps (C, 9) and of the bias (C,), the latter two in float32."""
    given = _run(gradient, taps, torch.zeros_like(taps[:, 0]), True)
    blocks, sizes = _blocks(x, PIXELS * ROUNDS)
    sums = torch.empty(blocks[0], SUMS, x.shape[-1], dtype=torch.float32, device=x.device)
    _add_up[blocks](x, gradient, sums, *sizes, ROUNDS=ROUNDS, PIXELS=PIXELS, CHANNELS=CHANNELS, SUMS=SUMS)
    total = sums.sum(0)
    return given, total[:9].t().contiguous(), total[9].clone()


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    C = x.shape[-1]
    return torch.empty_like(x), x.new_empty(C, 9, dtype=torch.float32), x.new_empty(C, dtype=torch.float32)


def _keep(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, taps = ctx.saved_tensors
    given, of_taps, of_bias = depthwise_backward(gradient.contiguous(), x, taps)
    return given, of_taps.to(taps.dtype), of_bias.to(taps.dtype)


depthwise.register_autograd(_backward, setup_context=_keep)
