"""Diffusion training of the DEMO denoiser on a pool of encoded pictures.

Encoding costs more than a training step, so a pool of (latent, masked latent, mask) is made once and drawn from. Two
things go beyond the usual recipe:

- **The start is no clean noise.** The pipeline starts at t = 900 from `add_noise(image latent)`: an eighth of what is to
  be erased leaks in. At high t the network is therefore shown starts with another picture's latent inside the hole, or
  with none at all, and is asked for the noise that leads to the right picture all the same. It learns not to trust what
  lies in the hole.
- **The unconditional row ignores the context.** There is no text here; guidance needs some other contrast. Samples with
  the unconditional ids get another picture's masked latent, so that row learns the picture without its surroundings,
  and guidance then strengthens the agreement with the surroundings.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..config import (
    BETA_END,
    BETA_START,
    CONDITIONAL_IDS,
    NOISE_OFFSET,
    TRAIN_TIMESTEPS,
    UNCONDITIONAL_IDS,
    NetworkConfig,
)
from ..imaging import mask_to_latent
from ..unet import MoebiusNet
from .fast_forms import use_fast_forms
from .vae import random_crops

PEAK_LR = 7e-4
WARMUP_STEPS = 300
EMA_DECAY = 0.9992
CONDITION_DROPOUT = 0.12
OUTSIDE_WEIGHT = 0.1  # of the loss outside the hole, where the answer is given
MIN_SNR = 5.0  # loss weight min(snr, 5) / snr: less for nearly clean latents (Hang et al. 2023)
LEAK_FROM = 850  # timesteps at and above which the start is disturbed
FOREIGN_SHARE, EMPTY_SHARE = 0.45, 0.30  # of those: hole from another picture; no picture at all
PRINT_EVERY = 200  # steps
SAVE_EVERY = 120  # seconds
FIRST_KERNELS = "diff_model.conv_in.conv_dw.weight"
"""Key of the first convolution's depthwise kernels (9, 1, 3, 3): one an input channel, with no way around them."""
SHIFTED = 0.1  # middle tap over strongest tap, under which a first kernel is a mere shift


def alphas_cumprod() -> Tensor:
    """(1000,) float64: the cumulative product of 1 - beta on the "scaled_linear" schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, scale: float, tiles: Tensor, masks: Tensor, count: int, batch: int) -> dict[str, Tensor]:
    """Encode random crops with random holes.

    Args:
        vae: in evaluation mode, on the tiles' device.
        scale: the scaling factor.
        tiles: (n, t, t, 3) uint8.
        masks: (m, s, s) uint8, 1 in the hole; flipped and turned at random.
        count, batch: how many pictures, and how many at a time.

    Returns:
        float16 `latent` and `masked` (count, 4, s/8, s/8), both scaled posterior samples; bool `mask` (count, 1, s/8,
        s/8), every cell that the hole touches.
    """
    size = masks.shape[-1]
    cuda = tiles.device.type == "cuda"
    parts: dict[str, list[Tensor]] = {"latent": [], "masked": [], "mask": []}
    for _ in range(0, count, batch):
        x = random_crops(tiles, batch, size)
        hole = masks[torch.randint(len(masks), (batch,), device=tiles.device)][:, None].float()
        for axes in ((2,), (3,)):
            hole = torch.where(torch.rand(batch, 1, 1, 1, device=hole.device) < 0.5, hole.flip(axes), hole)
        hole = torch.where(torch.rand(batch, 1, 1, 1, device=hole.device) < 0.5, hole.transpose(2, 3), hole)
        with torch.autocast(tiles.device.type, torch.bfloat16, enabled=cuda):
            both = vae.encode(torch.cat([x, x * (1 - hole)])).latent_dist.sample()
        latent, masked = (both.float() * scale).half().chunk(2)
        parts["latent"].append(latent)
        parts["masked"].append(masked)
        parts["mask"].append(mask_to_latent(hole) > 0.5)
    return {name: torch.cat(part)[:count] for name, part in parts.items()}


def diffusion_loss(network: nn.Module, pool: dict[str, Tensor], batch: int, schedule: Tensor) -> Tensor:
    """The weighted epsilon loss of one random batch; a scalar. `schedule` is `alphas_cumprod()` in float32."""
    device = schedule.device
    pick = torch.randint(len(pool["latent"]), (batch,), device=device)
    x0, masked = pool["latent"][pick].float(), pool["masked"][pick].float()
    mask = pool["mask"][pick].float()

    t = torch.randint(TRAIN_TIMESTEPS, (batch,), device=device)
    alpha = schedule[t][:, None, None, None]
    noise = torch.randn_like(x0) + NOISE_OFFSET * torch.randn(batch, 4, 1, 1, device=device)

    chance = torch.rand(batch, 1, 1, 1, device=device)
    high = (t >= LEAK_FROM)[:, None, None, None]
    foreign = x0 + mask * (x0.roll(1, 0) - x0)
    start = torch.where(high & (chance < FOREIGN_SHARE), foreign, x0)
    start = torch.where(high & (chance > 1 - EMPTY_SHARE), torch.zeros_like(x0), start)
    noisy = alpha.sqrt() * start + (1 - alpha).sqrt() * noise
    target = (noisy - alpha.sqrt() * x0) / (1 - alpha).sqrt()  # = noise wherever start = x0

    dropped = torch.rand(batch, 1, device=device) < CONDITION_DROPOUT
    ids = torch.arange(len(CONDITIONAL_IDS), device=device)
    ids = torch.where(dropped, ids + UNCONDITIONAL_IDS[0], ids + CONDITIONAL_IDS[0])
    masked = torch.where(dropped[:, :, None, None], masked.roll(1, 0), masked)

    predicted = network(torch.cat([noisy, mask, masked], dim=1), t, ids).float()
    near = F.max_pool2d(mask, 3, 1, 1)  # the hole and the ring of cells around it
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


class Trainer:
    """Network, averaged network and optimizer, with one step that can be captured in a CUDA graph."""

    def __init__(self, config: NetworkConfig, pool: dict[str, Tensor], batch: int) -> None:
        self.pool, self.batch = pool, batch
        self.device = pool["latent"].device
        self.cuda = self.device.type == "cuda"
        self.network = use_fast_forms(MoebiusNet(config)).to(self.device)
        centre_first_kernels(self.network)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.rate = torch.tensor(0.0, device=self.device)
        self.keep = torch.tensor(0.0, device=self.device)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, capturable=self.cuda, foreach=self.cuda
        )
        self.schedule = alphas_cumprod().float().to(self.device)
        self.loss = torch.zeros((), device=self.device)
        self.steps = 0
        self.since = 0  # the step at which weights alone were taken up: warm-up and average begin there
        self.graph: torch.cuda.CUDAGraph | None = None

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            loss = diffusion_loss(self.network, self.pool, self.batch, self.schedule)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(self.average, self.keep)
            torch._foreach_add_(self.average, torch._foreach_mul(list(self.network.parameters()), 1 - self.keep))
            self.loss.mul_(0.98).add_(loss.detach(), alpha=0.02)

    def capture(self) -> None:
        """Record one step as a CUDA graph, after warm-up steps on a side stream; they count as training steps."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(4):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        self.steps += 4

    def step(self, rate: float) -> None:
        """One update at this learning rate."""
        self.rate.fill_(rate)
        done = self.steps - self.since
        self.keep.fill_(min(EMA_DECAY, (1 + done) / (10 + done)))
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()
        self.steps += 1

    def state(self) -> dict:
        return {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "since": self.since,
        }

    def load(self, state: dict) -> None:
        """Take up a full state, or weights alone: then the optimizer starts anew behind a warm-up."""
        self.network.load_state_dict(state["network"])
        with torch.no_grad():
            for mine, saved in zip(self.average, state.get("average", self.network.parameters())):
                mine.copy_(saved)
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        self.steps = state["steps"]
        self.since = state["since"] if "optimizer" in state else self.steps


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
def recalibrate(network: MoebiusNet, pool: dict[str, Tensor], batch: int, batches: int) -> MoebiusNet:
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
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return network.eval()


