"""Exact rewrites of the denoiser, made before it is exported: same numbers, fewer and better-shaped operations.

    NoiseGraph   latents, mask, masked latents, timestep, conditions     -> noise under each condition
    StepGraph    the same, and the weights of a solver's step            -> next state and noise

Each rewrite is one function or one small module here, with its derivation; `tests/port/test_denoiser.py` compares each with
the published form in `unet.py` and `lambda_layer.py`.

    fold_batchnorm               BatchNorm into the convolution or matrix before it
    group_normalize              GroupNorm as InstanceNormalization; its affine part goes into what follows
    fold_input_affine            a per-channel affine into the matrix that reads it
    FoldedSeparableConv          two convolutions with a bias, time embedding as the bias of the second
    TimeBiases                   the sinusoid looked up, not computed; all projections of it in three matrices
    TiledSelfLambda              position lambda as scores between a tile of queries and the keys around it
    ConditionAttention           cross-lambda as attention over ten keys, without softmax
    GatedHalves                  the MixFFN's gate and value computed separately, so that nothing is split
    GatheredDownsample           a convolution of stride 2 as a gather and one matrix product
    TapUpsample                  nearest x2 and 3x3 convolution as nine products on the small grid, then sums
    shared halves                see `NoiseGraph`: the guided halves are one until the condition enters

The number n of conditions is free, 2 in a guided step and 1 in any other, so one graph with one set of weights serves both.
No shape is computed in the graph: every other axis is known at export. A tensor that must be repeated n times is added to
zeros of shape (n,).

Layouts: pictures (B, C, h, w) in the ResNets and around every spatial convolution; tokens (B, N, C), channels
head-major, in the lambda layers, with the cells of the grid in the order of `to_tokens`.
Symbols as in `lambda_layer.py`: B batch, H heads, K = V = C / H, N = h w positions, M keys. A grid of side h has g x g
tiles, g = h / t, of t x t cells; p is a cell's place in its tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TRAIN_TIMESTEPS
from ..inpainting.backends import condition_ids
from ..model.lambda_layer import CrossLambda, SelfLambda
from ..model.sampler import next_state
from ..model.unet import (
    ChannelLayerNorm,
    Downsample,
    MixFFN,
    MoebiusNet,
    ResnetBlock,
    SeparableConv,
    TimeEmbedding,
    Transformer,
    TransformerLayer,
    Upsample,
    sinusoid,
)

TILE = 4  # side of a tile of queries, in cells: of 4 and 8 the faster at every resolution on a CPU
LANES = 4  # numbers that the runtime's GPU kernels read at once, if the sides of a product are multiples of it
FEW_TILES = 16  # up to here scores are not reordered for larger products: the launch would cost more than it saves
LARGE_COPY = 2_000_000  # numbers; a smaller tensor is split by a copy, since more launches would take longer
LONG_SUM = (
    4096  # positions; a sum over so many is split into parts, since a product with few rows and columns does not fill a GPU
)
PARTS = 16  # of a long sum
# (B, C, tile row, row in it, tile column, column in it) -> (B, row in, column in, tile row, tile column, C)
TO_TILES = (0, 3, 5, 2, 4, 1)
FROM_TILES = (0, 5, 3, 1, 4, 2)  # and back

STEP_OUTPUTS = ("next_state", "noise")


def constant(tensor: Tensor) -> nn.Parameter:
    """A float tensor that the exporter stores as an initializer."""
    return nn.Parameter(tensor.detach().float().contiguous(), requires_grad=False)


# -- norms -------------------------------------------------------------------------------------------------------------


def batchnorm_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The (scale, shift) that a BatchNorm applies in evaluation mode, float64, one number a channel.

    y = gamma (x - mean) / sqrt(var + eps) + beta = s x + t,  s = gamma / sqrt(var + eps),  t = beta - s mean.
    """
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def fold_batchnorm(weight: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one linear map that equals `norm(map(x))`, for a map without bias.

    s (W x) + t = (s W) x + t: row o of W, whatever its remaining axes, is multiplied by s[o].

    Args:
        weight: (out, ...): a convolution kernel or a matrix.

    Returns:
        (weight, bias) of shapes (out, ...) and (out,), float32; the product is taken in float64.
    """
    scale, shift = batchnorm_affine(norm)
    rows = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.double() * rows).float(), shift.float()


def fold_input_affine(conv: nn.Conv2d, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Matrix (out, in) and bias (out,) of a 1x1 convolution that also applies the affine part of the norm before it.

    W (gamma x + beta) + b = (W diag(gamma)) x + (W beta + b).
    """
    W = conv.weight[:, :, 0, 0].double()
    return (W * norm.weight.double()).float(), (W @ norm.bias.double() + conv.bias.double()).float()


def group_normalize(x: Tensor, groups: int, eps: float) -> Tensor:
    """GroupNorm without its affine part, on (B, C, h, w).

    A group's channels are neighbours in memory, so a group is one "channel" of InstanceNormalization, an operator that
    every provider has; GroupNormalization decomposes into about thirty nodes, two of them on the CPU.
    """
    y = F.instance_norm(x.reshape(x.shape[0], groups, -1), eps=eps)
    return y.reshape(x.shape)


class GroupNormSiLU(nn.Module):
    """GroupNorm, then SiLU. The affine part is one BatchNormalization with mean 0 and variance 1: one pass, not two."""

    EPS = 1e-5  # PyTorch before 2.13 refuses 0; the variance makes up for it: 1 - EPS + EPS is 1 in float32

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = constant(norm.weight), constant(norm.bias)
        self.register_buffer("mean", torch.zeros(norm.num_channels))
        self.register_buffer("variance", torch.full((norm.num_channels,), 1 - self.EPS))

    def forward(self, x: Tensor) -> Tensor:
        y = group_normalize(x, self.groups, self.eps)
        return F.silu(F.batch_norm(y, self.mean, self.variance, self.weight, self.bias, eps=self.EPS))


# -- ResNet block ------------------------------------------------------------------------------------------------------


class FoldedSeparableConv(nn.Module):
    """A `SeparableConv` as two convolutions with a bias: both BatchNorms folded (`fold_batchnorm`).

    What the block adds per channel after it, the projected time embedding, is a bias as well:
    (P r + t) + e = P r + (t + e), so `forward` takes the second convolution's bias from outside.
    """

    def __init__(self, conv: SeparableConv) -> None:
        super().__init__()
        depthwise, shift = fold_batchnorm(conv.conv_dw.weight, conv.bn1)
        pointwise, self_bias = fold_batchnorm(conv.conv_pw.weight, conv.bn2)
        self.depthwise, self.shift = constant(depthwise), constant(shift)
        self.pointwise, self.bias = constant(pointwise), constant(self_bias)
        self.residual = conv.residual

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, C, h, w), bias (out,) -> (B, out, h, w)."""
        y = F.relu(F.conv2d(x, self.depthwise, self.shift, padding=1, groups=x.shape[1]))
        y = F.conv2d(y, self.pointwise, bias)
        return x + y if self.residual else y


class ResnetGraph(nn.Module):
    """A `ResnetBlock` of the parts above; the projected time embedding arrives as the bias of its first convolution."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNormSiLU(block.norm1), GroupNormSiLU(block.norm2)
        self.conv1, self.conv2 = FoldedSeparableConv(block.conv1), FoldedSeparableConv(block.conv2)
        self.conv_shortcut = block.conv_shortcut

    def forward(self, x: Tensor, time_bias: Tensor) -> Tensor:
        """x (B, C, h, w), time_bias (out,) -> (B, out, h, w)."""
        y = self.conv1(self.norm1(x), time_bias)
        y = self.conv2(self.norm2(y), self.conv2.bias)
        return self.conv_shortcut(x) + y


