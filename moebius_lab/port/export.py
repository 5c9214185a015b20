"""Three ONNX graphs from a checkpoint, in `config.OPSET`.

| graph | inputs | outputs |
|---|---|---|
| vae_encoder | image (1, 3, S, S) in [-1, 1] | mean, std (1, 4, s, s) of the posterior, unscaled |
| step | latents (1, 4, s, s), mask (1, 1, s, s), masked_latents (1, 4, s, s), timestep, guidance, latent_scale, noise_scale (1) | next_latents (1, 4, s, s); noise (2, 4, s, s), unconditional first |
| vae_decoder | latent (1, 4, s, s), unscaled | image (1, 3, S, S) in about [-1, 1] |

All are float32; S is the network's image size and s = S / 8. Shapes are fixed. `step` is one guided DDIM step of the
denoiser, rewritten as `denoiser.py` tells; `autoencoder.py` has the autoencoder's rewrites. The straightforward form of the step is
the published denoiser as the exporter finds it, which is there to be compared with.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .. import LabError
from ..config import GRAPHS, GUIDANCE, LATENT_CHANNELS, OPSET, RUNTIME_DOMAIN, STEPS, STRENGTH, NetworkConfig
from ..files import require_room
from ..inpainting.backends import guided_ids
from ..model.ddim import ddim_steps, guided_update
from ..model.lambda_layer import SelfLambda
from ..model.unet import MoebiusNet
from .autoencoder import rewritten
from .denoiser import STEP_INPUTS, STEP_OUTPUTS, StepGraph
from .passes import forget_where_from, fuse_depth_to_space, fuse_skip_layer_norms

OUTPUT_NAMES = {"vae_encoder": ["mean", "std"], "step": list(STEP_OUTPUTS), "vae_decoder": ["image"]}


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


class Encoder(nn.Module):
    """image (1, 3, S, S) -> mean and standard deviation of the autoencoder's posterior."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image).latent_dist
        return posterior.mean, posterior.std


class Decoder(nn.Module):
    """latent (1, 4, s, s), unscaled -> image (1, 3, S, S)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).sample


class PublishedStep(nn.Module):
    """What `denoiser.StepGraph` must equal: the published network on a guided batch of two, guidance, one DDIM step."""

    def __init__(self, net: MoebiusNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        latents: Tensor,
        mask: Tensor,
        masked_latents: Tensor,
        timestep: Tensor,
        guidance: Tensor,
        latent_scale: Tensor,
        noise_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Inputs and outputs are those of `denoiser.StepGraph`."""
        x = torch.cat([latents, mask, masked_latents], dim=1).repeat(2, 1, 1, 1)
        noise = self.net(x, timestep.expand(2), guided_ids().to(x.device))
        return guided_update(latents, noise, guidance, latent_scale, noise_scale), noise


