"""Every kernel of `training/kernels.py` against the library, output and gradients, in Triton's interpreter: run by `test_training.py`."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius_lab.training import kernels
from moebius_lab.training.fast_forms import toeplitz


def agree(name: str, ours: Tensor, library: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Raise unless output and the gradients of `inputs` are the same to single precision."""
    wish = torch.randn_like(library)
    pairs = [(ours, library), *zip(torch.autograd.grad(ours, inputs, wish), torch.autograd.grad(library, inputs, wish))]
    for place, (a, b) in enumerate(pairs):
        apart = float((a - b).detach().abs().max() / b.detach().abs().max())
        assert apart < 1e-5, f"{name}: off by {apart:.2g} in {place}"


def variable(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def main() -> None:
    torch.manual_seed(0)
    for heads, width, cells in ((8, 4, 40), (2, 12, 64)):
        q, both = variable(2, cells, heads, width), variable(width, 2, width, cells)
        laid, turned = q.permute(0, 2, 3, 1), both.transpose(0, 1)
        ours = kernels.LambdaProduct.apply(laid, turned)
        agree("lambda product", ours, torch.einsum("bhkn,bkvn->bhvn", laid, turned), (q, both))
    for side, window in ((4, 7), (6, 3)):
        kernel = variable(2, window, window)
        agree("Toeplitz matrix", kernels.Toeplitz.apply(kernel, side, toeplitz), toeplitz(kernel, side), (kernel,))
    for shape in ((2, 8, 8, 70), (3, 5, 7, 9)):
        for silu in (False, True):
            x, taps, bias = variable(*shape), variable(shape[-1], 9), variable(shape[-1])
            read = (F.silu(x) if silu else x).permute(0, 3, 1, 2)
            library = F.conv2d(read, taps.view(-1, 1, 3, 3), bias, padding=1, groups=shape[-1]).permute(0, 2, 3, 1)
            agree("depthwise convolution", kernels.Depthwise.apply(x, taps, bias, silu), library, (x, taps, bias))
    u = variable(3, 5, 14)
    a, g = u.chunk(2, -1)
    agree("gate", kernels.Gate.apply(u), a * F.silu(g), (u,))
    for batch, cells, channels, groups in ((2, 64, 24, 8), (2, 37, 16, 4), (1, 20, 48, 4)):
        for silu in (False, True):
            x, weight, bias = variable(batch, cells, channels), variable(channels), variable(channels)
            library = F.group_norm(x.transpose(1, 2), groups, weight, bias, 1e-5).transpose(1, 2)
            ours = kernels.GroupNorm.apply(x, weight, bias, groups, 1e-5, silu)
            agree("group norm", ours, F.silu(library) if silu else library, (x, weight, bias))
    kernels.PROGRAMS = 3  # so that each has several rounds
    for rows, channels in ((70, 24), (1500, 6)):
        x, weight, bias = variable(rows, channels), variable(channels), variable(channels)
        library = F.layer_norm(x, (channels,), weight, bias, 1e-5)
        agree("layer norm", kernels.LayerNorm.apply(x, weight, bias, 1e-5), library, (x, weight, bias))
    print("all kernels agree")


if __name__ == "__main__":
    main()