class TimeBiases(nn.Module):
    """From the timestep to the bias of the first convolution of every ResNet block, in the order of the blocks.

    The sinusoid is a row of a table: Sin and Cos of a GPU's shader compiler may be off by 1e-4 at large arguments, and a
    page that only hands over the timestep has nothing to get wrong. The table is 1000 x time_dim float32, 1.3 MB.
    The blocks' projections read the same vector, so one matrix holds several, `GROUP` at a time. With more, the operator
    that splits the result would need more than the 8 buffers that WebGPU guarantees a shader.
    All samples of a batch share one timestep. A block's bias also includes the shift of the second folded BatchNorm of
    `conv1`.
    """

    GROUP = 5

    def __init__(self, embedding: TimeEmbedding, time_dim: int, blocks: list[ResnetBlock]) -> None:
        super().__init__()
        self.register_buffer("sinusoids", sinusoid(torch.arange(TRAIN_TIMESTEPS), time_dim))
        self.embedding = embedding
        groups = [blocks[i : i + self.GROUP] for i in range(0, len(blocks), self.GROUP)]
        self.widths = [[block.time_emb_proj.out_features for block in group] for group in groups]
        self.weights, self.shifts = nn.ParameterList(), nn.ParameterList()
        for group in groups:
            shifts = [block.time_emb_proj.bias + batchnorm_affine(block.conv1.bn2)[1].float() for block in group]
            self.weights.append(constant(torch.cat([block.time_emb_proj.weight for block in group])))
            self.shifts.append(constant(torch.cat(shifts)))

    def forward(self, timestep: Tensor) -> list[Tensor]:
        """timestep (1,) float32, a whole number in 0..999 -> one bias (out,) for each block."""
        time = F.silu(self.embedding(F.embedding(timestep.int(), self.sinusoids)))  # (1, D)
        biases = []
        for weight, shift, widths in zip(self.weights, self.shifts, self.widths):
            biases += F.linear(time, weight, shift).flatten().split(widths)
        return biases


