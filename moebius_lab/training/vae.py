"""The autoencoder: 3.75 M parameters, factor 8, four latent channels, trained from scratch to reconstruct.

What it cannot know it leaves out, so its pictures lack the finest grain; `decoder` puts that in afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..checkpoint import make_vae
from ..config import NetworkConfig

KL_WEIGHT = 1e-6
MASKED_SHARE = 0.1  # share of the pictures that have a grey hole: the encoder meets them when inpainting
PEAK_LR = 5e-4
WARMUP_STEPS = 200
SQUARE_WEIGHT = 5.0  # of the mean square, beside the L1 terms: PSNR is measured in squares


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


def agreed(compiled: Callable, plain: nn.Module, x: Tensor) -> Callable:
    """`compiled` if it computes what `plain` does, output and gradient, row by row of the picture; else `plain`.

    A network trained in a form that differs in a few rows would learn to rely on the difference, and show it only
    when it runs in the published form. Relative differences up to 0.1 of a row's strength are the bfloat16's.
    """
    answers = []
    for function in (compiled, plain):
        given = x.detach().clone().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16):
            out = function(given).float()
        torch.manual_seed(0)
        (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), given)
        answers.append((out.detach(), gradient))
    for theirs, ours in zip(*answers):
        error = ((theirs - ours).pow(2).mean((0, 1, 3)) / ours.pow(2).mean((0, 1, 3)).clamp_min(1e-12)).sqrt()  # a row each
        if not error.max() < 0.1:
            print(f"the compiled {type(plain).__name__} is off by {float(error.max()):.2f} in row {int(error.argmax())}: not used", flush=True)
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


def train_vae(
    tiles: Tensor,
    masks: Tensor,
    held_out: Tensor,
    config: NetworkConfig,
    checkpoint: Path,
    *,
    seconds: float,
    stop_after: float,
    max_steps: int,
    batch: int,
    size: int,
) -> tuple[AutoencoderKL, dict]:
    """Train until `seconds` of training time or `max_steps`, whichever comes first; resumes from `checkpoint`.

    Args:
        tiles: (n, t, t, 3) uint8 training tiles, on the device that trains.
        masks: (m, size, size) uint8 holes, same device.
        held_out: (k, 3, size, size) in [-1, 1]: pictures that are only ever measured.
        config: the network whose autoencoder is trained.
        checkpoint: file that holds weights, optimizer and log, written every minute and at the end; weights and log alone
            are enough to start from.
        seconds: training time of the whole plan, all calls together.
        stop_after: seconds that this call may take, set-up included.
        max_steps: an upper end on steps. The learning rate falls to nothing as the nearest of the three ends comes.
        batch: pictures a step.
        size: px, side of a crop.

    Returns:
        The autoencoder in evaluation mode and its log: steps, seconds, curve, held-out PSNR (dB).

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    began = time.time()
    device = tiles.device
    cuda = device.type == "cuda"
    vae = make_vae(config).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01)
    log: dict = {"steps": 0, "seconds": 0.0, "curve": []}
    since = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        log = state["log"]
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        else:
            since = log["steps"]
    encode, decode = vae.encoder, vae.decoder
    if cuda:
        x = random_crops(tiles, batch, size)
        encode = agreed(torch.compile(vae.encoder), vae.encoder, x)
        decode = agreed(torch.compile(vae.decoder), vae.decoder, some_latents(vae, x))
        print(f"vae: compiled in {time.time() - began:.0f} s", flush=True)
    seconds = min(seconds, log["seconds"] + stop_after - (time.time() - began))

    def save() -> None:
        torch.save({"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "log": log}, checkpoint)

    begun, last_save, before = time.time(), time.time(), log["seconds"]
    while log["seconds"] < seconds and log["steps"] < max_steps:
        progress = max(log["seconds"] / seconds, log["steps"] / max_steps)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (log["steps"] - since + 1) / WARMUP_STEPS, (1 - progress) / 0.5 + 0.01)
        x = random_crops(tiles, batch, size)
        hole = masks[torch.randint(len(masks), (batch,), device=device)][:, None].float()
        x = torch.where(torch.rand(batch, 1, 1, 1, device=device) < MASKED_SHARE, x * (1 - hole), x)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            mean, logvar = vae.quant_conv(encode(x)).float().chunk(2, dim=1)
            logvar = logvar.clamp(-30, 20)
            z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
            y = decode(vae.post_quant_conv(z)).float()
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        reconstruction = reconstruction_loss(x, y)
        optimizer.zero_grad(set_to_none=True)
        (reconstruction + KL_WEIGHT * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        log["steps"] += 1
        if log["steps"] % 50 == 0 or log["steps"] == max_steps:
            value = reconstruction.item()
            if not value < float("inf"):
                raise FloatingPointError(f"the autoencoder's loss is {value} at step {log['steps']}")
            log["curve"].append([log["steps"], round(value, 5)])
        if cuda and log["steps"] % 10 == 0:
            torch.cuda.synchronize()  # so that the clock below is honest
        log["seconds"] = before + time.time() - begun
        if log["steps"] % 500 == 0:
            print(f"vae {log['steps']} steps {log['seconds']:.0f} s loss {log['curve'][-1][1]}", flush=True)
        if time.time() - last_save > 60:
            save()
            last_save = time.time()
    log["held_out_psnr_db"] = held_out_psnr(vae, held_out)
    save()
    return vae, log


@torch.no_grad()
def latent_std(vae: AutoencoderKL, tiles: Tensor, size: int, batches: int = 8) -> float:
    """Standard deviation of posterior samples over random training crops; the scaling factor is its inverse."""
    z = torch.cat([vae.encode(random_crops(tiles, 16, size)).latent_dist.sample() for _ in range(batches)])
    return float(z.float().std())
