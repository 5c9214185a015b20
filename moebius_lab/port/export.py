"""Three ONNX graphs from a checkpoint, in `config.OPSET`.

| graph | inputs | outputs |
|---|---|---|
| vae_encoder | image (1, 3, S, S) in [-1, 1] | mean, std (1, 4, s, s) of the posterior, unscaled |
| step | state (3, 4, s, s), mask (1, 1, s, s), masked_latents (1, 4, s, s), timestep (1), conditions (n), state_weights (3, 3), noise_weights (3, n) | next_state (3, 4, s, s); noise (n, 4, s, s) |
| vae_decoder | latent (1, 4, s, s), unscaled | image (1, 3, S, S) in about [-1, 1] |

All are float32; S is the network's image size and s = S / 8. Shapes are fixed, but for n, the number of conditions that the denoiser
is evaluated on: both in a guided step, one in any other. `step` is one step of any solver in `model.sampler`, with the denoiser
rewritten as `denoiser.py` tells; `autoencoder.py` has the autoencoder's rewrites. The straightforward form of the step is the published
denoiser as the exporter finds it, which is there to be compared with.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .. import LabError
from ..config import GRAPHS, GUIDANCE, LATENT_CHANNELS, OPSET, STATE_ROWS, STEP_UNGUIDED, NetworkConfig
from ..files import require_room
from ..inpainting.backends import condition_ids, step_feeds
from ..model.lambda_layer import SelfLambda
from ..model.sampler import next_state, solver_steps
from ..model.unet import MoebiusNet
from .autoencoder import rewritten
from .denoiser import STEP_OUTPUTS, StepGraph
from .passes import after_export

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
    """What `denoiser.StepGraph` must equal: the published network on a batch, one sample a condition, and one step of a solver."""

    def __init__(self, net: MoebiusNet) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("ids", condition_ids())

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
        """Inputs and outputs are those of `denoiser.StepGraph`."""
        ids, zeros = self.ids.index_select(0, conditions.int()), conditions * 0  # (n, 10), (n,)
        x = torch.cat([state[:1], mask, masked_latents], dim=1) + zeros[:, None, None, None]
        noise = self.net(x, timestep + zeros, ids)
        return next_state(state, noise, state_weights, noise_weights), noise


def example_inputs(config: NetworkConfig) -> dict[str, dict[str, Tensor]]:
    """Inputs of each of `RUNS` by name, drawn with a fixed seed: for tracing, parity and timing.

    The step is the fifth of six of DPM-Solver++, which reads a previous prediction, with the release's guidance and without; latent
    and prediction have unit variance and the mask is a square hole in the middle.
    """
    rng = torch.Generator().manual_seed(0)
    s, S = config.latent_size, config.image_size
    step = solver_steps("dpm++2m", 6)[4]
    mask = torch.zeros(1, 1, s, s)
    mask[:, :, s // 4 : 3 * s // 4, s // 4 : 3 * s // 4] = 1
    state = torch.randn(len(STATE_ROWS), LATENT_CHANNELS, s, s, generator=rng)
    arrays = (state, mask, torch.randn(1, LATENT_CHANNELS, s, s, generator=rng))
    return {
        "vae_encoder": {"image": torch.rand(1, 3, S, S, generator=rng) * 2 - 1},
        "step": step_feeds(*arrays, step, GUIDANCE),
        STEP_UNGUIDED: step_feeds(*arrays, step, 1.0),
        "vae_decoder": {"latent": torch.randn(1, LATENT_CHANNELS, s, s, generator=rng) / config.vae.scaling_factor},
    }


def example_feeds(config: NetworkConfig) -> dict[str, dict[str, np.ndarray]]:
    """`example_inputs` as float32 arrays, which every runtime but PyTorch takes."""
    return {run: {name: x.numpy() for name, x in inputs.items()} for run, inputs in example_inputs(config).items()}


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
    return _export(exported_module(graph, net, vae), graph, net.config, Path(folder))


def export_straightforward(net: MoebiusNet, folder: str | Path) -> Path:
    """Export the published step, rewritten only by `SelfLambda2d`, to `folder`/step.onnx: inputs and outputs are `step`'s.

    Raises:
        LabError: the disk has too little room. Nothing is written.
    """
    return _export(PublishedStep(with_2d_position_conv(net)).eval(), "step", net.config, Path(folder))


def _export(module: nn.Module, graph: str, config: NetworkConfig, folder: Path) -> Path:
    inputs, path = example_inputs(config)[graph], folder / f"{graph}.onnx"
    count = torch.export.Dim("n", min=1, max=len(condition_ids()))
    free = {"conditions": {0: count}, "noise_weights": {1: count}}
    path.parent.mkdir(parents=True, exist_ok=True)
    require_room(path.parent, sum(4 * p.numel() for p in module.parameters()) * 1.1, f"the export of {path.name}")
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, tuple(inputs.values()), input_names=list(inputs), output_names=OUTPUT_NAMES[graph],
            opset_version=OPSET, dynamo=True, optimize=True, verbose=False,
            dynamic_shapes=[free.get(name) for name in inputs],
        )  # fmt: skip
    after_export(program.model)
    program.save(str(path), external_data=True)
    onnx.checker.check_model(str(path))
    return path


@contextmanager
def _quiet():
    """Without the exporter's notes on missing packages and its own deprecations, which say nothing about our graphs."""
    for speaker in ("torch.onnx", "onnxscript"):
        logging.getLogger(speaker).setLevel(logging.ERROR)
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
