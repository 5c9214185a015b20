"""The decoder's second training: grain where the picture has grain.

A decoder trained on differences alone is smooth wherever it cannot know better, because the mean of all grains is none.
Here the encoder stays as it is, so the latents and whatever was trained on them stay valid, and the decoder alone learns
what real pictures look like close by:

- a critic says of every patch whether it is real, and its inner features of the real and the made picture are compared;
- the local strength of the Laplacian, in windows of 16 px, is compared: how much grain, not which.

The two wishes, near to the original and like a picture, are balanced by their gradients with respect to the picture. What
is kept at last is a mean of the decoder before and after: the share is a dial between PSNR and texture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from . import parallel
from .album import Album, random_windows
from .course import Course
from .vae import compiled_parts, held_out_psnr

PEAK_LR = 2e-4
CRITIC_LR = 2e-4
WARMUP_SHARE = 0.05  # of the training: the critic learns alone, then is listened to more and more
LIKENESS = 2.0  # norm of the gradient towards a real look, over that towards the original
FEATURE_WEIGHT = 4.0
TEXTURE_WEIGHT = 3.0
TEXTURE_WINDOW = 16  # px
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the second training, at which the log states the held-out PSNR


class PatchCritic(nn.Module):
    """Says of every overlapping patch how real it looks: (B, 3, s, s) -> (B, 1, s/8, s/8), positive is real."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(a, b, 4 if stride == 2 else 3, stride, 1))
            for a, b, stride in ((3, 64, 2), (64, 128, 2), (128, 256, 2), (256, 256, 1))
        )
        self.opinion = nn.Conv2d(256, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The opinions, and the features of every layer."""
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.opinion(x), features


def fidelity_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 at three scales plus the mean square. Differences of neighbours do not count: they would forbid all grain."""
    total = 5 * (x - y).pow(2).mean()
    for weight in (1.0, 0.5, 0.25):
        total = total + weight * (x - y).abs().mean()
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return total


def grain(x: Tensor) -> Tensor:
    """Local strength of the Laplacian: its root mean square in overlapping windows, at full and at half size, joined."""
    strengths = []
    for picture in (x, F.avg_pool2d(x, 2)):
        around = picture[:, :, :-2, 1:-1] + picture[:, :, 2:, 1:-1] + picture[:, :, 1:-1, :-2] + picture[:, :, 1:-1, 2:]
        energy = F.avg_pool2d((4 * picture[:, :, 1:-1, 1:-1] - around).pow(2), TEXTURE_WINDOW, TEXTURE_WINDOW // 2)
        strengths.append((energy + 1e-4).sqrt().flatten(1))
    return torch.cat(strengths, dim=1)


def likeness_loss(x: Tensor, y: Tensor, opinion: Tensor, made: list[Tensor], real: list[Tensor]) -> Tensor:
    """How unlike a real picture `y` looks: to the critic, in its features, and in the amount of grain."""
    features = sum((a.float() - b.detach().float()).abs().mean() for a, b in zip(made, real)) / len(made)
    return FEATURE_WEIGHT * features + TEXTURE_WEIGHT * (grain(y) - grain(x)).abs().mean() - opinion.float().mean()


def decoder_parameters(vae: AutoencoderKL) -> list[nn.Parameter]:
    """What the second training changes: the decoder and the 1x1 convolution before it."""
    return [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]


@torch.no_grad()
def mix_decoders(vae: AutoencoderKL, second: list[Tensor], share: float) -> AutoencoderKL:
    """Move the decoder of `vae`, in place, by `share` of the way to `second`, the parameters after the second training."""
    for parameter, other in zip(decoder_parameters(vae), second, strict=True):
        parameter.lerp_(other.to(parameter), share)
    return vae


class Decoding(nn.Module):
    """The decoder from latent to picture, as one module, which is what several processes can train together."""

    def __init__(self, vae: AutoencoderKL, decode: Callable) -> None:
        super().__init__()
        self.before, self.decoder, self.decode = vae.post_quant_conv, vae.decoder, decode

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(self.before(z)).float()


def train_decoder(
    vae: AutoencoderKL,
    album: Album,
    held_out: Tensor,
    checkpoint: Path,
    *,
    seconds: float,
    stop_after: float,
    max_steps: int,
    batch: int,
) -> tuple[list[Tensor], dict]:
    """Train the decoder alone; resumes from `checkpoint`.

    Args:
        vae: the trained autoencoder; it is as given again when this returns.
        album: the training pictures, on the device that trains.
        held_out: (k, 3, size, size) in [-1, 1]: pictures that are only ever measured.
        checkpoint: file that holds weights, critic, optimizers, mean and log; or a log alone, of earlier trainings that made
            the decoder of `vae`: then a new plan begins, and the log goes on counting.
        seconds: training time of the whole plan, all calls together.
        stop_after: seconds that this call may take, set-up included; the next one goes on where it stopped.
        max_steps: an upper end on the plan's steps. The learning rate falls to nothing as the nearer of the plan's two ends comes.
        batch: pictures a step, in each process.

    Returns:
        The running mean of the trained parameters, in the order of `decoder_parameters`, and the log: steps, seconds,
        curve of [step, fidelity, likeness], and the held-out PSNR (dB) at each of `SHARES`.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    device = album.device
    cuda = device.type == "cuda"
    course = Course("decoder", checkpoint, device, seconds=seconds, stop_after=stop_after, max_steps=max_steps)
    parameters = decoder_parameters(vae)
    given = [p.detach().clone() for p in parameters]
    average = [p.detach().clone() for p in parameters]
    critic = PatchCritic().to(device)

    def put(values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(parameters, values):
                parameter.copy_(value)

    resumed = "parameters" in course.state
    if resumed:
        put(course.state["parameters"])
        average = course.state["average"]
        critic.load_state_dict(course.state["critic"])
    _, decode = compiled_parts(vae, random_windows(album, batch), encoder=False)
    encode = torch.compile(vae.encoder) if cuda else vae.encoder
    optimizer = torch.optim.AdamW(parameters, PEAK_LR, betas=(0.5, 0.99), weight_decay=0, fused=cuda)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), CRITIC_LR, betas=(0.5, 0.95), weight_decay=0, fused=cuda)
    if resumed:
        optimizer.load_state_dict(course.state["optimizer"])
        critic_optimizer.load_state_dict(course.state["critic_optimizer"])
    vae.encoder.requires_grad_(False)
    decoding, judged = (
        parallel.together(Decoding(vae, decode)),
        parallel.together(critic.to(memory_format=torch.channels_last)),
    )

    def parts() -> dict:
        modules = {"critic": critic, "optimizer": optimizer, "critic_optimizer": critic_optimizer}
        states = {name: part.state_dict() for name, part in modules.items()}
        return states | {"parameters": [p.detach() for p in parameters], "average": average}

    for _ in course.run(parts):
        for group in optimizer.param_groups:
            group["lr"] = course.rate(PEAK_LR)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            x = random_windows(album, batch).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                mean, logvar = vae.quant_conv(encode(x)).float().chunk(2, dim=1)
                z = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)
            y = decoding(z)
            seen = y.detach().requires_grad_()
            opinions, features = judged(torch.cat([x, seen]))
        (real, made), halves = opinions.float().chunk(2), [f.chunk(2) for f in features]
        fidelity = fidelity_loss(x, seen)
        likeness = likeness_loss(x, seen, made, [m for _, m in halves], [r for r, _ in halves])
        (near,) = torch.autograd.grad(fidelity, seen)
        (like,) = torch.autograd.grad(likeness, seen, retain_graph=True)
        critic_optimizer.zero_grad(set_to_none=True)
        (F.relu(1 - real).mean() + F.relu(1 + made).mean()).backward()
        listened = LIKENESS * min(1.0, max(0.0, course.progress / WARMUP_SHARE - 1))
        optimizer.zero_grad(set_to_none=True)
        y.backward(near + listened * near.norm() / like.norm().clamp_min(1e-12) * like)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        critic_optimizer.step()
        course.done(torch.stack([fidelity, likeness]), parameters, average)
    course.log["held_out_psnr_db"] = {}
    for share in SHARES:
        put(given)
        course.log["held_out_psnr_db"][str(share)] = round(held_out_psnr(mix_decoders(vae, average, share), held_out), 3)
    put(given)
    return average, course.log
