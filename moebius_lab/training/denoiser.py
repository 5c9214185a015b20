"""Diffusion training of the DEMO denoiser on a pool of encoded pictures.

Encoding costs more than a training step, so a pool of (latent, masked latent, mask) is made and drawn from, and a part of it is
made anew every few steps: what leaves it is never seen again. Three things go beyond the usual recipe:

- **The start is no clean noise.** The pipeline starts at t = 900 from `add_noise(image latent)`: an eighth of what is to
  be erased leaks in. At high t the network is therefore shown starts with another picture's latent inside the hole, or
  with none at all, and is asked for the noise that leads to the right picture all the same. It learns not to trust what
  lies in the hole.
- **The unconditional row knows colours, not what is there.** There is no text here; guidance needs some other contrast.
  Samples with the unconditional ids are surrounded by another picture with their own colours (`foreign_surroundings`),
  so that row learns the picture without its surroundings, and guidance strengthens the agreement with those. A row that
  did not know the colours either made guidance go past them: grass turned blue, grey walls yellow.
- **Every cell that the hole touches is hole**, as the pipeline says by default; a share of the samples has the release's mask, which
  looks at one pixel of each cell, so that *as released* is known too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call

from ..config import (
    CONDITIONAL_IDS,
    NOISE_OFFSET,
    TRAIN_TIMESTEPS,
    UNCONDITIONAL_IDS,
    NetworkConfig,
)
from ..inpainting.imaging import mask_to_latent
from ..model.sampler import alphas_cumprod
from ..model.unet import MoebiusNet
from . import checkpoints, parallel
from .album import Album, random_windows
from .fast_forms import channels_last, use_fast_forms
from .steps import Steps, copy_all

PEAK_LR = 7e-4
WARMUP_STEPS = 300
EMA_DECAY = 0.9992
CONDITION_DROPOUT = 0.12
RELEASED_MASK_SHARE = 0.2  # of the samples have the mask of *as released*
OUTSIDE_WEIGHT = 0.1  # of the loss outside the hole, where the answer is given
MIN_SNR = 5.0  # loss weight min(snr, 5) / snr: less for nearly clean latents (Hang et al. 2023)
LEAK_FROM = 850  # timesteps at and above which the start is disturbed
FOREIGN_SHARE, EMPTY_SHARE = 0.45, 0.30  # of those: hole from another picture; no picture at all
PRINT_EVERY = 1000  # steps
CHECK_EVERY = 50  # steps between two looks at the clock
SAVE_EVERY = 100  # seconds
RENEWED = 256  # pictures of the pool that are encoded anew ...
RENEW_AFTER = 12_800  # ... after so many latents were drawn from it by a process
FIRST_KERNELS = "diff_model.conv_in.conv_dw.weight"
"""Key of the first convolution's depthwise kernels (9, 1, 3, 3): one an input channel, with no way around them."""
SHIFTED = 0.1  # middle tap over strongest tap, under which a first kernel is a mere shift


class Encoder:
    """Random windows with random holes, as latents.

    Args:
        vae: in evaluation mode, on the album's device.
        scale: the scaling factor.
        album: the training pictures.
        masks: (m, s, s) uint8, 1 in the hole; flipped and turned at random.
        batch: pictures at a time.
    """

    def __init__(self, vae: AutoencoderKL, scale: float, album: Album, masks: Tensor, batch: int) -> None:
        self.vae, self.scale, self.album, self.masks, self.batch = vae, scale, album, masks, batch

    @torch.no_grad()
    def encode(self, count: int) -> dict[str, Tensor]:
        """Encode `count` windows.

        Returns:
            float16 `latent` and `masked` (count, 4, s/8, s/8), both scaled posterior samples; bool `mask` (count, 1, s/8,
            s/8), every cell that the hole touches; bool `released`, the same by the nearest-neighbour mask of *as released*.
        """
        device = self.album.device
        parts: dict[str, list[Tensor]] = {"latent": [], "masked": [], "mask": [], "released": []}
        for _ in range(0, count, self.batch):
            x = random_windows(self.album, self.batch)
            hole = self.masks[torch.randint(len(self.masks), (self.batch,), device=device)][:, None].float()
            for axes in ((2,), (3,)):
                hole = torch.where(torch.rand(self.batch, 1, 1, 1, device=device) < 0.5, hole.flip(axes), hole)
            hole = torch.where(torch.rand(self.batch, 1, 1, 1, device=device) < 0.5, hole.transpose(2, 3), hole)
            pictures = torch.cat([x, x * (1 - hole)]).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                both = self.vae.encode(pictures).latent_dist.sample()
            latent, masked = (both.float() * self.scale).half().contiguous().chunk(2)
            parts["latent"].append(latent)
            parts["masked"].append(masked)
            parts["mask"].append(mask_to_latent(hole) > 0.5)
            parts["released"].append(mask_to_latent(hole, "as-released") > 0.5)
        return {name: torch.cat(part)[:count] for name, part in parts.items()}