def example_inputs(config: NetworkConfig) -> dict[str, dict[str, Tensor]]:
    """Inputs of each graph by name, drawn with a fixed seed: for tracing, parity and timing.

    The step is the middle one of the release's schedule, with its guidance; the latents have unit variance and the mask
    is a square hole in the middle.
    """
    rng = torch.Generator().manual_seed(0)
    s, S = config.latent_size, config.image_size
    step = ddim_steps(STEPS, STRENGTH)[9]
    mask = torch.zeros(1, 1, s, s)
    mask[:, :, s // 4 : 3 * s // 4, s // 4 : 3 * s // 4] = 1
    numbers = (step.timestep, GUIDANCE, step.latent_scale, step.noise_scale)
    arrays = (
        torch.randn(1, LATENT_CHANNELS, s, s, generator=rng),
        mask,
        torch.randn(1, LATENT_CHANNELS, s, s, generator=rng),
    )
    return {
        "vae_encoder": {"image": torch.rand(1, 3, S, S, generator=rng) * 2 - 1},
        "step": dict(zip(STEP_INPUTS, (*arrays, *(torch.tensor([float(n)]) for n in numbers)), strict=True)),
        "vae_decoder": {"latent": torch.randn(1, LATENT_CHANNELS, s, s, generator=rng) / config.vae.scaling_factor},
    }


def torch_graphs(net: MoebiusNet, vae: AutoencoderKL) -> dict[str, nn.Module]:
    """The PyTorch modules that the graphs are compared with: the published forms, in evaluation mode."""
    return {"vae_encoder": Encoder(vae).eval(), "step": PublishedStep(net).eval(), "vae_decoder": Decoder(vae).eval()}


def exported_module(graph: str, net: MoebiusNet, vae: AutoencoderKL) -> nn.Module:
    """The PyTorch module that `export_graph` exports: the rewritten form, in evaluation mode. It may share parts with `net` or `vae`."""
    make = {
        "vae_encoder": lambda: Encoder(rewritten(vae)),
        "step": lambda: StepGraph(net),
        "vae_decoder": lambda: Decoder(rewritten(vae)),
    }
    return make[graph]().eval()


def export_graph(graph: str, net: MoebiusNet, vae: AutoencoderKL, folder: str | Path) -> Path:
    """Export one of the three graphs to `folder`/NAME.onnx, float32, with its weights in NAME.onnx.data next to it.

    Args:
        graph: one of `GRAPHS`.
        net: the denoiser, float32, in evaluation mode.
        vae: its autoencoder, float32.
        folder: made if missing; files of these names are replaced.

    Raises:
        LabError: the disk has too little room. Nothing is written.
    """
    module = exported_module(graph, net, vae)
    return _export(module, example_inputs(net.config)[graph], OUTPUT_NAMES[graph], Path(folder) / f"{graph}.onnx")


def export_straightforward(net: MoebiusNet, folder: str | Path) -> Path:
    """Export the published step, rewritten only by `SelfLambda2d`, to `folder`/step.onnx: inputs and outputs are `step`'s.

    Raises:
        LabError: the disk has too little room. Nothing is written.
    """
    module = PublishedStep(with_2d_position_conv(net)).eval()
    return _export(module, example_inputs(net.config)["step"], OUTPUT_NAMES["step"], Path(folder) / "step.onnx")


def _export(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    require_room(path.parent, sum(4 * p.numel() for p in module.parameters()) * 1.1, f"the export of {path.name}")
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            module, tuple(inputs.values()), str(path), input_names=list(inputs), output_names=outputs,
            opset_version=OPSET, dynamo=True, optimize=True, external_data=True, verbose=False,
        )  # fmt: skip
    model = onnx.load(str(path), load_external_data=False)
    forget_where_from(model)
    fuse_depth_to_space(model.graph)
    if fuse_skip_layer_norms(model.graph):
        model.opset_import.append(onnx.helper.make_opsetid(RUNTIME_DOMAIN, 1))
    onnx.save(model, path)
    onnx.checker.check_model(str(path))
    return path


@contextmanager
def _quiet():
    """Without the exporter's notes on missing packages and its own deprecations, which say nothing about our graphs."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def written_down(module: nn.Module, *inputs: Tensor) -> list[str]:
    """What the exporter makes of a module on `inputs`: a line for each node, with the shapes of its inputs and outputs."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(module.eval(), inputs, opset_version=OPSET, dynamo=True, verbose=False)

    def named(values) -> str:
        return ", ".join(f"{value.name} {list(value.shape)}" for value in values)

    return [f"{node.op_type:8} {named(node.inputs)} -> {named(node.outputs)}" for node in program.model.graph]


def opset_history(operator: str) -> list[int]:
    """The opsets in which ONNX's own `operator` was introduced and then redefined, in order.

    Raises:
        LabError: ONNX has no operator of this name.
    """
    schemas = onnx.defs.get_all_schemas_with_history()
    versions = sorted(schema.since_version for schema in schemas if schema.name == operator and not schema.domain)
    if not versions:
        raise LabError(f"ONNX has no operator {operator!r}; names are written as in Conv and MatMul")
    return versions


def operator_counts(path: str | Path) -> Counter[str]:
    """How often each ONNX operator occurs in a file; weights are not read."""
    return Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)


assert tuple(OUTPUT_NAMES) == GRAPHS