# -- lambda layers -----------------------------------------------------------------------------------------------------


def to_tokens(picture: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, C): cells ordered by their place p in their tile, row-major, then by tile, row-major.

    Every layer on tokens treats each one separately or sums over all, so the order is free. This one puts the queries of all
    tiles at the same place p next to each other, as `TiledSelfLambda` needs them.
    """
    B, C, h, _ = picture.shape
    g = h // TILE
    return picture.reshape(B, C, g, TILE, g, TILE).permute(TO_TILES).reshape(B, h * h, C)


def to_picture(tokens: Tensor, side: int) -> Tensor:
    """The inverse of `to_tokens`: (B, N, C) -> (B, C, side, side)."""
    B, _, C = tokens.shape
    g = side // TILE
    return tokens.reshape(B, TILE, TILE, g, g, C).permute(FROM_TILES).reshape(B, C, side, side)


def token_cells(side: int) -> Tensor:
    """The row-major index of each token's cell: (N,)."""
    return to_tokens(torch.arange(side * side).reshape(1, 1, side, side)).flatten()


def kernel_offsets(tile: int, window: int) -> Tensor:
    """Which entry of a flat `window` x `window` kernel connects query p of a tile with key m of its surroundings.

    Returns:
        (tile^2, (tile + window - 1)^2) int32; `window^2`, one past the last entry, where m is outside p's window.
    """
    reach = tile + window - 1
    p, m = torch.arange(tile**2), torch.arange(reach**2)
    dy = m[None] // reach - p[:, None] // tile
    dx = m[None] % reach - p[:, None] % tile
    inside = (dy >= 0) & (dy < window) & (dx >= 0) & (dx < window)
    return torch.where(inside, dy * window + dx, window**2).int()


def tile_keys(side: int, tile: int, window: int) -> Tensor:
    """For each tile in row-major order, the tokens of the cells around it, row-major.

    Returns:
        (tiles, (tile + window - 1)^2) int32; `side^2`, one past the last token, for cells outside the grid.
    """
    token = torch.cat([token_cells(side).argsort(), torch.tensor([side**2])])  # of each row-major cell
    starts = torch.arange(0, side, tile) - window // 2
    lines = starts[:, None] + torch.arange(tile + window - 1)  # (side / tile, reach)
    y, x = lines[:, None, :, None], lines[None, :, None, :]
    inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
    return token[torch.where(inside, y * side + x, side**2)].flatten(2).flatten(0, 1).int()


