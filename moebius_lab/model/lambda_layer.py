"""Self- and cross-lambda: the two layers that stand where a diffusion U-Net usually has attention.

A lambda layer (Bello 2021, "LambdaNetworks: Modeling long-range interactions without attention") never builds a map
from every position to every other. It folds the context into a small matrix, the lambda, and applies that to each
query:

    content lambda    lambda_c = sum_m softmax(k)_m v_m^T             one k x v matrix for the whole picture
    position lambda   lambda_p(n) = sum_m E(n, m) v_m^T               one k x v matrix for each position n
    output            y(n, head) = (lambda_c + lambda_p(n))^T q(n, head)

This module states the layers as published (Moebius release, `LambdaLayer`); `denoiser.py` holds the exact rewrites.
Symbols: B batch, H heads, K = V = C / H key and value channels, N = h w positions in row-major order, M context vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BATCHNORM_EPS = 1e-5


class SelfLambda(nn.Module):
    """Context and queries both come from the picture; positions act through a `window` x `window` convolution.

    Args:
        channels: C, divisible by `heads`.
        heads: H.
        window: odd side of the local window, in cells (15 in the release).
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = channels // heads  # K and V
        self.to_q = nn.Conv2d(channels, channels, 1, bias=False)
        self.to_k = nn.Conv2d(channels, self.width, 1, bias=False)
        self.to_v = nn.Conv2d(channels, self.width, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(channels, eps=BATCHNORM_EPS)
        self.norm_v = nn.BatchNorm2d(self.width, eps=BATCHNORM_EPS)
        self.pos_conv = nn.Conv3d(1, self.width, (1, window, window), padding=(0, window // 2, window // 2))

    def position_lambda(self, v: Tensor) -> Tensor:
        """lambda_p of the values `v` (B, V, h, w), as (B, K, V, h, w): each value plane convolved with K kernels."""
        return self.pos_conv(v.unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), channels head-major."""
        B, C, h, w = x.shape
        q = self.norm_q(self.to_q(x)).view(B, self.heads, self.width, h * w)  # (B, H, K, N)
        k = self.to_k(x).flatten(2).softmax(dim=-1)  # (B, K, N)
        v = self.norm_v(self.to_v(x))  # (B, V, h, w)
        lambda_c = torch.einsum("bkn,bvn->bkv", k, v.flatten(2))
        lambda_p = self.position_lambda(v).flatten(3)  # (B, K, V, N)
        y = torch.einsum("bhkn,bkv->bhvn", q, lambda_c) + torch.einsum("bhkn,bkvn->bhvn", q, lambda_p)
        return y.reshape(B, C, h, w)


class CrossLambda(nn.Module):
    """Queries come from the picture, context from the condition vectors; one position embedding per cell and vector.

    Args:
        channels: C, divisible by `heads`.
        heads: H.
        context_dim: width of a condition vector.
        tokens: M, number of condition vectors.
        positions: N. `rel_pos_emb` (N, M, K, 1) ties the layer, and so the checkpoint, to one latent size.
    """

    def __init__(self, channels: int, heads: int, context_dim: int, tokens: int, positions: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = channels // heads
        self.to_q = nn.Conv2d(channels, channels, 1, bias=False)
        self.to_k = nn.Linear(context_dim, self.width, bias=False)
        self.to_v = nn.Linear(context_dim, self.width, bias=False)
        self.norm_q = nn.BatchNorm2d(channels, eps=BATCHNORM_EPS)
        self.norm_v = nn.BatchNorm1d(self.width, eps=BATCHNORM_EPS)
        self.rel_pos_emb = nn.Parameter(torch.randn(positions, tokens, self.width, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, h, w) with h w = `positions`, context (B, M, context_dim) -> (B, C, h, w), channels head-major."""
        B, C, h, w = x.shape
        q = self.norm_q(self.to_q(x)).view(B, self.heads, self.width, h * w)  # (B, H, K, N)
        k = self.to_k(context).softmax(dim=1)  # (B, M, K)
        v = self.norm_v(self.to_v(context).transpose(1, 2))  # (B, V, M)
        lambda_c = torch.einsum("bmk,bvm->bkv", k, v)
        lambda_p = torch.einsum("nmk,bvm->bnkv", self.rel_pos_emb.squeeze(-1), v)
        y = torch.einsum("bhkn,bkv->bhvn", q, lambda_c) + torch.einsum("bhkn,bnkv->bhvn", q, lambda_p)
        return y.reshape(B, C, h, w)