def train_denoiser(
    config: NetworkConfig,
    pool: dict[str, Tensor],
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
        pool: what `encode_pool` made.
        checkpoint: full state, written every two minutes and at the end.
        seconds: training time of the whole plan, all calls together: the learning rate rises over `WARMUP_STEPS` steps,
            stays, and falls to nothing over the last half. A checkpoint of weights alone begins a new plan, which is
            no longer than this call.
        stop_after: seconds that this call may take, set-up included; the next one goes on where it stopped.
        max_steps: an upper end on steps, for small runs.
        batch: latents a step.
        peak: learning rate between rise and fall.

    Returns:
        The trainer, and the log: steps, seconds, curve of the smoothed loss.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    began = time.time()
    trainer = Trainer(config, pool, batch)
    log: dict = {"steps": 0, "seconds": 0.0, "curve": []}
    plan_began, resumed = 0.0, True
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=trainer.device, weights_only=True)
        trainer.load(state)
        log, resumed = state["log"], "optimizer" in state
        plan_began = state["plan_began"] if resumed else log["seconds"]
    trainer.network.train()
    if trainer.cuda:
        trainer.rate.fill_(1e-6)
        trainer.keep.fill_(1.0)
        trainer.capture()
        torch.cuda.synchronize()
        print(f"denoiser: captured in {time.time() - began:.0f} s", flush=True)
    before, begun, last_save = log["seconds"], time.time(), time.time()
    if not resumed:
        seconds = min(seconds, stop_after - (time.time() - began))

    def save() -> None:
        log["steps"] = trainer.steps
        torch.save(trainer.state() | {"log": log, "plan_began": plan_began}, checkpoint)

    first = trainer.steps
    while log["seconds"] - plan_began < seconds and trainer.steps < max_steps and time.time() - began < stop_after:
        progress = max((log["seconds"] - plan_began) / seconds, trainer.steps / max_steps)
        rise = min(1.0, (trainer.steps - trainer.since + 1) / WARMUP_STEPS)
        trainer.step(peak * rise * min(1.0, 2 * (1 - progress) + 0.005))
        if trainer.steps % 100 == 0 or trainer.steps == max_steps:
            value = trainer.loss.item()  # waits for the device, so the clock below is honest
            if not value < float("inf"):
                raise FloatingPointError(f"the denoiser's loss is {value} at step {trainer.steps}")
            log["curve"].append([trainer.steps, round(value, 5)])
        log["seconds"] = before + time.time() - begun
        if trainer.steps % PRINT_EVERY == 0:
            pace = (time.time() - begun) / (trainer.steps - first)
            print(f"denoiser {trainer.steps} steps {log['seconds']:.0f} s loss {log['curve'][-1][1]} {1000 * pace:.1f} ms", flush=True)
        if time.time() - last_save > SAVE_EVERY:
            save()
            last_save = time.time()
    save()
    return trainer, log
