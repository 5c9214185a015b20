"""What a training step spends its time on, as kernels for cards: channels last, every number read and written once.

Each is a function with a gradient of its own. Sums are float32, results have the inputs' type. Needs Triton, which comes with
PyTorch for CUDA; `fast_forms` says which layers use them, and `speed` compares those with the published ones on the card at hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CELLS = 32  # of a program's tile of a lambda product
PIXELS, CHANNELS = 32, 64  # of a program's tile of a depthwise convolution
SUM_PIXELS = 16  # of a tile of its kernels' gradient, which holds ten sums for each number
ROUNDS = 32  # tiles that one program adds up for that gradient
SUMS = 10  # numbers a channel that it adds up: nine taps, and the bias
GATED = 1024  # numbers of a program of the gate
NORMED = 4096  # numbers of a program's tile of a norm
PROGRAMS = 512  # that share the rows of a layer norm's gradient
PARTS = 8  # of a picture, that are summed for its norm at the same time


@triton.jit
def _sum_products(
    x, y, out, lines, columns, shared, cells,
    x_b, x_a, x_r, x_n, y_b, y_r, y_c, y_n, o_b, o_a, o_c, o_n,
    A: tl.constexpr, C: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * CELLS + tl.arange(0, CELLS)[None, :]
    a, c = tl.arange(0, A)[:, None], tl.arange(0, C)[:, None]
    of_x, of_y = (a < lines) & (n < cells), (c < columns) & (n < cells)
    total = tl.zeros((A, C, CELLS), tl.float32)
    for r in range(shared):
        left = tl.load(x + b * x_b + r * x_r + a * x_a + n * x_n, mask=of_x, other=0.0).to(tl.float32)
        right = tl.load(y + b * y_b + r * y_r + c * y_c + n * y_n, mask=of_y, other=0.0).to(tl.float32)
        total += left[:, None, :] * right[None, :, :]
    place = b * o_b + (a * o_a)[:, None, :] + (c * o_c)[None, :, :] + (n * o_n)[None, :, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=of_x[:, None, :] & of_y[None, :, :])


def sum_products(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """out[b, a, c, n] = sum over r of x[b, a, r, n] y[b, r, c, n], any strides. Fills and returns `out`."""
    B, lines, R, N = x.shape
    columns = y.shape[2]
    A, C = triton.next_power_of_2(lines), triton.next_power_of_2(columns)
    _sum_products[(triton.cdiv(N, CELLS), B)](
        x, y, out, lines, columns, R, N, *x.stride(), *y.stride(), *out.stride(),
        A=A, C=C, CELLS=CELLS, num_warps=4 if A * C < 256 else 8,
    )  # fmt: skip
    return out


class LambdaProduct(torch.autograd.Function):
    """y[b, h, v, n] = sum over k of q[b, h, k, n] lambda[b, k, v, n]: what a lambda layer does to its queries."""

    @staticmethod
    def forward(ctx, q: Tensor, both: Tensor) -> Tensor:
        ctx.save_for_backward(q, both)
        B, H, K, N = q.shape
        y = torch.empty(B, N, H, both.shape[2], dtype=q.dtype, device=q.device).permute(0, 2, 3, 1)
        return sum_products(q, both, y)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        q, both = ctx.saved_tensors
        of_q = sum_products(gradient, both.transpose(1, 2), torch.empty_like(q))
        of_both = sum_products(q.transpose(1, 2), gradient, torch.empty_like(both))
        return of_q, of_both


@triton.jit
def _diagonals(matrix, sums, side, kernel, K_STRIDE, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    tap = tl.program_id(1)
    down, right = tap // kernel - kernel // 2, tap % kernel - kernel // 2
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, side * side, BLOCK):
        n = first + tl.arange(0, BLOCK)
        row, column = n // side + down, n % side + right
        inside = (n < side * side) & (row >= 0) & (row < side) & (column >= 0) & (column < side)
        total += tl.load(matrix + k * K_STRIDE + n * side * side + row * side + column, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(sums + k * kernel * kernel + tap, tl.sum(total, 0))


class Toeplitz(torch.autograd.Function):
    """`fast_forms.toeplitz`, whose gradient sums the matrix's diagonals: one for every tap of the kernel."""

    @staticmethod
    def forward(ctx, kernel: Tensor, side: int, make) -> Tensor:
        ctx.shape, ctx.side = kernel.shape, side
        return make(kernel, side)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        K, taps, _ = ctx.shape
        gradient = gradient.contiguous()
        sums = torch.empty(ctx.shape, dtype=torch.float32, device=gradient.device)
        _diagonals[(K, taps * taps)](gradient, sums, ctx.side, taps, gradient[0].numel(), BLOCK=128)
        return sums.to(gradient.dtype), None, None


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _silu_slope(x):
    s = tl.sigmoid(x)
    return s * (1 + x * (1 - s))


