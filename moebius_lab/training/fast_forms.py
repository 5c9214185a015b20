"""The slow layers of denoiser and autoencoder in forms that train fast; weights, keys and results stay the published ones.

`use_fast_forms` gives a module's layers classes whose forward pass is written differently. The proofs are in the docstrings, and
`tests/test_training.py` compares each form with the published one. Depthwise convolutions, whose library kernels are slow
backwards, have kernels of our own on a card.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.lambda_layer import CrossLambda, SelfLambda
from ..model.unet import ChannelLayerNorm

if torch.cuda.is_available():
    from .depthwise import depthwise


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


class FastSelfLambda(SelfLambda):
    """`SelfLambda` with lambda_p as one matrix product, and both lambdas summed before q is applied.

    q^T lambda_c + q^T lambda_p = q^T (lambda_c + lambda_p), and lambda_p[k, v, n] = sum_m T[k, n, m] v[v, m] + bias[k].
    """

    def forward(self, x: Tensor) -> Tensor:
        B, C, h, w = x.shape
        q = self.norm_q(self.to_q(x)).reshape(B, self.heads, self.width, h * w)
        k = self.to_k(x).flatten(2).softmax(dim=-1)  # (B, K, N)
        v = self.norm_v(self.to_v(x)).flatten(2)  # (B, V, N)
        lambda_c = torch.einsum("bkn,bvn->bkv", k, v)
        matrix = toeplitz(self.pos_conv.weight[:, 0, 0].to(v.dtype), h)  # (K, N, N)
        flat = v.reshape(1, B * self.width, h * w)
        lambda_p = torch.matmul(flat, matrix.transpose(1, 2)).reshape(self.width, B, self.width, h * w)  # (K, B, V, N)
        both = lambda_p.transpose(0, 1) + (lambda_c + self.pos_conv.bias[:, None])[..., None]  # (B, K, V, N)
        y = (q[:, :, :, None] * both[:, None]).sum(2)  # (B, H, V, N)
        return y.reshape(B, C, h, w).to(x.dtype)


class FastCrossLambda(CrossLambda):
    """`CrossLambda` as attention without softmax: nothing of size N x K x V is made.

    y[v, n] = sum_k q[k, n] sum_m (E[n, m, k] + k[m, k]) v[v, m] = sum_m S[n, m] v[v, m]: the sums change places.
    """

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        B, C, h, w = x.shape
        q = self.norm_q(self.to_q(x)).reshape(B, self.heads, self.width, h * w)
        k = self.to_k(context).softmax(dim=1)  # (B, M, K)
        v = self.norm_v(self.to_v(context).transpose(1, 2))  # (B, V, M)
        embedding = self.rel_pos_emb.squeeze(-1).permute(1, 2, 0).to(q.dtype)  # (M, K, N)
        scores = (q[:, :, None] * (embedding + k[..., None].to(q.dtype))[:, None]).sum(3)  # (B, H, M, N)
        y = (scores[:, :, None] * v[:, None, :, :, None].to(q.dtype)).sum(3)  # (B, H, V, N)
        return y.reshape(B, C, h, w).to(x.dtype)


class FastGroupNorm(nn.GroupNorm):
    """`GroupNorm` in the type of `x`; autocast would write float32. The sums are float32 in any case."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class FastLayerNorm(ChannelLayerNorm):
    """`ChannelLayerNorm` in the type of `x`, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.permute(0, 2, 3, 1)
            normed = F.layer_norm(rows, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
            return normed.permute(0, 3, 1, 2)


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution as one matrix product over all cells; channels last, so nothing is moved for it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """A padded 3 x 3 depthwise convolution by a kernel of our own on a card; on a processor, the library's."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return super().forward(x)
        taps = self.weight.to(x.dtype).reshape(-1, 9)
        bias = torch.zeros_like(taps[:, 0]) if self.bias is None else self.bias.to(x.dtype)
        with torch.autocast("cuda", enabled=False):
            return depthwise(x.permute(0, 2, 3, 1).contiguous(), taps.contiguous(), bias).permute(0, 3, 1, 2)


FORMS = {
    SelfLambda: FastSelfLambda,
    CrossLambda: FastCrossLambda,
    nn.GroupNorm: FastGroupNorm,
    ChannelLayerNorm: FastLayerNorm,
}


def _form(module: nn.Module) -> type[nn.Module] | None:
    if type(module) is nn.Conv2d and module.stride == (1, 1):
        if module.kernel_size == (1, 1) and module.groups == 1:
            return PointwiseConv
        if (
            module.kernel_size == (3, 3)
            and module.padding == (1, 1)
            and module.groups == module.in_channels == module.out_channels > 1
        ):
            return DepthwiseConv
    return FORMS.get(type(module))


def use_fast_forms(network: nn.Module) -> nn.Module:
    """Give one network's layers their fast forms.

    Args:
        network: a `MoebiusNet` or an autoencoder; changed in place, its parameters untouched.

    Returns:
        The same network.
    """
    for module in network.modules():
        form = _form(module)
        if form is not None:
            module.__class__ = form
    return network


def channels_last(network: nn.Module) -> nn.Module:
    """Lay the kernels of the network's two-dimensional convolutions so that channels come last; in place, values as they were."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return network
