"""What runs the three networks, behind the same three methods: PyTorch, and the base of all that run graphs by name."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..config import CONDITIONAL, CONDITIONAL_IDS, UNCONDITIONAL, UNCONDITIONAL_IDS, NetworkConfig
from ..model.sampler import Step, guided_weights, next_state
from ..model.unet import MoebiusNet


class Backend(Protocol):
    """What the sampling loop needs. S is the image size, s = S / 8 the latent size; everything is float32 on the CPU."""

    name: str
    config: NetworkConfig

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, S, S) in [-1, 1] -> mean and standard deviation of the posterior, each (1, 4, s, s), unscaled."""

    def step(self, state: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> Tensor:
        """One step of a solver, see `model.sampler`: state (3, 4, s, s), mask (1, 1, s, s), masked latents (1, 4, s, s) -> next state.

        With a guidance of 1 the network is evaluated once, on the condition alone; with any other twice.
        """

    def decode(self, latent: Tensor) -> Tensor:
        """(1, 4, s, s), unscaled -> (1, 3, S, S) in about [-1, 1]."""


LOOP_OUTPUTS = {"vae_encoder": ["mean", "std"], "step": ["next_state"], "vae_decoder": ["image"]}
"""What the sampling loop reads of each graph; a graph may have more outputs (`port.export.OUTPUT_NAMES`)."""


class GraphBackend:
    """A `Backend` over `run`, for every runtime that takes the three graphs by name.

    A subclass sets `name` and `config` and defines `run`. Shapes and ranges are those of `Backend`, and of the graphs:

        graph          inputs                                            outputs in `LOOP_OUTPUTS`
        vae_encoder    image (1, 3, S, S) in [-1, 1]                     mean, std (1, 4, s, s), unscaled
        step           those of `step_feeds`                             next_state (3, 4, s, s)
        vae_decoder    latent (1, 4, s, s), unscaled                     image (1, 3, S, S) in about [-1, 1]
    """

    name: str
    config: NetworkConfig

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph, one of `GRAPHS`, on float32 arrays by name, in any order.

        Returns:
            Its outputs by name, float32: those in `LOOP_OUTPUTS`, or more. The arrays may be read-only.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run")

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._run("vae_encoder", {"image": image})
        return mean, std

    def step(self, state: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> Tensor:
        [following] = self._run("step", step_feeds(state, mask, masked_latents, step, guidance))
        return following

    def decode(self, latent: Tensor) -> Tensor:
        [image] = self._run("vae_decoder", {"latent": latent})
        return image

    def _run(self, graph: str, inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs = self.run(graph, {name: x.numpy() for name, x in inputs.items()})
        return [torch.tensor(outputs[name]) for name in LOOP_OUTPUTS[graph]]  # a copy, which the loop may write into


def condition_ids() -> Tensor:
    """int64 (2, 10): the embedding rows of both conditions, unconditional first."""
    return torch.tensor([UNCONDITIONAL_IDS, CONDITIONAL_IDS])


class TorchBackend:
    """PyTorch, eager, on the device where `net` is."""

    name = "PyTorch"

    def __init__(self, net: MoebiusNet, vae: AutoencoderKL) -> None:
        self.net, self.vae, self.config = net.eval(), vae.eval(), net.config
        self.device = next(net.parameters()).device

    @torch.inference_mode()
    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image.to(self.device)).latent_dist
        return posterior.mean.cpu(), posterior.std.cpu()

    @torch.inference_mode()
    def step(self, state: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> Tensor:
        feeds = step_feeds(state, mask, masked_latents, step, guidance)
        ids = condition_ids()[feeds["conditions"].long()]
        batch = torch.cat([state[:1], mask, masked_latents], dim=1).to(self.device).repeat(len(ids), 1, 1, 1)
        t = feeds["timestep"].to(self.device).expand(len(ids))
        noise = self.net(batch, t, ids.to(self.device)).cpu()
        return next_state(state, noise, feeds["state_weights"], feeds["noise_weights"])

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent.to(self.device)).sample.cpu()


def step_feeds(state: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> dict[str, Tensor]:
    """The inputs of the step graph by name: those of `Backend.step`, and what the solver and guidance make of them.

    `conditions` (n,) says which rows of the condition table the network is evaluated on: both, or where guidance is 1 the
    conditional one alone.
    """
    conditions = [CONDITIONAL] if guidance == 1 else [UNCONDITIONAL, CONDITIONAL]
    return {
        "state": state,
        "mask": mask,
        "masked_latents": masked_latents,
        "timestep": torch.tensor([float(step.timestep)]),
        "conditions": torch.tensor(conditions, dtype=torch.float32),
        "state_weights": torch.tensor(step.state_weights),
        "noise_weights": torch.tensor(guided_weights(step, guidance)),
    }