class Pool:
    """Encoded pictures to draw from; the oldest are replaced while training."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        self.encoder, self.oldest = encoder, 0
        self.parts = encoder.encode(count)

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def renew(self, count: int) -> None:
        """Replace `count` pictures, at most all."""
        size = len(self.parts["latent"])
        fresh = self.encoder.encode(min(count, size))
        place = (self.oldest + torch.arange(len(fresh["latent"]), device=fresh["latent"].device)) % size
        for name, part in fresh.items():
            self.parts[name][place] = part
        self.oldest = (self.oldest + len(place)) % size


def steps_between_renewals(batch: int) -> int:
    """Steps of so many latents, in each process, after which a part of the pool is made anew."""
    return max(1, RENEW_AFTER // batch)


def foreign_surroundings(latent: Tensor, masked: Tensor, hole: Tensor) -> Tensor:
    """Masked latents as if each hole were in the next picture of the batch, in its own colours and contrast.

    Args:
        latent, masked: (B, 4, s, s), scaled, of the pictures and of the pictures without what is in the hole.
        hole: (B, 1, s, s), 1 in the hole.

    Returns:
        (B, 4, s, s): in the hole `masked`; elsewhere another picture's latent, moved and scaled to the mean and the
        standard deviation that `masked` has there, channel by channel.
    """
    known = 1 - hole
    count = known.sum((2, 3), keepdim=True).clamp(min=1)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * known).sum((2, 3), keepdim=True) / count
        return mean, (((x - mean) * known).square().sum((2, 3), keepdim=True) / count).sqrt()

    other = latent.roll(1, 0)
    (own_mean, own_std), (mean, std) = moments(masked), moments(other)
    matched = (other - mean) / (std + 1e-3) * own_std + own_mean
    return hole * masked + known * matched


def diffusion_loss(network: Callable[..., Tensor], pool: Pool | dict[str, Tensor], batch: int, schedule: Tensor) -> Tensor:
    """The weighted epsilon loss of one random batch; a scalar. `schedule` is `alphas_cumprod()` in float32."""
    device = schedule.device
    pick = torch.randint(len(pool["latent"]), (batch,), device=device)
    x0, masked = pool["latent"][pick].float(), pool["masked"][pick].float()
    hole = pool["mask"][pick].float()
    released = torch.rand(batch, 1, 1, 1, device=device) < RELEASED_MASK_SHARE
    mask = torch.where(released, pool["released"][pick].float(), hole)

    t = torch.randint(TRAIN_TIMESTEPS, (batch,), device=device)
    alpha = schedule[t][:, None, None, None]
    noise = torch.randn_like(x0) + NOISE_OFFSET * torch.randn(batch, 4, 1, 1, device=device)

    chance = torch.rand(batch, 1, 1, 1, device=device)
    high = (t >= LEAK_FROM)[:, None, None, None]
    foreign = x0 + hole * (x0.roll(1, 0) - x0)
    start = torch.where(high & (chance < FOREIGN_SHARE), foreign, x0)
    start = torch.where(high & (chance > 1 - EMPTY_SHARE), torch.zeros_like(x0), start)
    noisy = alpha.sqrt() * start + (1 - alpha).sqrt() * noise
    target = (noisy - alpha.sqrt() * x0) / (1 - alpha).sqrt()  # = noise wherever start = x0

    dropped = torch.rand(batch, 1, device=device) < CONDITION_DROPOUT
    ids = torch.arange(len(CONDITIONAL_IDS), device=device)
    ids = torch.where(dropped, ids + UNCONDITIONAL_IDS[0], ids + CONDITIONAL_IDS[0])
    masked = torch.where(dropped[:, :, None, None], foreign_surroundings(x0, masked, hole), masked)

    predicted = network(torch.cat([noisy, mask, masked], dim=1), t, ids).float()
    near = F.max_pool2d(hole, 3, 1, 1)  # the hole and the ring of cells around it
    weight = OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * near
    snr = alpha / (1 - alpha)
    error = (predicted - target).pow(2) * weight * (snr.clamp(max=MIN_SNR) / snr)
    return error.sum() / (4 * weight.sum())


@torch.no_grad()
def centre_first_kernels(network: MoebiusNet) -> None:
    """Let each depthwise kernel of the first convolution be its middle tap, nearly, and stay so.

    From a random start two of four latent channels ended as pure shifts, reading only the cell above or below: one row
    of the window was then never seen, and its noise never predicted. Trained on, such a kernel does not come back, and
    one that was moved back would be drawn to where the rest of the network expects it. So they are held.
    """
    weight = network.get_parameter(FIRST_KERNELS)
    weight.mul_(0.1)
    weight[:, :, 1, 1] += 1
    weight.requires_grad_(False)


def unshifted(kernels: Tensor) -> Tensor:
    """Kernels (K, 1, 3, 3) with every pure shift moved to the middle.

    A pure shift is one whose middle tap has less than `SHIFTED` of its strongest tap's size. All its taps move together, so
    that its strongest is the middle one, and those that leave the window are lost. Its output is then the same picture one
    cell further, so the BatchNorm behind it stays right.
    """
    moved = kernels.clone()
    for kernel in moved[:, 0]:
        row, column = divmod(int(kernel.abs().argmax()), 3)
        if kernel[1, 1].abs() < SHIFTED * kernel[row, column].abs():
            wide = F.pad(kernel, (1, 1, 1, 1))
            kernel.copy_(wide[row : row + 3, column : column + 3])
    return moved


class Trainer(Steps):
    """The network that is trained, and how."""

    def __init__(self, config: NetworkConfig, pool: Pool | dict[str, Tensor], batch: int) -> None:
        self.pool, self.batch = pool, batch
        device = pool["latent"].device
        self.network = channels_last(use_fast_forms(MoebiusNet(config)).to(device))
        centre_first_kernels(self.network)
        parallel.same_start(self.network)
        parameters = list(self.network.parameters())
        super().__init__([p for p in parameters if p.requires_grad], parameters, weight_decay=0.01, decay=EMA_DECAY)
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        as_they_are = {id(p) for norm in norms for p in norm.parameters()}
        self.used = {  # what a step reads: 16 bits on a card, made of the parameters at once, not layer by layer
            name: p.detach()
            if id(p) in as_they_are
            else p.detach().to(torch.bfloat16 if self.cuda else torch.float32, copy=True)
            for name, p in self.network.named_parameters()
        }
        self.schedule = alphas_cumprod().float().to(self.device)

    def _predict(self, *inputs: Tensor) -> Tensor:
        return functional_call(self.network, self.used, inputs)

    def losses(self) -> tuple[Tensor, Sequence[Tensor]]:
        parameters = dict(self.network.named_parameters())
        copy_all(list(self.used.values()), list(parameters.values()))
        leaves = {name: self.used[name].requires_grad_() for name, p in parameters.items() if p.requires_grad}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            loss = diffusion_loss(self._predict, self.pool, self.batch, self.schedule)
        return loss, torch.autograd.grad(loss, list(leaves.values()))

    def state(self) -> dict:
        return {"network": self.network.state_dict()} | self.progress()

    def load(self, state: dict) -> None:
        """Resume from a full state, or weights alone: then optimizer and average start anew behind a warm-up."""
        self.network.load_state_dict(state["network"])
        if "optimizer" in state:
            self.go_on(state)
        else:
            copy_all(self.average, [p.detach() for p in self.averaged])
            self.steps = self.since = state["steps"]


@torch.no_grad()
def averaged_network(config: NetworkConfig, trainer: Trainer, batches: int = 40) -> MoebiusNet:
    """The averaged weights as a plain network, with BatchNorm statistics measured for exactly those weights.

    Running statistics belong to the weights that made them. The averaged weights were never run, so theirs are measured
    here: plain means over `batches` training batches.
    """
    network = MoebiusNet(config).to(trainer.device)
    network.load_state_dict(trainer.network.state_dict())
    for parameter, averaged in zip(network.parameters(), trainer.average):
        parameter.copy_(averaged)
    return recalibrate(use_fast_forms(network), trainer.pool, trainer.batch, batches)


@torch.no_grad()
def recalibrate(network: MoebiusNet, pool: Pool | dict[str, Tensor], batch: int, batches: int) -> MoebiusNet:
    """Measure every BatchNorm's mean and variance anew over training batches; returns the network, in evaluation mode."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
    network.train()
    schedule = alphas_cumprod().float().to(pool["latent"].device)
    for _ in range(batches):
        diffusion_loss(network, pool, batch, schedule)
    parallel.share_buffers(network)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return network.eval()


