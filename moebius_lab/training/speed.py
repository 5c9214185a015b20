"""How long a training step takes, and where: `python -m moebius_lab.training.speed`, before any longer training on a machine.

First the fast forms are held against the published network, here and in this machine's types. Then it times the denoiser's step on random latents, and cutting and encoding windows of noise, which is what a pool is
renewed with, and lists the operations that a card spends most time on.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from .. import LabError, errors
from ..config import DEMO, NETWORKS
from ..inpainting import masks
from ..model.checkpoint import make_vae
from ..model.unet import MoebiusNet
from . import denoiser, parallel
from .album import Album, random_windows
from .fast_forms import use_fast_forms

MOST_DIFFERENCE, MOST_GRADIENT = (
    0.02,
    0.1,
)  # of the network's output, and of its gradients as a whole; a card multiplies float32 with ten bits where it is allowed to
LISTED = 25  # operations
ALBUM = 16  # pictures that windows are cut from, of ...
LARGEST = 4  # ... windows' sides


def milliseconds(work: Callable[[], object], times: int, device: torch.device) -> tuple[float, float]:
    """Mean time of one call until the device is done, and until the host is; the first call does not count."""
    work()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    host = time.perf_counter() - began
    synchronize(device)
    return 1000 * (time.perf_counter() - began) / times, 1000 * host / times


def synchronize(device: torch.device) -> None:
    """Wait until a card has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_pool(count: int, side: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Latents of pure noise with a square hole, as `denoiser.Encoder` would make them."""
    hole = torch.zeros(count, 1, side, side, dtype=torch.bool, device=device)
    hole[:, :, side // 4 : side // 2, side // 4 : side // 2] = True
    latent = torch.randn(count, 4, side, side, device=device).half()
    return {"latent": latent, "masked": latent * ~hole, "mask": hole, "released": hole}


def table(trainer: denoiser.Trainer, steps: int) -> list[str]:
    """The operations of a step by their own time on the device, ms, most first."""
    activity = ProfilerActivity.CUDA if trainer.cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        for _ in range(steps):
            trainer.step(0.0)
        synchronize(trainer.device)

    def own(row) -> float:
        return (row.self_device_time_total if trainer.cuda else row.self_cpu_time_total) / 1000 / steps

    rows = sorted(seen.key_averages(), key=own, reverse=True)
    return [f"{own(row):9.3f} ms {row.count // steps:5d} x  {row.key[:90]}" for row in rows[:LISTED]]


def worst_difference(name: str, device: torch.device) -> tuple[float, float]:
    """How far the fast forms are from the published network, in float32.

    Returns:
        The largest difference of the output over its root mean square, and the norm of the gradients' difference over theirs.
    """
    config = NETWORKS[name]
    torch.manual_seed(0)
    published = MoebiusNet(config).to(device).train()
    fast = use_fast_forms(copy.deepcopy(published))
    s = config.latent_size
    inputs = (
        torch.randn(4, 9, s, s, device=device),
        torch.arange(4, device=device) * 300,
        torch.arange(10, device=device).expand(4, -1),
    )
    with torch.backends.cudnn.flags(allow_tf32=False):  # with ten bits a card's library is off by 0.1 itself
        expected, given = published(*inputs), fast(*inputs)
        wish = torch.randn_like(expected)
        for output in (expected, given):
            (output * wish).sum().backward()
    pairs = [(p.grad, q.grad) for p, q in zip(published.parameters(), fast.parameters())]
    apart = sum(float((p - q).square().sum()) for p, q in pairs) / sum(float(p.square().sum()) for p, _ in pairs)
    return float((given - expected).abs().max() / expected.pow(2).mean().sqrt()), apart**0.5


def measure(name: str, batch: int, times: int) -> list[str]:
    """Lines that say what `batch` latents a step and windows a batch cost on this machine."""
    config, device = NETWORKS[name], parallel.start()
    output, gradient = worst_difference(name, device)
    if not (output < MOST_DIFFERENCE and gradient < MOST_GRADIENT):
        raise LabError(
            f"the fast forms are off by {output:.3g} (output) or {gradient:.3g} (gradients) on this machine: do not train here "
            "before that is mended"
        )
    trainer = denoiser.Trainer(config, random_pool(max(64, batch), config.latent_size, device), batch)
    trainer.network.train()
    trainer.capture()
    step, host = milliseconds(lambda: trainer.step(0.0), times, device)
    lines = [
        f"fast forms off by {output:.1e} (output), {gradient:.1e} (gradients)",
        f"denoiser, a step of {batch}: {step:.1f} ms, host {host:.1f} ms",
    ]
    side = LARGEST * config.image_size
    noise = np.random.default_rng(0).integers(0, 256, (ALBUM, side, side, 3), dtype=np.uint8)
    album = Album([("photograph", picture) for picture in noise], device, config.image_size, bank=16)
    windows, _ = milliseconds(lambda: random_windows(album, batch), times, device)
    holes = torch.from_numpy(masks.random_masks(16, 0, config.image_size)).to(device)
    encoder = denoiser.Encoder(use_fast_forms(make_vae(config)).to(device).eval(), 1.0, album, holes, batch)
    encoded, _ = milliseconds(lambda: encoder.encode(batch), times, device)
    lines.append(f"{batch} windows: {windows:.1f} ms; with encoding, twice: {encoded:.1f} ms")
    return [*lines, *table(trainer, max(1, times // 8))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.training.speed", description=__doc__)
    parser.add_argument("--network", choices=sorted(NETWORKS), default=DEMO.name)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--times", type=int, default=20, help="steps that are timed")
    args = parser.parse_args()
    print(*measure(args.network, args.batch, args.times), sep="\n")
    return 0


if __name__ == "__main__":
    errors.leave(errors.run(main))