class TiledSelfLambda(nn.Module):
    """Self-lambda without ever making a lambda for each position.

    Position part. The published form makes P[n,k,v] = sum_d W[k,d] v[n+d,v] + b[k], N x K x V numbers, and contracts
    it with the queries. Contracting first with the kernel gives

        Yp[n,h,v] = sum_k q[n,h,k] P[n,k,v] = sum_d (sum_k q[n,h,k] W[k,d]) v[n+d,v] + sum_k q[n,h,k] b[k]
                  = sum_m S[n,h,m] v[m,v] + ...,    S[n,h,m] = sum_k q[n,h,k] W[k,m-n]

    which is local attention without softmax. Queries are taken in tiles of 4 x 4 cells: the 16 queries of a tile share
    the (4 + 14)^2 = 324 keys around it, and queries at the same place p in their tile share the matrix W[k, m - p]
    (zero outside the window). So both sums are batched matrix products, one over p, one over tiles. Multiplications a
    block at 64x64: 0.85 G + 0.85 G a sample, against 2.95 G of the convolution; no P (52 MB a guided step) to transpose.

    Content part. L = sum_m softmax(k)[m] v[m]^T, Yc = q L = sum_k q[k] L[k]: K more keys of every tile, whose score is
    the query's own component k and whose value is row k of L. The bias b[k] is the same for every v: one more key, whose
    score is q b and whose value is all ones. k has no BatchNorm and no bias; q and v have theirs folded, and one matrix
    makes all three.

    The matrices W[k, m - p] of all p are 23 times the kernel: the file keeps the kernel, and a Gather of constants makes
    them when it is loaded. Its table has the rows [window^2 of W; 0; b; K of the identity], and the values that a tile
    gathers from are [N of v; 0; 1; K of L]. Keys of score 0 and value 0 pad the number of keys to a multiple of `LANES`:
    with 365 keys the runtime's kernel for single numbers takes 430 microseconds on an H100; with 368 its kernel for four
    takes 176.

    Args:
        layer: the published layer.
        side: of the grid; N = side^2.

    Raises:
        ValueError: the tile does not divide the grid.
    """

    def __init__(self, layer: SelfLambda, side: int) -> None:
        super().__init__()
        if side % TILE:
            raise ValueError(f"the position lambda is tiled by {TILE} cells, which does not divide a grid of side {side}")
        self.heads, self.width, self.side = layer.heads, layer.width, side
        window, K = layer.pos_conv.kernel_size[-1], layer.width
        q, q_shift = fold_batchnorm(layer.to_q.weight.flatten(1), layer.norm_q)
        v, v_shift = fold_batchnorm(layer.to_v.weight.flatten(1), layer.norm_v)
        k = layer.to_k.weight.flatten(1)
        self.qkv = constant(torch.cat([q, k, v]).T)  # (C, C + 2 K)
        self.qkv_shift = constant(torch.cat([q_shift, torch.zeros(K), v_shift]))
        W, b = layer.pos_conv.weight.reshape(K, -1).T, layer.pos_conv.bias[None]  # (window^2, K), (1, K)
        self.table = constant(torch.cat([W, torch.zeros(1, K), b, torch.eye(K)]))
        self.register_buffer("zero_and_one", torch.stack([torch.zeros(K), torch.ones(K)])[None])
        everywhere = 1 + torch.arange(1 + K)  # past the zero row: b and the identity; 1 and L
        offsets, keys = kernel_offsets(TILE, window), tile_keys(side, TILE, window)
        everywhere = F.pad(everywhere, (0, -(keys.shape[1] + len(everywhere)) % LANES))  # by the zero row
        self.register_buffer("offsets", torch.cat([offsets, (window**2 + everywhere).expand(TILE**2, -1)], dim=1).int())
        self.register_buffer("keys", torch.cat([keys, (side**2 + everywhere).expand(len(keys), -1)], dim=1).flatten().int())

    def apply_scores(self, q: Tensor, values: Tensor) -> Tensor:
        """q (B, N, C) and the values (B, N + 2 + K, V) that tiles gather from -> (B, N, C)."""
        B, N, C = q.shape
        P, M = TILE**2, self.offsets.shape[1]
        tiles = N // P
        W = F.embedding(self.offsets, self.table).transpose(1, 2)  # (p, K, M)
        S = q.reshape(B, P, tiles * self.heads, self.width) @ W  # (B, p, tile*H, M)
        v = values.index_select(1, self.keys)  # (B, tile*M, V)
        if tiles <= FEW_TILES:  # products of H rows
            return (S.reshape(B, P, tiles, self.heads, M) @ v.reshape(B, 1, tiles, M, self.width)).reshape(B, N, C)
        S = S.reshape(B, P, tiles, self.heads * M).transpose(1, 2).reshape(B * tiles, P * self.heads, M)
        return (S @ v.reshape(B * tiles, M, self.width)).reshape(B, tiles, P, C).transpose(1, 2).reshape(B, N, C)

    def forward(self, x: Tensor, zeros: Tensor) -> Tensor:
        """Tokens (B, N, C) and zeros (B,) -> (B, N, C)."""
        C = x.shape[2]
        q, k, v = (x @ self.qkv + self.qkv_shift).split([C, self.width, self.width], dim=2)
        lambda_c = content_lambda(k.transpose(1, 2).softmax(dim=-1), v)  # (B, K, V)
        everywhere = self.zero_and_one + zeros[:, None, None]
        return self.apply_scores(q, torch.cat([v, everywhere, lambda_c], dim=1))