def train_denoiser(
    config: NetworkConfig,
    pool: Pool | dict[str, Tensor],
    checkpoint: Path,
    *,
    seconds: float,
    stop_after: float,
    max_steps: int,
    batch: int,
    peak: float = PEAK_LR,
) -> tuple[Trainer, dict]:
    """Train, resuming from `checkpoint`, until the whole plan is done or this call's share of it is.

    Args:
        config: the network.
        pool: what to draw from; a `Pool` is renewed while training.
        checkpoint: full state, written every `SAVE_EVERY` seconds and at the end.
        seconds: training time of the whole plan, all calls together: the learning rate rises over `WARMUP_STEPS` steps,
            stays, and falls to nothing over the last half. A checkpoint of weights alone begins a new plan.
        stop_after: seconds that this call may take, set-up included; the next one goes on where it stopped.
        max_steps: an upper end on steps, for small runs.
        batch: latents a step, in each process.
        peak: learning rate between rise and fall.

    Returns:
        The trainer, and the log: steps, seconds, curve of the smoothed loss.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    began = time.time()
    trainer = Trainer(config, pool, batch)
    log: dict = {"steps": 0, "seconds": 0.0, "curve": []}
    plan_began = 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=trainer.device, weights_only=True)
        trainer.load(state)
        log = state["log"]
        plan_began = state["plan_began"] if "optimizer" in state else log["seconds"]
    trainer.network.train()
    trainer.capture()
    if parallel.is_first():
        print(f"denoiser: ready in {time.time() - began:.0f} s", flush=True)
    before, begun, last_save = log["seconds"], time.time(), time.time()

    def save() -> None:
        log["steps"] = trainer.steps
        if parallel.is_first():
            checkpoints.save(trainer.state() | {"log": log, "plan_began": plan_began}, checkpoint)

    first, renew_every = trainer.steps, steps_between_renewals(batch)
    while trainer.steps < max_steps:
        done = trainer.steps - first
        if done % CHECK_EVERY == 0:
            log["seconds"] = before + parallel.agree(time.time() - begun)
            if log["seconds"] - plan_began >= seconds or parallel.agree(time.time() - began) >= stop_after:
                break
        if done % renew_every == 0 and done and isinstance(pool, Pool):
            pool.renew(RENEWED)
        progress = max((log["seconds"] - plan_began) / seconds, trainer.steps / max_steps)
        rise = min(1.0, (trainer.steps - trainer.since + 1) / WARMUP_STEPS)
        trainer.step(peak * rise * min(1.0, 2 * (1 - progress) + 0.005))
        if trainer.steps % 100 == 0 or trainer.steps == max_steps:
            (value,) = parallel.mean([trainer.loss])
            if not value < float("inf"):
                raise FloatingPointError(f"the denoiser's loss is {value} at step {trainer.steps}")
            log["curve"].append([trainer.steps, round(value, 5)])
            if trainer.steps % PRINT_EVERY == 0 and parallel.is_first():
                pace = (time.time() - begun) / (done + 1)
                print(
                    f"denoiser {trainer.steps} steps {log['seconds']:.0f} s loss {value:.5f} {1000 * pace:.1f} ms",
                    flush=True,
                )
        if time.time() - last_save > SAVE_EVERY:
            save()
            last_save = time.time()
    log["seconds"] = before + parallel.agree(time.time() - begun)
    save()
    return trainer, log
