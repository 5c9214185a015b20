"""The slow layers of denoiser and autoencoder in forms that train fast; weights, keys and results stay the published ones.

`use_fast_forms` gives a module's layers classes whose forward pass is written differently. The proofs are in the docstrings, and
`tests/training` compares each form with the published one. On a card most of them run kernels of our own (`kernels.py`): a step
spends its time on moving numbers, and the library moves each of them several times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.lambda_layer import CrossLambda, SelfLambda
from ..model.unet import ChannelLayerNorm, MixFFN, ResnetBlock

if torch.cuda.is_available():
    from . import kernels


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


def product(q: Tensor, both: Tensor) -> Tensor:
    """y[b, h, v, n] = sum over k of q[b, h, k, n] both[b, k, v, n], in the type of q."""
    if q.is_cuda:
        return kernels.LambdaProduct.apply(q, both.to(q.dtype))
    return (q[:, :, :, None] * both[:, None]).sum(2)


class FastSelfLambda(SelfLambda):
    """`SelfLambda` with lambda_p as one matrix product, and both lambdas summed before q is applied.

    q^T lambda_c + q^T lambda_p = q^T (lambda_c + lambda_p), and lambda_p[k, v, n] = sum_m T[k, n, m] v[v, m] + bias[k].
    """

    def forward(self, x: Tensor) -> Tensor:
        B, C, h, w = x.shape
        q = self.norm_q(self.to_q(x)).reshape(B, self.heads, self.width, h * w)
        k = self.to_k(x).flatten(2).softmax(dim=-1)  # (B, K, N)
        v = self.norm_v(self.to_v(x)).flatten(2)  # (B, V, N)
        lambda_c = torch.einsum("bkn,bvn->bvk", k, v) + self.pos_conv.bias.to(v.dtype)
        kernel = self.pos_conv.weight[:, 0, 0].to(v.dtype)
        matrix = kernels.Toeplitz.apply(kernel, h, toeplitz) if x.is_cuda else toeplitz(kernel, h)  # (K, N, N)
        lambda_p = F.linear(v.reshape(B * self.width, h * w), matrix.flatten(0, 1)).view(B, self.width, self.width, h * w)
        both = (lambda_p + lambda_c[..., None]).transpose(1, 2)  # (B, K, V, N)
        return product(q, both).reshape(B, C, h, w)


class FastCrossLambda(CrossLambda):
    """`CrossLambda` with lambda_p as one matrix product, and both lambdas summed before q is applied."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        B, C, h, w = x.shape
        q = self.norm_q(self.to_q(x)).reshape(B, self.heads, self.width, h * w)
        k = self.to_k(context).softmax(dim=1)  # (B, M, K)
        v = self.norm_v(self.to_v(context).transpose(1, 2))  # (B, V, M)
        lambda_c = torch.einsum("bmk,bvm->bvk", k, v)
        embedding = self.rel_pos_emb.squeeze(-1).permute(2, 0, 1).reshape(self.width * h * w, -1)  # (K N, M)
        lambda_p = F.linear(v.reshape(B * self.width, -1), embedding).view(B, self.width, self.width, h * w)
        both = (lambda_p + lambda_c[..., None].to(lambda_p.dtype)).transpose(1, 2)  # (B, K, V, N)
        return product(q, both).reshape(B, C, h, w)


def normed(norm: nn.GroupNorm, x: Tensor, silu: bool) -> Tensor:
    """`norm(x)` in the type of `x` (autocast would write float32), or the SiLU of it."""
    with torch.autocast(x.device.type, enabled=False):
        if x.is_cuda and norm.num_groups & (norm.num_groups - 1) == 0:
            rows = x.permute(0, 2, 3, 1).contiguous()
            flat = kernels.GroupNorm.apply(rows.flatten(1, 2), norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
            return flat.view(rows.shape).permute(0, 3, 1, 2)
        y = F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
        return F.silu(y) if silu else y


class FastGroupNorm(nn.GroupNorm):
    """`GroupNorm` in the type of `x`. The sums are float32 in any case."""

    def forward(self, x: Tensor) -> Tensor:
        return normed(self, x, False)


class FastLayerNorm(ChannelLayerNorm):
    """`ChannelLayerNorm` in the type of `x`, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.permute(0, 2, 3, 1)
            if x.is_cuda:
                return kernels.LayerNorm.apply(rows.contiguous(), self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(rows, self.normalized_shape, weight, bias, self.eps).permute(0, 3, 1, 2)


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution as one matrix product over all cells; channels last, so nothing is moved for it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


def convolved(conv: nn.Conv2d, x: Tensor, silu: bool) -> Tensor:
    """A padded 3 x 3 depthwise convolution of x, or of its SiLU, on a card."""
    taps = conv.weight.reshape(-1, 9)
    bias = torch.zeros_like(taps[:, 0]) if conv.bias is None else conv.bias
    rows = x.permute(0, 2, 3, 1).contiguous()
    return kernels.Depthwise.apply(rows, taps.contiguous(), bias, silu).permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """A padded 3 x 3 depthwise convolution by a kernel of our own on a card; on a processor, the library's."""

    def forward(self, x: Tensor) -> Tensor:
        return convolved(self, x, False) if x.is_cuda else super().forward(x)


class FastMixFFN(MixFFN):
    """`MixFFN` whose SiLU is part of the convolution behind it, and whose gate is one operation."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return super().forward(x)
        wide = convolved(self.depth_conv.conv, self.inverted_conv(x), True)
        return self.point_conv(kernels.Gate.apply(wide.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class FastResnetBlock(ResnetBlock):
    """`ResnetBlock` whose SiLUs are part of the norms before them."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(normed(self.norm1, x, True))
        y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(normed(self.norm2, y, True))


FORMS = {
    SelfLambda: FastSelfLambda,
    CrossLambda: FastCrossLambda,
    nn.GroupNorm: FastGroupNorm,
    ChannelLayerNorm: FastLayerNorm,
    MixFFN: FastMixFFN,
    ResnetBlock: FastResnetBlock,
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