def content_lambda(k: Tensor, v: Tensor) -> Tensor:
    """sum_m k[m] v[m]^T: (B, K, N), (B, N, V) -> (B, K, V).

    The product has few rows and columns and, on the largest grid, thousands of terms: it keeps only eight of a GPU's
    workgroups busy. So a sum of `LONG_SUM` terms or more is computed in `PARTS` parallel parts, which are then added.
    """
    B, K, N = k.shape
    if N < LONG_SUM:
        return k @ v
    parts = k.reshape(B, K, PARTS, N // PARTS).transpose(1, 2) @ v.reshape(B, PARTS, N // PARTS, -1)  # (B, PARTS, K, V)
    return parts.sum(dim=1)


class ConditionAttention(nn.Module):
    """Cross-lambda for condition rows that are known at export; each run selects from them.

    The published form applies lambda_c + lambda_p(n) = sum_m (k[m] + E[n,m]) v[m]^T to q[n]. Contracting q first,

        S[n,h,m] = sum_k q[n,h,k] (k[m,k] + E[n,m,k]),    y[n,h,v] = sum_m S[n,h,m] v[m,v]

    is attention over the 10 condition vectors without softmax (the one over the vectors is inside k), and nothing of
    size N x K x V is made. k and v depend on the condition row alone, so they are constants, one for each row. Keys of score
    0 pad the number of keys to a multiple of `LANES`.

    Args:
        layer: the published layer.
        context: (R, 10, context_dim), the R condition rows.
    """

    def __init__(self, layer: CrossLambda, context: Tensor) -> None:
        super().__init__()
        self.heads, self.width = layer.heads, layer.width
        q, q_shift = fold_batchnorm(layer.to_q.weight.flatten(1), layer.norm_q)
        v, v_shift = fold_batchnorm(layer.to_v.weight, layer.norm_v)
        self.q, self.q_shift = constant(q.T), constant(q_shift)
        unused = -context.shape[1] % LANES
        k = layer.to_k(context).softmax(dim=1).transpose(1, 2)[:, None]  # (R, 1, K, 10)
        self.k = constant(F.pad(k, (0, unused)))  # (R, 1, K, 12)
        self.v = constant(F.pad(F.linear(context, v, v_shift), (0, 0, 0, unused)))  # (R, 12, V)
        positions = layer.rel_pos_emb.squeeze(-1)  # (N, 10, K), row-major
        positions = positions[token_cells(math.isqrt(len(positions)))].transpose(1, 2)
        self.rel_pos_emb = constant(F.pad(positions, (0, unused)))  # (N, K, 12)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        """Tokens (1 or n, N, C), conditions (n,) int32, numbers of rows -> (n, N, C)."""
        B, N, C = x.shape
        q = (x @ self.q + self.q_shift).reshape(B, N, self.heads, self.width)
        keys = self.rel_pos_emb + self.k.index_select(0, conditions)  # (n, N, K, 12)
        S = (q @ keys).flatten(1, 2)  # (n, N H, 12)
        return (S @ self.v.index_select(0, conditions)).reshape(-1, N, C)


# -- transformer block -------------------------------------------------------------------------------------------------


class GatedHalves(nn.Module):
    """A `MixFFN` whose value a and gate g are computed separately.

    The published form makes 5 C channels and splits them. Every layer before the split works channel by channel or
    is one matrix, of which each half needs its own rows only. So each half can be computed alone: the same arithmetic,
    without copying a tensor of 52 MB.
    """

    def __init__(self, ffn: MixFFN) -> None:
        super().__init__()
        wide, point = ffn.inverted_conv.conv, ffn.point_conv.conv
        self.widen, self.widen_bias = halves(wide.weight), halves(wide.bias)  # (2.5 C, C, 1, 1), (2.5 C,)
        depth = ffn.depth_conv.conv
        self.mix, self.mix_bias = halves(depth.weight), halves(depth.bias)  # (2.5 C, 1, 3, 3), (2.5 C,)
        self.narrow = constant(point.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        a, g = (
            F.conv2d(F.silu(F.conv2d(x, widen, widen_bias)), mix, mix_bias, padding=1, groups=len(mix))
            for widen, widen_bias, mix, mix_bias in zip(self.widen, self.widen_bias, self.mix, self.mix_bias)
        )
        return F.conv2d(a * F.silu(g), self.narrow)


def feed_forward(ffn: MixFFN, side: int) -> nn.Module:
    """`GatedHalves` where the tensor that would be split is large, the published form elsewhere."""
    return GatedHalves(ffn) if ffn.inverted_conv.conv.out_channels * side**2 > LARGE_COPY else ffn


def halves(tensor: Tensor) -> nn.ParameterList:
    """The two halves of the first axis, as constants."""
    return nn.ParameterList(map(constant, tensor.chunk(2)))


def plain_layer_norm(norm: ChannelLayerNorm) -> nn.LayerNorm:
    """The same norm for tokens, whose channels are last already."""
    tokens_norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    tokens_norm.load_state_dict(norm.state_dict())
    return tokens_norm


class TransformerGraph(nn.Module):
    """A `Transformer`: picture in, tokens through the lambda layers, picture from the MixFFN on."""

    def __init__(self, transformer: Transformer, context: Tensor, side: int) -> None:
        super().__init__()
        layer: TransformerLayer = transformer.transformer_blocks[0]
        self.groups, self.eps = transformer.norm.num_groups, transformer.norm.eps
        weight, bias = fold_input_affine(transformer.proj_in, transformer.norm)
        self.proj_in, self.proj_in_bias = constant(weight.T), constant(bias)
        self.norms = nn.ModuleList(plain_layer_norm(norm) for norm in (layer.norm1, layer.norm2, layer.norm3))
        self.self_lambda = TiledSelfLambda(layer.attn1, side)
        self.condition = ConditionAttention(layer.attn2, context)
        self.ffn = feed_forward(layer.ff, side)
        self.proj_out = transformer.proj_out

    def forward(self, picture: Tensor, conditions: Tensor, zeros: Tensor) -> Tensor:
        """(B, C, h, w) with B = 1 or n, conditions (n,) int32 and zeros (B,) -> (n, C, h, w)."""
        side = picture.shape[-1]
        x = to_tokens(group_normalize(picture, self.groups, self.eps)) @ self.proj_in + self.proj_in_bias
        x = x + self.self_lambda(self.norms[0](x), zeros)
        x = x + self.condition(self.norms[1](x), conditions)
        y = to_picture(x, side) + self.ffn(to_picture(self.norms[2](x), side))
        return picture + self.proj_out(y)


# -- resampling --------------------------------------------------------------------------------------------------------


class GatheredDownsample(nn.Module):
    """A 3x3 convolution of stride 2 as one matrix product.

    The nine cells that an output cell reads are gathered, 9 C numbers a cell, and the kernel is a matrix (out, 9 C). The
    runtime's own convolution takes single numbers where channels come first: 0.66 and 1.12 ms on an H100. Cells
    outside the grid are read from one zero behind the last cell: the runtime's Pad, in 16 bits, is a shader that Firefox
    rejects.
    """

    def __init__(self, downsample: Downsample, side: int) -> None:
        super().__init__()
        conv = downsample.conv
        self.weight, self.bias = constant(conv.weight.flatten(1)[:, :, None, None]), constant(conv.bias)
        tap, cell = torch.arange(3), torch.arange(side // 2)
        line = 2 * cell[None, :] + tap[:, None] - 1  # -1 lies outside, `side` is never read
        rows, columns = line[:, None, :, None], line[None, :, None, :]  # (tap row, tap column, row, column)
        cells = torch.where((rows < 0) | (columns < 0), side**2, rows * side + columns)
        self.register_buffer("cells", cells.flatten().int())  # (9 side^2 / 4,)
        self.register_buffer("zero", torch.zeros(1, conv.in_channels, 1))

    def forward(self, x: Tensor, zeros: Tensor) -> Tensor:
        """(B, C, h, h) and zeros (B,) -> (B, out, h / 2, h / 2)."""
        B, C, h, _ = x.shape
        padded = torch.cat([x.flatten(2), self.zero + zeros[:, None, None]], dim=2)
        read = padded.index_select(2, self.cells).reshape(B, 9 * C, h // 2, h // 2)
        return F.conv2d(read, self.weight, self.bias)


def tap_spread(side: int) -> Tensor:
    """Sums the products of three taps to a nearest-doubled and convolved line: (2 side, 3 side), columns (tap, cell).

    In one dimension, with u[2i] = u[2i+1] = x[i] and y[j] = w0 u[j-1] + w1 u[j] + w2 u[j+1], the products a_t = w_t x give

        y[2i]   = a0[i-1] + a1[i] + a2[i]
        y[2i+1] = a0[i]   + a1[i] + a2[i+1]

    where values outside the grid are zero, since zero padding of u is zero padding of x.
    """
    spread = torch.zeros(side, 2, 3, side)
    i = torch.arange(side)
    spread[i, :, 1, i] = 1
    spread[i, 0, 2, i] = spread[i, 1, 0, i] = 1
    spread[i[1:], 0, 0, i[:-1]] = spread[i[:-1], 1, 2, i[1:]] = 1
    return spread.reshape(2 * side, 3 * side)


class TapUpsample(nn.Module):
    """Nearest x2 and 3x3 convolution as nine products on the small grid, then their sums.

    Nine multiplications a cell and pair of channels, where the convolution of the doubled grid has 36 and four 2x2
    convolutions, one for each phase of the output, have 16. The sums over rows and columns (`tap_spread`) are two products
    with a constant matrix. The bias is added at the middle tap, which every output pixel receives exactly once.
    """

    def __init__(self, upsample: Upsample, side: int) -> None:
        super().__init__()
        conv = upsample.conv
        taps = conv.weight.permute(0, 3, 2, 1)  # (out, tap column, tap row, in)
        self.weight = constant(taps.reshape(-1, conv.in_channels, 1, 1))
        middle = torch.zeros(3, 3)
        middle[1, 1] = 1
        self.bias = constant((conv.bias[:, None, None] * middle).flatten())
        self.rows, self.columns = constant(tap_spread(side)), constant(tap_spread(side).T)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, h) -> (B, out, 2 h, 2 h)."""
        B, _, h, _ = x.shape
        products = F.conv2d(x, self.weight, self.bias).reshape(B, -1, 3 * h, h)  # (B, out * tap column, tap row * h, h)
        lines = (self.rows @ products).reshape(B, -1, 3, 2 * h, h).transpose(2, 3)  # (B, out, 2h, tap column, h)
        return (lines.reshape(-1, 3 * h) @ self.columns).reshape(B, -1, 2 * h, 2 * h)


# -- the whole ---------------------------------------------------------------------------------------------------------


def condition_rows(net: MoebiusNet) -> Tensor:
    """The two condition rows as the U-Net's layers see them, unconditional first: (2, 10, cross_attention_dim)."""
    return net.diff_model.encoder_hid_proj(net.embedding_layer(condition_ids()))


class NoiseGraph(nn.Module):
    """Predicted noise under one condition or both, for one picture.

    The halves of classifier-free guidance see the same latent and timestep and differ in the condition only. Until the
    condition first enters, in the first transformer's cross-lambda, they are equal: everything before it, and the skip
    from `conv_in`, is computed once, with a batch of one.

    Args:
        net: the published network, in evaluation mode; its tensors are copied, not changed.

    Raises:
        ValueError: the network is in training mode, where BatchNorm is not an affine map; or a grid is not a multiple of
            `TILE`.
    """

    def __init__(self, net: MoebiusNet) -> None:
        super().__init__()
        if net.training:
            raise ValueError("call net.eval() first: BatchNorm can be folded in evaluation mode only")
        with torch.no_grad():
            unet, size, context = net.diff_model, net.config.latent_size, condition_rows(net)
            resnets = [resnet for block in (*unet.down_blocks, *unet.up_blocks) for resnet in block.resnets]
            self.time = TimeBiases(unet.time_embedding, unet.time_dim, resnets)
            self.register_buffer("zero", torch.zeros(1))
            self.conv_in = FoldedSeparableConv(unet.conv_in)
            self.down = nn.ModuleList(
                stage(block, [GatheredDownsample(d, size >> level) for d in block.downsamplers], context, size >> level)
                for level, block in enumerate(unet.down_blocks)
            )
            self.up = nn.ModuleList(
                stage(block, [TapUpsample(u, size >> (2 - level)) for u in block.upsamplers], context, size >> (2 - level))
                for level, block in enumerate(unet.up_blocks)
            )
            self.norm_out = GroupNormSiLU(unet.conv_norm_out)
            self.conv_out = FoldedSeparableConv(unet.conv_out)
        self.requires_grad_(False).eval()

    def forward(self, latents: Tensor, mask: Tensor, masked_latents: Tensor, timestep: Tensor, conditions: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            latents: (1, 4, s, s) noisy latent.
            mask: (1, 1, s, s), 1 is the hole.
            masked_latents: (1, 4, s, s) latent of the masked image.
            timestep: (1,) float32, a whole number in 0..999.
            conditions: (n,) float32, each `UNCONDITIONAL` or `CONDITIONAL`.

        Returns:
            (n, 4, s, s), in units of standard normal noise.
        """
        time = iter(self.time(timestep))
        zeros, rows = conditions * 0, conditions.int()
        x = self.conv_in(torch.cat([latents, mask, masked_latents], dim=1), self.conv_in.bias)
        skips = [x]
        for block in self.down:
            for resnet, transformer in zip(block["resnets"], block["transformers"]):
                x = transformer(resnet(x, next(time)), rows, zeros if len(skips) > 1 else self.zero)
                skips.append(x)
            for sampler in block["samplers"]:
                x = sampler(x, zeros)
                skips.append(x)
        for block in self.up:
            for resnet, transformer in zip(block["resnets"], block["transformers"]):
                skip = skips.pop() if len(skips) > 1 else skips.pop() + zeros[:, None, None, None]
                x = transformer(resnet(torch.cat([x, skip], dim=1), next(time)), rows, zeros)
            for sampler in block["samplers"]:
                x = sampler(x)
        return self.conv_out(self.norm_out(x), self.conv_out.bias)


def stage(block: nn.Module, samplers: Iterable[nn.Module], context: Tensor, side: int) -> nn.ModuleDict:
    """One resolution of the U-Net, rewritten: its ResNets, transformers and up- or downsamplers, on a grid of `side`."""
    return nn.ModuleDict(
        {
            "resnets": nn.ModuleList(ResnetGraph(r) for r in block.resnets),
            "transformers": nn.ModuleList(TransformerGraph(t, context, side) for t in block.attentions),
            "samplers": nn.ModuleList(samplers),
        }
    )


class StepGraph(nn.Module):
    """One step of any solver in `model.sampler`, state to state: a sampling loop reads nothing back between steps.

    The noise is an output too, for comparisons; a loop asks for the next state only.
    """

    def __init__(self, net: MoebiusNet) -> None:
        super().__init__()
        self.noise = NoiseGraph(net)
        self.eval()

    def forward(
        self,
        state: Tensor,
        mask: Tensor,
        masked_latents: Tensor,
        timestep: Tensor,
        conditions: Tensor,
        state_weights: Tensor,
        noise_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `NoiseGraph`, with state (3, 4, s, s) for latents; weights (3, 3), (3, n) -> next state, noise (n, 4, s, s)."""
        noise = self.noise(state[:1], mask, masked_latents, timestep, conditions)
        return next_state(state, noise, state_weights, noise_weights), noise
