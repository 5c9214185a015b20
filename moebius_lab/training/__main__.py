"""`python -m moebius_lab.training`: the whole recipe, stage after stage, each resuming from its own checkpoint."""

from __future__ import annotations

from .. import errors

if __name__ == "__main__":
    errors.watch_process()  # from here on, since what follows takes seconds to import

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from ..checkpoint import make_vae
from ..config import DEMO, SMALL, NetworkConfig
from . import data, denoiser, masks
from .decoder import decoder_parameters, mix_decoders, train_decoder
from .fast_forms import use_fast_forms
from .vae import held_out_psnr, latent_std, train_vae

STAGES = ("data", "vae", "encode", "denoiser", "decoder", "save")
SEED = 20261124
DEMO_FOLDER = Path(__file__).parents[1] / "demo"
DECODER_SHARE = 1.0  # how far the shipped decoder goes from the first training (0) to the second (1)


@dataclass(frozen=True)
class Plan:
    """How much of everything; an end that is never reached is written as a large number."""

    network: NetworkConfig
    mask_count: int
    vae_seconds: float
    vae_steps: int
    vae_batch: int
    pool: int
    encode_batch: int
    denoiser_seconds: float
    denoiser_steps: int
    denoiser_batch: int
    decoder_seconds: float
    decoder_steps: int
    decoder_batch: int


FULL = Plan(DEMO, 8192, 640, 10**9, 32, 65536, 256, 1440, 10**9, 128, 480, 10**9, 32)
SMOKE = Plan(SMALL, 16, 1e9, 4, 2, 8, 4, 1e9, 6, 2, 1e9, 4, 2)


def smoke_tiles(count: int = 8) -> np.ndarray:
    """(count, 320, 320, 3) uint8 synthetic tiles: all that a smoke run trains on."""
    rng = np.random.default_rng(SEED)
    return np.stack([data.synthetic_tile(rng) for _ in range(count)])


