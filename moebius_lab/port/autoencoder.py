"""Exact rewrites of the autoencoder, made before it is exported; `denoiser.py` has the denoiser's.

    PooledGroupNorm              GroupNorm in operators that work with channels first and channels last
    PhaseUpsample                nearest x2 and 3x3 convolution as four 2x2 convolutions of the small picture, whose results
                                 `passes.fuse_depth_to_space` puts together
    EachPart, SumOverParts       what reads a picture that is too large for one binding of WebGPU, in parts by channel

`tests/port/test_autoencoder.py` compares with diffusers' own forms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ..config import LARGEST_BINDING

POOLED = 8  # px, side of the squares that are summed number by number
ATTENTION_NORM = "group_norm"  # the name of an attention's norm in diffusers
PUT_TOGETHER = (0, 3, 4, 1, 5, 2)  # (B, row phase, column phase, C, h, w) -> (B, C, h, row phase, w, column phase)

Parts = Tensor | tuple[Tensor, ...]
"""A picture (1, C, h, w), or equal parts of its channels in their order, each (1, C / parts, h, w)."""


def square(side: int) -> int:
    """The largest divisor of `side` up to `POOLED`, or `side` itself if that divisor is 1."""
    return max((d for d in range(2, POOLED + 1) if side % d == 0), default=side)


class PooledGroupNorm(nn.Module):
    """GroupNorm of a picture (1, C, h, w), its means taken over squares of up to `POOLED` px, then over squares of the results.

    The mean of many numbers is the mean of the means of equal parts. So a group's mean = E[x] and var = E[(x - mean)^2] are
    means over small squares, then over squares of those results, and finally over the group's channels; what remains is
    BatchNormalization with the group's numbers for each of its channels. In exact arithmetic nothing changes.

    In float32 it does, wherever a runtime adds one number after another, as ONNX Runtime's InstanceNormalization does in
    WebAssembly: at 512 px a group has one or two million numbers, and its variance comes out wrong in the fourth digit.
    Here no sum has more than 64 terms. Nor does anything here fix the order of channels and cells. GroupNorm's usual form
    does: it reshapes (C, h, w) to (groups, n), so on a GPU, whose convolutions read channels last, the runtime would
    transpose the picture before and after every norm.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        together = norm.num_channels // norm.num_groups
        # (channels of a group) -> their mean, for each of them
        self.register_buffer("spread", torch.full((together, together), 1 / together))

    def group_means(self, x: Tensor) -> Tensor:
        """(1, C, h, w) -> (C,): the mean of its group for each channel; all of a group is in x."""
        while x.shape[2] * x.shape[3] > 1:
            x = F.avg_pool2d(x, (square(x.shape[2]), square(x.shape[3])))
        x = x.permute(0, 2, 3, 1)  # one cell: moves nothing, but cancels the runtime's own transposition, if any
        return (x.reshape(-1, len(self.spread)) @ self.spread).flatten()

    def normalized(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(1, C, h, w), (C,), (C,) -> (1, C, h, w)."""
        centre = self.group_means(x)
        d = x - centre.reshape(1, 1, 1, -1).permute(0, 3, 1, 2)
        variance = self.group_means(d * d)
        return F.batch_norm(x, centre, variance, weight, bias, eps=self.norm.eps)

    def forward(self, x: Parts) -> Parts:
        """(1, C, h, w) -> the same shape, in the same parts, of which each must hold whole groups."""
        weight, bias = self.norm.weight, self.norm.bias
        if isinstance(x, Tensor):
            return self.normalized(x, weight, bias)
        return tuple(map(self.normalized, x, weight.chunk(len(x)), bias.chunk(len(x))))


class PhaseUpsample(nn.Module):
    """Nearest x2 and 3x3 convolution as four 2x2 convolutions of the small picture, one for each phase of the large one.

    In one dimension, with u[2i] = u[2i+1] = x[i] and y[j] = w0 u[j-1] + w1 u[j] + w2 u[j+1],

        y[2i]   = w0 x[i-1] + (w1 + w2) x[i]
        y[2i+1] = (w0 + w1) x[i] + w2 x[i+1]

    and zero padding of u is zero padding of x. That takes 4 products per pixel of the large picture and pair of channels,
    where the convolution of the doubled picture takes 9. The kernels of the phases are sums of the stored kernel's taps,
    computed in the graph: the runtime computes them once, at load, and no more is stored than before.
    """

    def __init__(self, upsample: Upsample2D, largest: int = LARGEST_BINDING) -> None:
        super().__init__()
        self.conv, self.largest = upsample.conv, largest

    @staticmethod
    def halves(kernels: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Kernels of three taps along `axis` -> kernels of two taps for the even and for the odd phase."""
        w0, w1, w2 = kernels.unbind(axis)
        return torch.stack((w0, w1 + w2), axis), torch.stack((w0 + w1, w2), axis)

    def forward(self, x: Tensor) -> Parts:
        """(1, C, h, w) -> (1, out, 2 h, 2 w), in as few parts as `largest` allows."""
        h, w = x.shape[2:]
        count = parts_for(self.conv.out_channels, 4 * h * w, self.largest)
        weight, bias = self.conv.weight, self.conv.bias
        if count == 1:
            return self.enlarged(x, weight, bias)
        return tuple(self.enlarged(x, *kernels) for kernels in zip(weight.chunk(count), bias.chunk(count)))

    def enlarged(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(1, C, h, w), (out, C, 3, 3), (out,) -> (1, out, 2 h, 2 w)."""
        phases = []
        for row, lines in enumerate(self.halves(weight, 2)):
            for column, kernels in enumerate(self.halves(lines, 3)):
                # an even phase reads the cell before its own, an odd phase the cell after
                padded = F.pad(x, (1 - column, column, 1 - row, row))
                phases.append(F.conv2d(padded, kernels, bias))
        B, C, h, w = phases[0].shape
        return torch.cat(phases, 1).reshape(B, 2, 2, C, h, w).permute(PUT_TOGETHER).reshape(B, C, 2 * h, 2 * w)


def parts_for(channels: int, positions: int, largest: int) -> int:
    """The least number of equal parts by channel of a float32 picture of which none takes more than `largest` bytes.

    Raises:
        ValueError: there is none, because one channel takes more.
    """
    fits = (n for n in range(1, channels + 1) if channels % n == 0 and 4 * (channels // n) * positions <= largest)
    if not (count := next(fits, 0)):
        raise ValueError(f"one channel of {positions} positions takes more than {largest} bytes")
    return count


class EachPart(nn.Module):
    """A function of single numbers, of a picture in parts."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Parts) -> Parts:
        """Any shape -> the same."""
        return self.function(x) if isinstance(x, Tensor) else tuple(map(self.function, x))


class SumOverParts(nn.Module):
    """A convolution of a picture in parts: it sums over input channels, and so over the parts too.

    conv(x) = conv_a(x_a) + conv_b(x_b) + bias, each with the kernels' columns for its own channels. In exact arithmetic nothing changes.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Parts) -> Tensor:
        """(1, C, h, w) -> (1, out, h, w)."""
        if isinstance(x, Tensor):
            return self.conv(x)
        biases = (self.conv.bias, *[None] * (len(x) - 1))
        sides = {"stride": self.conv.stride, "padding": self.conv.padding}
        kernels = self.conv.weight.chunk(len(x), 1)
        first, *rest = map(lambda *of_part: F.conv2d(*of_part, **sides), x, kernels, biases)
        return sum(rest, first)


def rewritten(vae: AutoencoderKL, largest: int = LARGEST_BINDING) -> AutoencoderKL:
    """A copy of `vae` that shares its weights and has the rewrites of this module; for one picture at a time.

    The norm inside the attention, whose input is (1, C, N), stays as it is: it is small.

    Args:
        largest: bytes that a picture may take as one tensor. An upsampling's result that would take more is made in parts by channel,
            which the ResNet block after it reads; nothing else at the published size is as large.
    """
    vae = copy.deepcopy(vae, {id(parameter): parameter for parameter in vae.parameters()})
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm) and name != ATTENTION_NORM:
                setattr(module, name, PooledGroupNorm(child))
            elif isinstance(child, Upsample2D):
                setattr(module, name, PhaseUpsample(child, largest))
    for block in vae.decoder.up_blocks[1:]:
        after = block.resnets[0]  # reads an upsampling's result
        after.nonlinearity = EachPart(after.nonlinearity)
        after.conv1 = SumOverParts(after.conv1)
        if after.conv_shortcut is not None:  # without it the channels stay as many, and their sum would be as large
            after.conv_shortcut = SumOverParts(after.conv_shortcut)
    return vae
