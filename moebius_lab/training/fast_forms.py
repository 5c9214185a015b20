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
from ..unet import ChannelLayerNorm


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


def _group_norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    """`GroupNorm.forward` in the type of `x`; autocast would write float32. The sums are float32 in any case."""
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, layer.num_groups, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)


def _layer_norm(layer: ChannelLayerNorm, x: Tensor) -> Tensor:
    """`ChannelLayerNorm.forward` in the type of `x`, likewise."""
    with torch.autocast(x.device.type, enabled=False):
        rows = x.permute(0, 2, 3, 1)
        normed = F.layer_norm(rows, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)
        return normed.permute(0, 3, 1, 2)


FORMS = {SelfLambda: _self_lambda, CrossLambda: _cross_lambda, nn.GroupNorm: _group_norm, ChannelLayerNorm: _layer_norm}


def use_fast_forms(network: nn.Module) -> nn.Module:
    """Give one network's layers their fast forms.

    Args:
        network: a `MoebiusNet` or an autoencoder; changed in place, its parameters untouched.

    Returns:
        The same network.
    """
    for module in network.modules():
        form = FORMS.get(type(module))
        if form is not None:
            module.forward = MethodType(form, module)
    return network