def held_out_pictures(folder: Path, size: int) -> torch.Tensor:
    """(k, 3, size, size) in [-1, 1]: the middle squares of the held-out photographs, scaled to the window."""
    squares = []
    for file in sorted(folder.glob("*.png")):
        rgb = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        side = min(rgb.shape[:2])
        y, x = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
        squares.append(cv2.resize(rgb[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass
class Workshop:
    """The work folder and what every stage needs of it."""

    plan: Plan
    work: Path
    smoke: bool
    device: torch.device
    log: dict
    deadline: float  # time.time() at which to save and stop

    @property
    def left(self) -> float:
        """Seconds that are left to this call."""
        return self.deadline - time.time()

    def say(self, text: str) -> None:
        """Print, and keep the log beside the checkpoints."""
        (self.work / "training_log.json").write_text(json.dumps(self.log), encoding="utf-8")
        print(text, flush=True)

    def tiles(self) -> torch.Tensor:
        """(n, 320, 320, 3) uint8 on the device."""
        tiles = torch.from_numpy(smoke_tiles() if self.smoke else data.read_tiles(self.work / "tiles.zip")).to(self.device)
        self.log["tiles"] = len(tiles)
        return tiles

    def held_out(self) -> torch.Tensor:
        """(k, 3, size, size) on the device; in a smoke run, as there are no photographs, tiles."""
        size = self.plan.network.image_size
        if self.smoke:
            return torch.from_numpy(smoke_tiles(4)[:, :size, :size]).permute(0, 3, 1, 2).to(self.device) / 127.5 - 1
        return held_out_pictures(self.work / "held_out", size).to(self.device)

    def vae(self) -> AutoencoderKL:
        """The autoencoder of the first training, on the device."""
        vae = make_vae(self.plan.network)
        vae.load_state_dict(load_weights(self.work / "vae_plain.safetensors"))
        return vae.to(self.device)


def data_stage(shop: Workshop) -> None:
    if not shop.smoke and not (shop.work / "tiles.zip").exists():
        data.fetch_packages(shop.work / "packages")
        data.write_sources(data.make_tiles(shop.work / "packages", shop.work / "tiles.zip"))


def vae_stage(shop: Workshop) -> None:
    plan, weights_file = shop.plan, shop.work / "vae_plain.safetensors"
    if weights_file.exists():
        return
    tiles, size = shop.tiles(), plan.network.image_size
    holes = torch.from_numpy(masks.random_masks(plan.mask_count, SEED, size)).to(shop.device)
    vae, log = train_vae(
        tiles, holes, shop.held_out(), plan.network, shop.work / "vae.pt", seconds=plan.vae_seconds, stop_after=shop.left,
        max_steps=plan.vae_steps, batch=plan.vae_batch, size=size,
    )  # fmt: skip
    log["latent_std"] = latent_std(vae, tiles, size)
    log["scaling_factor"] = round(1 / log["latent_std"], 4)
    shop.log["vae"] = log
    save_half(vae, weights_file)
    shop.say(f"vae: {log['steps']} steps, held-out PSNR {log['held_out_psnr_db']:.2f} dB, scaling factor {log['scaling_factor']}")


def encode_stage(shop: Workshop) -> None:
    plan, pool_file = shop.plan, shop.work / "pool.pt"
    if pool_file.exists():
        return
    holes = torch.from_numpy(masks.random_masks(plan.mask_count, SEED, plan.network.image_size)).to(shop.device)
    vae, factor = use_fast_forms(shop.vae()), shop.log["vae"]["scaling_factor"]
    pool = denoiser.encode_pool(vae, factor, shop.tiles(), holes, plan.pool, plan.encode_batch)
    torch.save(pool, pool_file)
    shop.say(f"encode: {len(pool['latent'])} latents, std {pool['latent'].float().std():.3f}")


def denoiser_stage(shop: Workshop) -> None:
    plan = shop.plan
    pool = torch.load(shop.work / "pool.pt", map_location=shop.device, weights_only=True)
    trainer, log = denoiser.train_denoiser(
        plan.network, pool, shop.work / "denoiser.pt", seconds=plan.denoiser_seconds, stop_after=shop.left,
        max_steps=plan.denoiser_steps, batch=plan.denoiser_batch,
    )  # fmt: skip
    shop.log["denoiser"] = log
    save_half(denoiser.averaged_network(plan.network, trainer), shop.work / "denoiser.safetensors")
    shop.say(f"denoiser: {log['steps']} steps, {log['seconds']:.0f} s, loss {log['curve'][-1]}")


def decoder_stage(shop: Workshop) -> None:
    plan, vae, second_file = shop.plan, shop.vae(), shop.work / "vae_second.safetensors"
    held_out = shop.held_out()
    if not second_file.exists():
        average, shop.log["decoder"] = train_decoder(
            vae, shop.tiles(), held_out, shop.work / "decoder.pt", seconds=plan.decoder_seconds, stop_after=shop.left,
            max_steps=plan.decoder_steps, batch=plan.decoder_batch, size=plan.network.image_size,
        )  # fmt: skip
        save_half(mix_decoders(vae, average, 1.0), second_file)
    second = make_vae(plan.network)
    second.load_state_dict(load_weights(second_file))
    mixed = mix_decoders(shop.vae(), decoder_parameters(second), DECODER_SHARE)
    save_half(mixed, shop.work / "vae.safetensors")
    shop.log["decoder"] |= {"share": DECODER_SHARE, "mixed_held_out_psnr_db": held_out_psnr(mixed, held_out)}
    shop.say(f"decoder: {shop.log['decoder']['steps']} steps, held-out PSNR {shop.log['decoder']['held_out_psnr_db']} dB")


def save_stage(shop: Workshop) -> None:
    if not shop.smoke:
        for name in ("vae.safetensors", "denoiser.safetensors", "training_log.json"):
            (DEMO_FOLDER / name).write_bytes((shop.work / name).read_bytes())


def start_from_shipped(work: Path, stages: tuple[str, ...]) -> None:
    """Lay the shipped weights and log where the first stages look for their checkpoints, unless there are some.

    First kernels of the denoiser that became shifts are moved back to the middle. Where the autoencoder is not to be
    trained, the shipped one, whose encoder the denoiser knows, encodes.
    """
    log = json.loads((DEMO_FOLDER / "training_log.json").read_text(encoding="utf-8"))
    for name, key, part in (("vae", "vae", "vae"), ("denoiser", "network", "denoiser")):
        file = work / f"{name}.pt"
        if not file.exists():
            weights = load_weights(DEMO_FOLDER / f"{name}.safetensors")
            if name == "denoiser":
                weights[denoiser.FIRST_KERNELS] = denoiser.unshifted(weights[denoiser.FIRST_KERNELS])
            torch.save({key: weights, "steps": log[part]["steps"], "log": log[part]}, file)
    if not (decoder := work / "decoder.pt").exists():
        torch.save({"log": log["decoder"]}, decoder)
    if "vae" not in stages and not (work / "vae_plain.safetensors").exists():
        (work / "vae_plain.safetensors").write_bytes((DEMO_FOLDER / "vae.safetensors").read_bytes())
    log_file = work / "training_log.json"
    if not log_file.exists():
        log_file.write_text(json.dumps(log), encoding="utf-8")


def run(plan: Plan, work: Path, stages: tuple[str, ...], stop_after: float, smoke: bool) -> dict:
    """Run the stages, in their own order, and return the training log (also written to `work/training_log.json`)."""
    began = time.time()
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED + int(began) * (not smoke))  # a resumed run must not see the same batches again
    cuda = torch.cuda.is_available()
    log_file = work / "training_log.json"
    log = json.loads(log_file.read_text(encoding="utf-8")) if log_file.exists() else {"seed": SEED}
    log["hardware"] = torch.cuda.get_device_name() if cuda else "CPU"
    log["torch"] = torch.__version__
    shop = Workshop(plan, work, smoke, torch.device("cuda" if cuda else "cpu"), log, began + stop_after)
    for name, stage in zip(STAGES, (data_stage, vae_stage, encode_stage, denoiser_stage, decoder_stage, save_stage)):
        if name in stages:
            stage(shop)
            shop.say(f"{name}: {time.time() - began:.0f} s since the start")
    return shop.log


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The float32 state dict of a float16 safetensors file; integers (BatchNorm counters) stay integers."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}


def save_half(module: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, numbers in float16, integers as they are."""
    save_file({k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in module.state_dict().items()}, path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.training", description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints and tiles; a second run resumes from it")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds after which to save and stop")
    parser.add_argument("--from-shipped", action="store_true", help="train the shipped weights further, not new ones")
    parser.add_argument("--pool", type=int, default=FULL.pool, help="pictures that are encoded for the denoiser")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything on synthetic pictures, on any machine")
    args = parser.parse_args()
    if args.from_shipped:
        args.work_dir.mkdir(parents=True, exist_ok=True)
        start_from_shipped(args.work_dir, tuple(args.stages))
    plan = SMOKE if args.smoke else replace(FULL, pool=args.pool)
    run(plan, args.work_dir, tuple(args.stages), args.stop_after, args.smoke)
    return 0


if __name__ == "__main__":
    errors.leave(errors.run(main))
