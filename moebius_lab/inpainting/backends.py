"""Where the three networks run: PyTorch and ONNX Runtime behind the same three methods."""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..config import CONDITIONAL_IDS, UNCONDITIONAL_IDS, NetworkConfig
from ..model.ddim import Step, guided_update
from ..model.unet import MoebiusNet


class Backend(Protocol):
    """What the sampling loop needs. S is the image size, s = S / 8 the latent size; everything is float32 on the CPU."""

    name: str
    config: NetworkConfig

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, S, S) in [-1, 1] -> mean and standard deviation of the posterior, each (1, 4, s, s), unscaled."""

    def step(self, latents: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> Tensor:
        """One guided DDIM step: latents (1, 4, s, s), mask (1, 1, s, s), masked latents (1, 4, s, s) -> next latents."""

    def decode(self, latent: Tensor) -> Tensor:
        """(1, 4, s, s), unscaled -> (1, 3, S, S) in about [-1, 1]."""


def guided_ids() -> Tensor:
    """int64 (2, 10): the embedding rows of a guided batch, unconditional first."""
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
    def step(self, latents: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> Tensor:
        batch = torch.cat([latents, mask, masked_latents], dim=1).to(self.device).repeat(2, 1, 1, 1)
        t = torch.full((2,), float(step.timestep), device=self.device)
        noise = self.net(batch, t, guided_ids().to(self.device)).cpu()
        return guided_update(latents, noise, guidance, step.latent_scale, step.noise_scale)

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent.to(self.device)).sample.cpu()


def step_feeds(latents: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> dict[str, Tensor]:
    """The inputs of the step graph by name."""
    numbers = {
        "timestep": step.timestep,
        "guidance": guidance,
        "latent_scale": step.latent_scale,
        "noise_scale": step.noise_scale,
    }
    arrays = {"latents": latents, "mask": mask, "masked_latents": masked_latents}
    return arrays | {name: torch.tensor([float(number)]) for name, number in numbers.items()}


