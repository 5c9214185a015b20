"""The autoencoder: 3.75 M parameters, factor 8, four latent channels, trained from scratch."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..checkpoint import make_vae
from ..config import NetworkConfig

KL_WEIGHT = 1e-6
GAN_START = 0.6  # share of the training after which the discriminator's opinion counts
GAN_WEIGHT = 0.04
MASKED_SHARE = 0.15  # share of the pictures that have a grey hole: the encoder meets them when inpainting
PEAK_LR = 6e-4


class PatchDiscriminator(nn.Module):
    """Says of every overlapping patch how real it looks: (B, 3, s, s) -> (B, 1, s/8, s/8), positive is real."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, stride in ((3, 48, 2), (48, 96, 2), (96, 192, 2), (192, 192, 1)):
            layers += [nn.utils.parametrizations.spectral_norm(nn.Conv2d(a, b, 4 if stride == 2 else 3, stride, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(192, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def random_crops(tiles: Tensor, count: int, size: int) -> Tensor:
    """Random crops with flips and mild colour changes.

    Args:
        tiles: (n, t, t, 3) uint8 on any device.
        count: how many.
        size: px, side of a crop; a quarter of the batches are crops of up to t px made smaller.

    Returns:
        (count, 3, size, size) float32 in [-1, 1].
    """
    n, t = tiles.shape[:2]
    device = tiles.device
    side = size if torch.rand(()) < 0.7 else int(torch.randint(size, t + 1, ()))
    pick = torch.randint(n, (count,), device=device)
    rows = torch.randint(t - side + 1, (count, 1), device=device) + torch.arange(side, device=device)
    columns = torch.randint(t - side + 1, (count, 1), device=device) + torch.arange(side, device=device)
    crops = tiles[pick[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).float() / 255
    if side != size:
        crops = F.interpolate(crops, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    flip = torch.rand(count, 1, 1, 1, device=device) < 0.5
    crops = torch.where(flip, crops.flip(3), crops)
    gamma = torch.exp(0.2 * torch.randn(count, 1, 1, 1, device=device))
    gains = 1 + 0.06 * torch.randn(count, 3, 1, 1, device=device)
    grey = crops.mean(1, keepdim=True)
    saturation = 1 + 0.25 * torch.randn(count, 1, 1, 1, device=device)
    crops = (grey + (crops - grey) * saturation).clamp(1e-4, 1) ** gamma * gains
    return crops.clamp(0, 1) * 2 - 1


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 at three scales plus L1 of the horizontal and vertical differences: sharp edges count, not only levels."""
    total = x.new_zeros(())
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


def train_vae(
    tiles: Tensor,
    masks: Tensor,
    held_out: Tensor,
    config: NetworkConfig,
    checkpoint: Path,
    *,
    seconds: float,
    max_steps: int,
    batch: int,
    size: int,
    compiled: bool,
) -> tuple[AutoencoderKL, dict]:
    """Train until `seconds` of training time or `max_steps`, whichever comes first; resumes from `checkpoint`.

    Args:
        tiles: (n, t, t, 3) uint8 training tiles, on the device that trains.
        masks: (m, size, size) uint8 holes, same device.
        held_out: (k, 3, size, size) in [-1, 1]: pictures that are only ever measured.
        config: the network whose autoencoder is trained.
        checkpoint: file that holds weights, optimizer and log, written every minute and at the end.
        seconds, max_steps: the two ends; the learning rate falls to nothing as the nearer one comes.
        batch: pictures a step.
        size: px, side of a crop.
        compiled: use torch.compile (CUDA only).

    Returns:
        The autoencoder in evaluation mode and its log: steps, seconds, curve, held-out PSNR (dB).

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    device = tiles.device
    vae = make_vae(config).to(device)
    critic = PatchDiscriminator().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), 2e-4, betas=(0.5, 0.95), weight_decay=0)
    log: dict = {"steps": 0, "seconds": 0.0, "curve": []}
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        critic.load_state_dict(state["critic"])
        optimizer.load_state_dict(state["optimizer"])
        critic_optimizer.load_state_dict(state["critic_optimizer"])
        log = state["log"]
    encode, decode = (torch.compile(vae.encoder), torch.compile(vae.decoder)) if compiled else (vae.encoder, vae.decoder)
    cuda = device.type == "cuda"

    def save() -> None:
        states = {"vae": vae, "critic": critic, "optimizer": optimizer, "critic_optimizer": critic_optimizer}
        torch.save({name: part.state_dict() for name, part in states.items()} | {"log": log}, checkpoint)

    vae.train()
    begun, last_save, before = time.time(), time.time(), log["seconds"]
    while log["seconds"] < seconds and log["steps"] < max_steps:
        progress = max(log["seconds"] / seconds, log["steps"] / max_steps)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (log["steps"] + 1) / 200, (1 - progress) / 0.4 + 0.01)
        x = random_crops(tiles, batch, size)
        hole = masks[torch.randint(len(masks), (batch,), device=device)][:, None].float()
        x = torch.where(torch.rand(batch, 1, 1, 1, device=device) < MASKED_SHARE, x * (1 - hole), x)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            mean, logvar = vae.quant_conv(encode(x)).float().chunk(2, dim=1)
            logvar = logvar.clamp(-30, 20)
            z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
            y = decode(vae.post_quant_conv(z)).float()
            adversarial = progress > GAN_START
            opinion = critic(y).float() if adversarial else None
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        reconstruction = reconstruction_loss(x, y)
        loss = reconstruction + KL_WEIGHT * kl
        if adversarial:
            loss = loss - GAN_WEIGHT * opinion.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if progress > GAN_START - 0.1:  # the critic learns a little before it is listened to
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                real, fake = critic(x).float(), critic(y.detach()).float()
            critic_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            critic_optimizer.zero_grad(set_to_none=True)
            critic_loss.backward()
            critic_optimizer.step()
        log["steps"] += 1
        if log["steps"] % 50 == 0 or log["steps"] == max_steps:
            value = reconstruction.item()
            if not value < float("inf"):
                raise FloatingPointError(f"the autoencoder's loss is {value} at step {log['steps']}")
            log["curve"].append([log["steps"], round(value, 5)])
        if cuda and log["steps"] % 10 == 0:
            torch.cuda.synchronize()
        log["seconds"] = before + time.time() - begun
        if log["steps"] % 500 == 0:
            print(f"vae {log['steps']} steps {log['seconds']:.0f} s loss {log['curve'][-1][1]}", flush=True)
        if time.time() - last_save > 60:
            save()
            last_save = time.time()
    vae.eval()
    with torch.no_grad():
        pairs = [(x, vae.decode(vae.encode(x).latent_dist.mode()).sample) for x in held_out.split(8)]
    log["held_out_psnr_db"] = float(torch.cat([torch.stack([psnr(a[None], b[None]) for a, b in zip(x, y)]) for x, y in pairs]).mean())
    save()
    return vae, log


@torch.no_grad()
def latent_std(vae: AutoencoderKL, tiles: Tensor, size: int, batches: int = 8) -> float:
    """Standard deviation of posterior samples over random training crops; the scaling factor is its inverse."""
    z = torch.cat([vae.encode(random_crops(tiles, 16, size)).latent_dist.sample() for _ in range(batches)])
    return float(z.float().std())
