"""The autoencoder: 3.75 M parameters, factor 8, four latent channels, trained from scratch to reconstruct.

What it cannot know it leaves out, so its pictures lack the finest grain; `decoder` puts that in afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..config import NetworkConfig
from ..model.checkpoint import make_vae
from . import parallel
from .album import Album, random_windows
from .course import Course

KL_WEIGHT = 1e-6
MASKED_SHARE = 0.1  # share of the pictures that have a grey hole: the encoder meets them when inpainting
PEAK_LR = 5e-4
SQUARE_WEIGHT = 8.0  # of the mean square, next to the L1 terms: PSNR is measured in squares


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 at three scales, L1 of the horizontal and vertical differences, and the mean square: edges count, not only levels."""
    total = SQUARE_WEIGHT * (x - y).pow(2).mean()
    for weight in (1.0, 0.5, 0.25):
        total = total + weight * (x - y).abs().mean()
        for dim in (2, 3):
            total = total + 0.5 * weight * (x.diff(dim=dim) - y.diff(dim=dim)).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return total


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of the peak signal-to-noise ratio, dB, for pictures in [-1, 1]."""
    error = (x.clamp(-1, 1) - y.clamp(-1, 1)).pow(2).mean(dim=(1, 2, 3)) / 4
    return (-10 * error.log10()).mean()


def agreed(compiled: Callable, plain: nn.Module, x: Tensor, through: bool = True) -> Callable:
    """`compiled` if it computes what `plain` does, output and gradient, row by row of the picture; else `plain`.

    Args:
        compiled, plain: two forms of one module.
        x: what both are given.
        through: whether training asks for the gradient of `x`, as of the decoder's latents; else that of the parameters is
            compared, as a whole: the compiler would have to work twice.

    A network trained in a form that differs in a few rows would learn to rely on the difference, and show it only
    when it runs in the published form. Relative differences up to 0.1 of a row's strength are the bfloat16's.
    """
    answers = []
    for function in (compiled, plain):
        given = x.detach().clone().requires_grad_(through)
        with torch.autocast(x.device.type, torch.bfloat16):
            out = function(given).float()
        draw = torch.randn(out.shape, device=x.device, generator=torch.Generator(x.device).manual_seed(0))
        gradients = torch.autograd.grad((out * draw).sum(), [given] if through else list(plain.parameters()))
        gradient = gradients[0] if through else torch.cat([g.flatten() for g in gradients]).view(1, 1, 1, -1)
        answers.append((out.detach(), gradient))
    for theirs, ours in zip(*answers):
        error = ((theirs - ours).pow(2).mean((0, 1, 3)) / ours.pow(2).mean((0, 1, 3)).clamp_min(1e-12)).sqrt()  # a row each
        if not error.max() < 0.1:
            print(
                f"the compiled {type(plain).__name__} is off by {float(error.max()):.2f} in row {int(error.argmax())}: not used",
                flush=True,
            )
            return plain
    return compiled


@torch.no_grad()
def some_latents(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """What the decoder is given for the pictures `x` (B, 3, s, s): (B, 4, s/8, s/8), not scaled."""
    return vae.post_quant_conv(vae.encode(x).latent_dist.mode())


def held_out_psnr(vae: AutoencoderKL, held_out: Tensor) -> float:
    """Mean reconstruction PSNR (dB) over pictures (k, 3, size, size) in [-1, 1], in float32."""
    with torch.no_grad():
        pairs = [(x, vae.decode(vae.encode(x).latent_dist.mode()).sample) for x in held_out.split(4)]
    return float(torch.stack([psnr(a[None], b[None]) for x, y in pairs for a, b in zip(x, y)]).mean())


class Reconstruction(nn.Module):
    """The autoencoder from picture to picture, as one module, which is what several processes can train together."""

    def __init__(self, vae: AutoencoderKL, encode: Callable, decode: Callable) -> None:
        super().__init__()
        self.vae, self.encode, self.decode = vae, encode, decode

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, s, s) -> mean and log variance of the posterior (B, 4, s/8, s/8), and the picture of a sample of it."""
        mean, logvar = self.vae.quant_conv(self.encode(x)).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return mean, logvar, self.decode(self.vae.post_quant_conv(z)).float()


