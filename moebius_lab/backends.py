"""Where the three networks run: PyTorch and ONNX Runtime behind the same three methods."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import LabError
from .config import CONDITIONAL_IDS, UNCONDITIONAL_IDS, NetworkConfig
from .unet import MoebiusNet

GRAPHS = ("vae_encoder", "denoiser", "vae_decoder")
"""Names of the three graphs, and of their files without the ending."""


class Backend(Protocol):
    """What the sampling loop needs. S is the image size, s = S / 8 the latent size; everything is float32 on the CPU."""

    name: str
    config: NetworkConfig

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, S, S) in [-1, 1] -> mean and standard deviation of the posterior, each (1, 4, s, s), unscaled."""

    def predict_noise(self, latent: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """(1, 9, s, s) -> the unconditional and the conditional prediction, each (1, 4, s, s)."""

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
    def predict_noise(self, latent: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        batch = latent.to(self.device).repeat(2, 1, 1, 1)
        t = torch.full((2,), float(timestep), device=self.device)
        uncond, cond = self.net(batch, t, guided_ids().to(self.device)).cpu().split(1)
        return uncond, cond

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent.to(self.device)).sample.cpu()


class OnnxBackend:
    """ONNX Runtime on the three files of `export_graphs`.

    Raises:
        LabError: a file is missing, cannot be read, or belongs to another network.
    """

    def __init__(self, folder: str | Path, config: NetworkConfig, providers: tuple[str, ...] = ("CPUExecutionProvider",)):
        self.config = config
        self.sessions = {}
        for graph in GRAPHS:
            path = Path(folder) / f"{graph}.onnx"
            if not path.is_file():
                raise LabError(f"{path}: there is no such file; make it with `python -m moebius_lab export`")
            try:
                self.sessions[graph] = onnxruntime.InferenceSession(str(path), providers=list(providers))
            except Exception as error:  # ONNX Runtime's own exceptions share no public base class
                line = str(error).splitlines()[0]
                raise LabError(f"{path}: ONNX Runtime cannot load it ({line}); export it again") from None
        side = self.sessions["denoiser"].get_inputs()[0].shape[-1]
        if side != config.latent_size:
            raise LabError(
                f"{folder}: these graphs take {side} x {side} latents, the {config.name} network has {config.latent_size}; "
                "name the network that they were exported from"
            )
        used = sorted({session.get_providers()[0] for session in self.sessions.values()})
        self.name = "ONNX Runtime, " + ", ".join(used)

    def _run(self, graph: str, **inputs: Tensor) -> list[Tensor]:
        feeds = {name: np.ascontiguousarray(x.numpy()) for name, x in inputs.items()}
        return [torch.from_numpy(y) for y in self.sessions[graph].run(None, feeds)]

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._run("vae_encoder", image=image)
        return mean, std

    def predict_noise(self, latent: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        batch, t = latent.repeat(2, 1, 1, 1), torch.full((2,), float(timestep))
        uncond, cond = self._run("denoiser", latent=batch, timesteps=t, input_ids=guided_ids())[0].split(1)
        return uncond, cond

    def decode(self, latent: Tensor) -> Tensor:
        return self._run("vae_decoder", latent=latent)[0]