@triton.jit
def _shifted(at, p, c, tap, count, height, width, channels):
    """A tile of `at` (pixels, channels), moved by a tap's offset; zero beyond the picture's border."""
    down, right = tap // 3 - 1, tap % 3 - 1
    row, column = (p // width) % height + down, p % width + right
    inside = (p < count) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = (p + down * width + right).to(tl.int64)[:, None] * channels + c[None, :]
    return tl.load(at + place, mask=inside[:, None] & (c < channels)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _convolve(
    x, taps, bias, before, y, count, height, width, channels,
    TURNED: tl.constexpr, SLOPE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = c < channels
    place = p.to(tl.int64)[:, None] * channels + c[None, :]
    here = (p < count)[:, None] & known[None, :]
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    if not TURNED:
        total += tl.load(bias + c, mask=known, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        at = 8 - tap if TURNED else tap
        weight = tl.load(taps + c * 9 + at, mask=known, other=0.0).to(tl.float32)
        total += _shifted(x, p, c, tap, count, height, width, channels) * weight[None, :]
    if SLOPE:
        total *= _silu_slope(tl.load(before + place, mask=here, other=0.0).to(tl.float32))
    tl.store(y + place, total.to(y.dtype.element_ty), mask=here)


@triton.jit
def _add_up(
    x, gradient, sums, count, height, width, channels,
    ROUNDS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * PIXELS * ROUNDS
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = c < channels
    nothing = tl.zeros((PIXELS, CHANNELS), tl.float32)
    t0, t1, t2, t3, t4 = nothing, nothing, nothing, nothing, nothing
    t5, t6, t7, t8, all_of_it = nothing, nothing, nothing, nothing, nothing
    for i in range(ROUNDS):
        p = first + i * PIXELS + tl.arange(0, PIXELS)
        here = (p < count)[:, None] & known[None, :]
        g = tl.load(gradient + p.to(tl.int64)[:, None] * channels + c[None, :], mask=here, other=0.0).to(tl.float32)
        t0 += g * _shifted(x, p, c, 0, count, height, width, channels)
        t1 += g * _shifted(x, p, c, 1, count, height, width, channels)
        t2 += g * _shifted(x, p, c, 2, count, height, width, channels)
        t3 += g * _shifted(x, p, c, 3, count, height, width, channels)
        t4 += g * _shifted(x, p, c, 4, count, height, width, channels)
        t5 += g * _shifted(x, p, c, 5, count, height, width, channels)
        t6 += g * _shifted(x, p, c, 6, count, height, width, channels)
        t7 += g * _shifted(x, p, c, 7, count, height, width, channels)
        t8 += g * _shifted(x, p, c, 8, count, height, width, channels)
        all_of_it += g
    at = sums + tl.program_id(0) * SUMS * channels + c
    tl.store(at, tl.sum(t0, 0), mask=known)
    tl.store(at + channels, tl.sum(t1, 0), mask=known)
    tl.store(at + 2 * channels, tl.sum(t2, 0), mask=known)
    tl.store(at + 3 * channels, tl.sum(t3, 0), mask=known)
    tl.store(at + 4 * channels, tl.sum(t4, 0), mask=known)
    tl.store(at + 5 * channels, tl.sum(t5, 0), mask=known)
    tl.store(at + 6 * channels, tl.sum(t6, 0), mask=known)
    tl.store(at + 7 * channels, tl.sum(t7, 0), mask=known)
    tl.store(at + 8 * channels, tl.sum(t8, 0), mask=known)
    tl.store(at + 9 * channels, tl.sum(all_of_it, 0), mask=known)


class Depthwise(torch.autograd.Function):
    """A 3 x 3 depthwise convolution with a border of zeros, of x or of its SiLU.

    x (B, h, w, C) contiguous, taps (C, 9) contiguous: the kernels row by row, bias (C,) -> (B, h, w, C).
    """

    @staticmethod
    def forward(ctx, x: Tensor, taps: Tensor, bias: Tensor, silu: bool) -> Tensor:
        read = F.silu(x) if silu else x  # once, not for each of the nine taps that read it
        ctx.save_for_backward(x, read, taps)
        ctx.silu = silu
        y = torch.empty_like(x)
        blocks, sizes = _blocks(x, PIXELS)
        _convolve[blocks](read, taps, bias, x, y, *sizes, TURNED=False, SLOPE=False, PIXELS=PIXELS, CHANNELS=CHANNELS)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, read, taps = ctx.saved_tensors
        gradient, given = gradient.contiguous(), torch.empty_like(x)
        blocks, sizes = _blocks(x, PIXELS)
        how = {"TURNED": True, "SLOPE": ctx.silu, "PIXELS": PIXELS, "CHANNELS": CHANNELS}
        _convolve[blocks](gradient, taps, taps, x, given, *sizes, **how)
        blocks, sizes = _blocks(x, SUM_PIXELS * ROUNDS)
        sums = torch.empty(blocks[0], SUMS, x.shape[-1], dtype=torch.float32, device=x.device)
        _add_up[blocks](read, gradient, sums, *sizes, ROUNDS=ROUNDS, PIXELS=SUM_PIXELS, CHANNELS=CHANNELS, SUMS=SUMS)
        total = sums.sum(0)
        return given, total[:9].t().contiguous().to(taps.dtype), total[9].to(taps.dtype), None


def _blocks(x: Tensor, pixels: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    B, h, w, C = x.shape
    return (triton.cdiv(B * h * w, pixels), triton.cdiv(C, CHANNELS)), (B * h * w, h, w, C)


@triton.jit
def _gate(u, y, count, half, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = i < count
    at = u + (i // half) * (2 * half) + i % half
    a = tl.load(at, mask=known, other=0.0).to(tl.float32)
    g = tl.load(at + half, mask=known, other=0.0).to(tl.float32)
    tl.store(y + i, (a * _silu(g)).to(y.dtype.element_ty), mask=known)


@triton.jit
def _gate_back(u, gradient, given, count, half, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = i < count
    at = (i // half) * (2 * half) + i % half
    a = tl.load(u + at, mask=known, other=0.0).to(tl.float32)
    g = tl.load(u + at + half, mask=known, other=0.0).to(tl.float32)
    d = tl.load(gradient + i, mask=known, other=0.0).to(tl.float32)
    tl.store(given + at, (d * _silu(g)).to(given.dtype.element_ty), mask=known)
    tl.store(given + at + half, (d * a * _silu_slope(g)).to(given.dtype.element_ty), mask=known)


class Gate(torch.autograd.Function):
    """a SiLU(g) of (..., 2 c) contiguous, a before g -> (..., c)."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        half = u.shape[-1] // 2
        y = torch.empty(*u.shape[:-1], half, dtype=u.dtype, device=u.device)
        _gate[(triton.cdiv(y.numel(), GATED),)](u, y, y.numel(), half, BLOCK=GATED)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        gradient, given = gradient.contiguous(), torch.empty_like(u)
        _gate_back[(triton.cdiv(gradient.numel(), GATED),)](
            u, gradient, given, gradient.numel(), gradient.shape[-1], BLOCK=GATED
        )
        return given


@triton.jit
def _of_groups(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """The sum over each group's channels, in every channel of it."""
    total = tl.sum(tl.reshape(values, (GROUPS, WIDTH)), 1)
    return tl.reshape(tl.broadcast_to(total[:, None], (GROUPS, WIDTH)), (GROUPS * WIDTH,))


@triton.jit
def _channels(size, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """The channels of a padded row, groups at powers of two, and which of them there are."""
    i = tl.arange(0, GROUPS * WIDTH)
    return (i // WIDTH) * size + i % WIDTH, i % WIDTH < size


@triton.jit
def _moments(x, sums, cells, size, rows, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    b, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c, known = _channels(size, GROUPS, WIDTH)
    channels = GROUPS * size
    first = tl.zeros((GROUPS * WIDTH,), tl.float32)
    second = tl.zeros((GROUPS * WIDTH,), tl.float32)
    for start in range(part * rows, (part + 1) * rows, ROWS):
        n = start + tl.arange(0, ROWS)
        here = (n < cells)[:, None] & known[None, :]
        tile = tl.load(x + (b * cells + n)[:, None] * channels + c[None, :], mask=here, other=0.0).to(tl.float32)
        first += tl.sum(tile, 0)
        second += tl.sum(tile * tile, 0)
    at = sums + ((b * parts + part) * 2) * channels + c
    tl.store(at, first, mask=known)
    tl.store(at + channels, second, mask=known)


@triton.jit
def _statistics(
    sums, b, cells, size, eps, c, known, PARTS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Mean and 1 / standard deviation of each channel's group."""
    first = tl.zeros((GROUPS * WIDTH,), tl.float32)
    second = tl.zeros((GROUPS * WIDTH,), tl.float32)
    channels = GROUPS * size
    for part in range(PARTS):
        at = sums + ((b * PARTS + part) * 2) * channels + c
        first += tl.load(at, mask=known, other=0.0)
        second += tl.load(at + channels, mask=known, other=0.0)
    count = cells * size
    mean = _of_groups(first, GROUPS, WIDTH) / count
    variance = _of_groups(second, GROUPS, WIDTH) / count - mean * mean
    return mean, 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps)


@triton.jit
def _normalise(
    x, sums, weight, bias, y, cells, size, rows, eps,
    SILU: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, known = _channels(size, GROUPS, WIDTH)
    mean, scale = _statistics(sums, b, cells, size, eps, c, known, PARTS, GROUPS, WIDTH)
    w = tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    channels = GROUPS * size
    for start in range(part * rows, (part + 1) * rows, ROWS):
        n = start + tl.arange(0, ROWS)
        here = (n < cells)[:, None] & known[None, :]
        place = (b * cells + n)[:, None] * channels + c[None, :]
        tile = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
        tile = (tile - mean[None, :]) * (scale * w)[None, :] + shift[None, :]
        if SILU:
            tile = _silu(tile)
        tl.store(y + place, tile.to(y.dtype.element_ty), mask=here)


@triton.jit
def _slopes(
    x, gradient, sums, weight, bias, slopes, cells, size, rows, eps,
    SILU: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the picture, a channel: of the gradient at the norm's output, and of that times the normed input."""
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, known = _channels(size, GROUPS, WIDTH)
    mean, scale = _statistics(sums, b, cells, size, eps, c, known, PARTS, GROUPS, WIDTH)
    w = tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    channels = GROUPS * size
    plain = tl.zeros((GROUPS * WIDTH,), tl.float32)
    along = tl.zeros((GROUPS * WIDTH,), tl.float32)
    for start in range(part * rows, (part + 1) * rows, ROWS):
        n = start + tl.arange(0, ROWS)
        here = (n < cells)[:, None] & known[None, :]
        place = (b * cells + n)[:, None] * channels + c[None, :]
        normed = (tl.load(x + place, mask=here, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
        d = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32)
        if SILU:
            d *= _silu_slope(normed * w[None, :] + shift[None, :])
        plain += tl.sum(d, 0)
        along += tl.sum(d * normed, 0)
    at = slopes + ((b * PARTS + part) * 2) * channels + c
    tl.store(at, plain, mask=known)
    tl.store(at + channels, along, mask=known)


@triton.jit
def _normalise_back(
    x, gradient, sums, slopes, weight, bias, given, cells, size, rows, eps,
    SILU: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, known = _channels(size, GROUPS, WIDTH)
    mean, scale = _statistics(sums, b, cells, size, eps, c, known, PARTS, GROUPS, WIDTH)
    w = tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    channels = GROUPS * size
    plain = tl.zeros((GROUPS * WIDTH,), tl.float32)
    along = tl.zeros((GROUPS * WIDTH,), tl.float32)
    for other in range(PARTS):
        at = slopes + ((b * PARTS + other) * 2) * channels + c
        plain += tl.load(at, mask=known, other=0.0)
        along += tl.load(at + channels, mask=known, other=0.0)
    count = cells * size
    plain = _of_groups(plain * w, GROUPS, WIDTH) / count
    along = _of_groups(along * w, GROUPS, WIDTH) / count
    for start in range(part * rows, (part + 1) * rows, ROWS):
        n = start + tl.arange(0, ROWS)
        here = (n < cells)[:, None] & known[None, :]
        place = (b * cells + n)[:, None] * channels + c[None, :]
        normed = (tl.load(x + place, mask=here, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
        d = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32)
        if SILU:
            d *= _silu_slope(normed * w[None, :] + shift[None, :])
        d = (d * w[None, :] - plain[None, :] - normed * along[None, :]) * scale[None, :]
        tl.store(given + place, d.to(given.dtype.element_ty), mask=here)


def _norm_sizes(x: Tensor, groups: int) -> tuple[tuple[int, int], int, dict[str, int]]:
    B, N, C = x.shape
    width = triton.next_power_of_2(C // groups)
    rows = max(1, NORMED // (groups * width))
    a_part = triton.cdiv(triton.cdiv(N, PARTS), rows) * rows
    return (B, PARTS), a_part, {"GROUPS": groups, "WIDTH": width, "ROWS": rows}


class GroupNorm(torch.autograd.Function):
    """Group norm of x (B, N, C) contiguous, and SiLU behind it if asked; weight and bias (C,), groups a power of two."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        B, N, C = x.shape
        grid, rows, sizes = _norm_sizes(x, groups)
        sums = torch.empty(B, PARTS, 2, C, dtype=torch.float32, device=x.device)
        y = torch.empty_like(x)
        _moments[grid](x, sums, N, C // groups, rows, **sizes)
        _normalise[grid](x, sums, weight, bias, y, N, C // groups, rows, eps, SILU=silu, PARTS=PARTS, **sizes)
        ctx.save_for_backward(x, sums, weight, bias)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, sums, weight, bias = ctx.saved_tensors
        gradient = gradient.contiguous()
        B, N, C = x.shape
        grid, rows, sizes = _norm_sizes(x, ctx.groups)
        slopes, given = torch.empty_like(sums), torch.empty_like(x)
        how = {"SILU": ctx.silu, "PARTS": PARTS} | sizes
        _slopes[grid](x, gradient, sums, weight, bias, slopes, N, C // ctx.groups, rows, ctx.eps, **how)
        _normalise_back[grid](x, gradient, sums, slopes, weight, bias, given, N, C // ctx.groups, rows, ctx.eps, **how)
        of_bias, of_weight = slopes.sum((0, 1))
        return given, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None, None


@triton.jit
def _normalise_rows(
    x, weight, bias, y, moments, count, channels, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    here = (n < count)[:, None] & (c < channels)[None, :]
    place = n[:, None] * channels + c[None, :]
    tile = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    mean = tl.sum(tile, 1) / channels
    tile = tl.where(here, tile - mean[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(tile * tile, 1) / channels + eps)
    w = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    tl.store(y + place, (tile * scale[:, None] * w[None, :] + shift[None, :]).to(y.dtype.element_ty), mask=here)
    tl.store(moments + 2 * n, mean, mask=n < count)
    tl.store(moments + 2 * n + 1, scale, mask=n < count)


@triton.jit
def _normalise_rows_back(
    x, gradient, weight, moments, given, slopes, count, channels, rounds, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    c = tl.arange(0, WIDTH)
    w = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    plain = tl.zeros((WIDTH,), tl.float32)
    along = tl.zeros((WIDTH,), tl.float32)
    for i in range(rounds):
        n = (tl.program_id(0).to(tl.int64) * rounds + i) * ROWS + tl.arange(0, ROWS)
        here = (n < count)[:, None] & (c < channels)[None, :]
        place = n[:, None] * channels + c[None, :]
        mean = tl.load(moments + 2 * n, mask=n < count, other=0.0)
        scale = tl.load(moments + 2 * n + 1, mask=n < count, other=0.0)
        normed = (tl.load(x + place, mask=here, other=0.0).to(tl.float32) - mean[:, None]) * scale[:, None]
        d = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32)
        plain += tl.sum(d, 0)
        along += tl.sum(tl.where(here, d * normed, 0.0), 0)
        d = d * w[None, :]
        first = tl.sum(d, 1) / channels
        second = tl.sum(tl.where(here, d * normed, 0.0), 1) / channels
        d = (d - first[:, None] - normed * second[:, None]) * scale[:, None]
        tl.store(given + place, d.to(given.dtype.element_ty), mask=here)
    at = slopes + tl.program_id(0) * 2 * channels + c
    tl.store(at, plain, mask=c < channels)
    tl.store(at + channels, along, mask=c < channels)


class LayerNorm(torch.autograd.Function):
    """Layer norm of each row of x (..., C) contiguous; weight and bias (C,)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        C = x.shape[-1]
        count, width = x.numel() // C, triton.next_power_of_2(C)
        rows = max(1, NORMED // width)
        y, moments = torch.empty_like(x), torch.empty(count, 2, dtype=torch.float32, device=x.device)
        _normalise_rows[(triton.cdiv(count, rows),)](x, weight, bias, y, moments, count, C, eps, ROWS=rows, WIDTH=width)
        ctx.save_for_backward(x, weight, moments)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, moments = ctx.saved_tensors
        gradient, given = gradient.contiguous(), torch.empty_like(x)
        C = x.shape[-1]
        count, width = x.numel() // C, triton.next_power_of_2(C)
        rows = max(1, NORMED // width)
        programs = min(PROGRAMS, triton.cdiv(count, rows))
        rounds = triton.cdiv(triton.cdiv(count, rows), programs)
        slopes = torch.empty(programs, 2, C, dtype=torch.float32, device=x.device)
        _normalise_rows_back[(programs,)](
            x, gradient, weight, moments, given, slopes, count, C, rounds, ROWS=rows, WIDTH=width
        )
        of_bias, of_weight = slopes.sum(0)
        return given, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None
