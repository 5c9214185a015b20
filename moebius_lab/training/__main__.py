"""`python -m moebius_lab.training`: the whole recipe, stage after stage, each resuming from its own checkpoint."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..checkpoint import make_vae
from ..config import DEMO, SMALL, NetworkConfig
from . import data, denoiser, masks
from .vae import latent_std, train_vae

STAGES = ("data", "vae", "encode", "denoiser", "save")
SEED = 20261124


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

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


FULL = Plan(DEMO, 8192, 165, 10**9, 32, 65536, 256, 485, 10**9, 128)
SMOKE = Plan(SMALL, 16, 1e9, 4, 2, 8, 4, 1e9, 6, 2)


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


def run(plan: Plan, work: Path, stages: tuple[str, ...], stop_after: float, smoke: bool) -> dict:
    """Run the stages and return the training log (also written to `work/training_log.json`)."""
    began = time.time()
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED + int(began) * (not smoke))  # a resumed run must not see the same batches again
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiled = device.type == "cuda"
    size = plan.network.image_size
    log_file = work / "training_log.json"
    log = json.loads(log_file.read_text()) if log_file.exists() else {"seed": SEED}
    log["hardware"] = torch.cuda.get_device_name() if compiled else "CPU"
    log["torch"] = torch.__version__

    def keep_log() -> None:
        log_file.write_text(json.dumps(log))

    tile_file = work / "tiles.zip"
    if "data" in stages and not smoke and not tile_file.exists():
        data.fetch_packages(work / "packages")
        data.write_sources(data.make_tiles(work / "packages", tile_file))
    tiles = torch.from_numpy(smoke_tiles() if smoke else data.read_tiles(tile_file)).to(device)
    log["tiles"] = len(tiles)
    print(f"data: {len(tiles)} tiles, {time.time() - began:.0f} s", flush=True)

    vae_file, pool_file, state_file = work / "vae.pt", work / "pool.pt", work / "denoiser.pt"
    weights_file = work / "vae.safetensors"
    holes = None
    if "vae" in stages or "encode" in stages:
        holes = torch.from_numpy(masks.random_masks(plan.mask_count, SEED, size)).to(device)
    if "vae" in stages and not weights_file.exists():
        held_out = tiles[:4, :size, :size].permute(0, 3, 1, 2).float() / 127.5 - 1 if smoke else held_out_pictures(work / "held_out", size)
        vae, log["vae"] = train_vae(
            tiles, holes, held_out.to(device), plan.network, vae_file, seconds=plan.vae_seconds, max_steps=plan.vae_steps,
            batch=plan.vae_batch, size=size, compiled=compiled,
        )  # fmt: skip
        log["vae"]["latent_std"] = latent_std(vae, tiles, size)
        log["vae"]["scaling_factor"] = round(1 / log["vae"]["latent_std"], 4)
        save_file({k: v.half().cpu().contiguous() for k, v in vae.state_dict().items()}, weights_file)
        keep_log()
        print(f"vae: {log['vae']['steps']} steps, held-out PSNR {log['vae']['held_out_psnr_db']:.2f} dB, scaling {log['vae']['scaling_factor']}", flush=True)
    if "encode" in stages and not pool_file.exists():
        vae = make_vae(plan.network)
        vae.load_state_dict(load_weights(weights_file))
        vae = vae.to(device).eval()
        encoded = denoiser.encode_pool(vae, log["vae"]["scaling_factor"], tiles, holes, plan.pool, plan.encode_batch)
        torch.save(encoded, pool_file)
        print(f"encode: {len(encoded['latent'])} latents, std {encoded['latent'].float().std():.3f}, {time.time() - began:.0f} s", flush=True)
        del vae
    del tiles, holes
    if "denoiser" in stages:
        pool = torch.load(pool_file, map_location=device, weights_only=True)
        trainer, log["denoiser"] = denoiser.train_denoiser(
            plan.network, pool, state_file, seconds=plan.denoiser_seconds, stop_after=stop_after - (time.time() - began),
            max_steps=plan.denoiser_steps, batch=plan.denoiser_batch, compiled=compiled,
        )  # fmt: skip
        network = denoiser.averaged_network(plan.network, trainer)
        final = {k: v.half().cpu().contiguous() for k, v in network.state_dict().items() if v.is_floating_point()}
        final |= {k: v.cpu() for k, v in network.state_dict().items() if not v.is_floating_point()}
        save_file(final, work / "denoiser.safetensors")
        keep_log()
        print(f"denoiser: {log['denoiser']['steps']} steps, {log['denoiser']['seconds']:.0f} s, loss {log['denoiser']['curve'][-1]}", flush=True)
    keep_log()
    if "save" in stages and not smoke:
        demo = Path(__file__).parents[1] / "demo"
        for name in ("vae.safetensors", "denoiser.safetensors", "training_log.json"):
            (demo / name).write_bytes((work / name).read_bytes())
    return log


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The float32 state dict of a float16 safetensors file; integers (BatchNorm counters) stay integers."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.training", description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints and tiles; a second run resumes from it")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds after which to save and stop")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything on synthetic pictures, on any machine")
    args = parser.parse_args()
    run(SMOKE if args.smoke else FULL, args.work_dir, tuple(args.stages), args.stop_after, args.smoke)


if __name__ == "__main__":
    main()