def compiled_parts(vae: AutoencoderKL, x: Tensor, encoder: bool = True) -> tuple[Callable, Callable]:
    """Encoder, unless it is not trained, and decoder, channels last, compiled on a card and checked on the pictures `x`."""
    if x.device.type != "cuda":
        return vae.encoder, vae.decoder
    vae.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    encode = agreed(torch.compile(vae.encoder), vae.encoder, x, through=False) if encoder else vae.encoder
    return encode, agreed(torch.compile(vae.decoder), vae.decoder, some_latents(vae, x))


def train_vae(
    album: Album,
    masks: Tensor,
    held_out: Tensor,
    config: NetworkConfig,
    checkpoint: Path,
    *,
    seconds: float,
    stop_after: float,
    max_steps: int,
    batch: int,
) -> tuple[AutoencoderKL, dict]:
    """Train until `seconds` of training time or `max_steps`, whichever comes first; resumes from `checkpoint`.

    Args:
        album: the training pictures, on the device that trains.
        masks: (m, size, size) uint8 holes, same device.
        held_out: (k, 3, size, size) in [-1, 1]: pictures that are only ever measured.
        config: the network whose autoencoder is trained.
        checkpoint: file that holds weights, their mean, optimizer and log, written every minute and at the end; weights and log
            alone begin a new plan, and the log goes on counting.
        seconds: training time of the plan, all calls together.
        stop_after: seconds that this call may take, set-up included; the next one goes on where it stopped.
        max_steps: an upper end on steps. The learning rate falls to nothing as the nearer of the plan's two ends comes.
        batch: pictures a step, in each process.

    Returns:
        The autoencoder, its weights their running mean, in evaluation mode, and its log: steps, seconds, curve, held-out PSNR (dB).

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    device = album.device
    cuda = device.type == "cuda"
    course = Course("autoencoder", checkpoint, device, seconds=seconds, stop_after=stop_after, max_steps=max_steps)
    vae = make_vae(config).to(device).train()
    if course.state:
        vae.load_state_dict(course.state["vae"])
    parameters = list(vae.parameters())
    average = [p.detach().clone() for p in parameters]
    encode, decode = compiled_parts(vae, random_windows(album, batch))
    optimizer = torch.optim.AdamW(parameters, PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)
    if "optimizer" in course.state:
        optimizer.load_state_dict(course.state["optimizer"])
        average = course.state["average"]
    reconstruct = parallel.together(Reconstruction(vae, encode, decode))

    for _ in course.run(lambda: {"vae": vae.state_dict(), "average": average, "optimizer": optimizer.state_dict()}):
        for group in optimizer.param_groups:
            group["lr"] = course.rate(PEAK_LR)
        x = random_windows(album, batch)
        hole = masks[torch.randint(len(masks), (batch,), device=device)][:, None].float()
        x = torch.where(torch.rand(batch, 1, 1, 1, device=device) < MASKED_SHARE, x * (1 - hole), x)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            mean, logvar, y = reconstruct(x)
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        reconstruction = reconstruction_loss(x, y)
        optimizer.zero_grad(set_to_none=True)
        (reconstruction + KL_WEIGHT * kl).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        course.done(reconstruction[None], parameters, average)
    with torch.no_grad():
        for parameter, mean_of_it in zip(parameters, average):
            parameter.copy_(mean_of_it)
    course.log["held_out_psnr_db"] = held_out_psnr(vae.eval(), held_out)
    return vae, course.log


@torch.no_grad()
def latent_std(vae: AutoencoderKL, album: Album, batches: int = 16) -> float:
    """Standard deviation of posterior samples over random training crops; the scaling factor is its inverse."""
    z = torch.cat([vae.encode(random_windows(album, 16)).latent_dist.sample() for _ in range(batches)])
    return float(z.float().std())
