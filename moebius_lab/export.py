"""Three ONNX graphs from a checkpoint: the straightforward export, opset 18, checked and compared as it is made.

| graph | inputs | outputs |
|---|---|---|
| vae_encoder | image (1, 3, S, S) in [-1, 1] | mean, std (1, 4, s, s) of the posterior, unscaled |
| denoiser | latent (2, 9, s, s), timesteps (2) float32, input_ids (2, 10) int64 | noise (2, 4, s, s), unconditional first |
| vae_decoder | latent (1, 4, s, s), unscaled | image (1, 3, S, S) in about [-1, 1] |

S is the network's image size and s = S / 8; both, and the batch, are fixed.
"""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections import Counter
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from . import LabError
from .backends import GRAPHS, guided_ids
from .config import INPUT_CHANNELS, LATENT_CHANNELS, NetworkConfig
from .lambda_layer import SelfLambda
from .unet import MoebiusNet

OPSET = 18


class SelfLambda2d(SelfLambda):
    """`SelfLambda` whose position term is a two-dimensional convolution.

    The published kernel is (1, 15, 15): it never mixes value planes. So the planes can stand in the batch,

        Conv3d: (B, 1, V, h, w) -> (B, K, V, h, w)    equals    Conv2d: (B V, 1, h, w) -> (B V, K, h, w), axes swapped,

    which every runtime has, where three-dimensional convolutions are missing or slow.
    """

    def position_lambda(self, v: Tensor) -> Tensor:
        B, V, h, w = v.shape
        weight, pad = self.pos_conv.weight.squeeze(2), self.pos_conv.padding[1]
        p = F.conv2d(v.reshape(B * V, 1, h, w), weight, self.pos_conv.bias, padding=pad)  # (B V, K, h, w)
        return p.view(B, V, self.width, h, w).transpose(1, 2)


def with_2d_position_conv(net: MoebiusNet) -> MoebiusNet:
    """A copy of `net` with `SelfLambda2d` in every self-lambda; the weights are the same."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if type(module) is SelfLambda:
            module.__class__ = SelfLambda2d
    return net


class _Encoder(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image).latent_dist
        return posterior.mean, posterior.std


class _Decoder(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).sample


def example_inputs(config: NetworkConfig) -> dict[str, dict[str, Tensor]]:
    """Inputs of each graph by name, drawn with a fixed seed: for tracing, parity and timing."""
    rng = torch.Generator().manual_seed(0)
    s, S = config.latent_size, config.image_size
    return {
        "vae_encoder": {"image": torch.rand(1, 3, S, S, generator=rng) * 2 - 1},
        "denoiser": {
            "latent": torch.randn(1, INPUT_CHANNELS, s, s, generator=rng).repeat(2, 1, 1, 1),
            "timesteps": torch.full((2,), 500.0),
            "input_ids": guided_ids(),
        },
        "vae_decoder": {"latent": torch.randn(1, LATENT_CHANNELS, s, s, generator=rng) / config.vae.scaling_factor},
    }


def torch_graphs(net: MoebiusNet, vae: AutoencoderKL) -> dict[str, nn.Module]:
    """The PyTorch modules that the three graphs are exported from, and compared with."""
    return {
        "vae_encoder": _Encoder(vae).eval(),
        "denoiser": with_2d_position_conv(net).eval(),
        "vae_decoder": _Decoder(vae).eval(),
    }


OUTPUT_NAMES = {"vae_encoder": ["mean", "std"], "denoiser": ["noise"], "vae_decoder": ["image"]}


def export_graphs(net: MoebiusNet, vae: AutoencoderKL, folder: str | Path, on_graph=lambda name: None) -> dict[str, Path]:
    """Export the three graphs into `folder` as NAME.onnx, each with its weights beside it in NAME.onnx.data.

    Args:
        net: the denoiser, float32.
        vae: its autoencoder, float32.
        folder: made if missing; files of these names are replaced.
        on_graph: called with a graph's name before it is exported.

    Returns:
        The path of each graph.

    Raises:
        LabError: the disk has too little room.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    modules = torch_graphs(net, vae)
    needed = sum(4 * p.numel() for module in modules.values() for p in module.parameters()) * 1.1
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LabError(f"{folder}: {needed / 1e6:.0f} MB are needed but {free / 1e6:.0f} MB are free; make room")
    paths = {}
    for name, inputs in example_inputs(net.config).items():
        on_graph(name)
        paths[name] = folder / f"{name}.onnx"
        _export(modules[name], inputs, OUTPUT_NAMES[name], paths[name])
        onnx.checker.check_model(str(paths[name]))
    return paths


def _export(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside the exporter, nothing about our graphs
        torch.onnx.export(
            module, tuple(inputs.values()), str(path), input_names=list(inputs), output_names=outputs,
            opset_version=OPSET, dynamo=True, optimize=True, external_data=True, verbose=False,
        )  # fmt: skip


def operator_counts(path: str | Path) -> Counter[str]:
    """How often each ONNX operator occurs in a file; weights are not read."""
    return Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)


def graph_bytes(path: str | Path) -> int:
    """Size on disk of a graph and its weights, in bytes."""
    path = Path(path)
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))


assert tuple(OUTPUT_NAMES) == GRAPHS
