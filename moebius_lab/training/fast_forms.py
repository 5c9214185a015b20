"""The denoiser's slow layers in forms that train fast; weights, keys and results stay those of `unet.py`.

Each function takes the place of one method, on one network (`use_fast_forms`); the classes stay as published. The
proofs are in the docstrings, and `tests/test_training.py` compares each form with the published one.
"""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lambda_layer import CrossLambda, SelfLambda


def toeplitz(kernel: Tensor, side: int) -> Tensor:
    """The matrix of a zero-padded convolution: (K, w, w) kernels -> (K, N, N) with N = side^2.

    Output n reads input m with weight kernel[m - n + w // 2], so every entry depends on the offset m - n alone. Lay the
    kernel in the middle of a (2 side - 1)^2 canvas C that is indexed by offset + side - 1, zero where the offset leaves
    the kernel. Row n of the matrix is then the side x side window of C that starts at side - 1 - n: two unfolds list the
    windows by their start, and a flip turns starts into positions.
    """
    half = kernel.shape[-1] // 2
    pad = side - 1 - half  # negative for grids smaller than half the kernel: F.pad then cuts
    canvas = F.pad(kernel, (pad, pad, pad, pad))
    windows = canvas.unfold(1, side, 1).unfold(2, side, 1).flip(1, 2)  # (K, ny, nx, my, mx)
    return windows.reshape(kernel.shape[0], side * side, side * side)


def _self_lambda(layer: SelfLambda, x: Tensor) -> Tensor:
    """`SelfLambda.forward` with lambda_p as one matrix product, and both lambdas summed before q is applied.

    q^T lambda_c + q^T lambda_p = q^T (lambda_c + lambda_p), and lambda_p[k, v, n] = sum_m T[k, n, m] v[v, m] + bias[k].
    """
    B, C, h, w = x.shape
    q = layer.norm_q(layer.to_q(x)).reshape(B, layer.heads, layer.width, h * w)
    k = layer.to_k(x).flatten(2).softmax(dim=-1)  # (B, K, N)
    v = layer.norm_v(layer.to_v(x)).flatten(2)  # (B, V, N)
    lambda_c = torch.einsum("bkn,bvn->bkv", k, v)
    matrix = toeplitz(layer.pos_conv.weight[:, 0, 0].to(v.dtype), h)  # (K, N, N)
    flat = v.reshape(1, B * layer.width, h * w)
    lambda_p = torch.matmul(flat, matrix.transpose(1, 2)).reshape(layer.width, B, layer.width, h * w)  # (K, B, V, N)
    both = lambda_p.transpose(0, 1) + (lambda_c + layer.pos_conv.bias[:, None])[..., None]  # (B, K, V, N)
    y = (q[:, :, :, None] * both[:, None]).sum(2)  # (B, H, V, N)
    return y.reshape(B, C, h, w).to(x.dtype)


def _cross_lambda(layer: CrossLambda, x: Tensor, context: Tensor) -> Tensor:
    """`CrossLambda.forward` as attention without softmax: nothing of size N x K x V is made.

    y[v, n] = sum_k q[k, n] sum_m (E[n, m, k] + k[m, k]) v[v, m] = sum_m S[n, m] v[v, m]: the sums change places.
    """
    B, C, h, w = x.shape
    q = layer.norm_q(layer.to_q(x)).reshape(B, layer.heads, layer.width, h * w)
    k = layer.to_k(context).softmax(dim=1)  # (B, M, K)
    v = layer.norm_v(layer.to_v(context).transpose(1, 2))  # (B, V, M)
    embedding = layer.rel_pos_emb.squeeze(-1).permute(1, 2, 0).to(q.dtype)  # (M, K, N)
    scores = (q[:, :, None] * (embedding + k[..., None].to(q.dtype))[:, None]).sum(3)  # (B, H, M, N)
    y = (scores[:, :, None] * v[:, None, :, :, None].to(q.dtype)).sum(3)  # (B, H, V, N)
    return y.reshape(B, C, h, w).to(x.dtype)


def _depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A padded depthwise 3x3 convolution as nine shifted products, which a compiler fuses with what stands around it."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    weight = conv.weight.to(x.dtype)
    y = sum(
        padded[:, :, i : i + h, j : j + w] * weight[:, 0, i, j, None, None] for i in range(3) for j in range(3)
    )
    return y if conv.bias is None else y + conv.bias.to(x.dtype)[:, None, None]


def use_fast_forms(network: nn.Module, shifts: bool = True) -> nn.Module:
    """Give one network's layers their fast forms.

    Args:
        network: a `MoebiusNet`; changed in place, its parameters untouched.
        shifts: also write depthwise convolutions as shifted products; only faster under `torch.compile`.

    Returns:
        The same network.
    """
    for module in network.modules():
        if isinstance(module, SelfLambda):
            module.forward = MethodType(_self_lambda, module)
        elif isinstance(module, CrossLambda):
            module.forward = MethodType(_cross_lambda, module)
        elif shifts and isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels:
            module.forward = MethodType(_depthwise, module)
    return network
