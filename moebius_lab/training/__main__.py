"""`python -m moebius_lab.training`: the whole recipe, stage after stage, each resuming from its own checkpoint.

With `torchrun --nproc-per-node N -m moebius_lab.training` on N GPUs: a batch in each, the gradients averaged. Time on GPUs comes in pieces:
`--seconds` says what each stage is planned for, `--stop-after` how long this piece lasts; the same command goes on from there.
"""

from __future__ import annotations

from .. import errors

if __name__ == "__main__":
    errors.watch_process()  # from here on, since what follows takes seconds to import

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from .. import LabError
from ..config import DEMO, SMALL, NetworkConfig
from ..files import write_whole, written_whole
from ..inpainting import masks
from ..model.checkpoint import DEMO_FOLDER, make_vae
from . import data, denoiser, parallel
from .album import Album
from .checkpoints import save
from .decoder import decoder_parameters, mix_decoders, train_decoder
from .fast_forms import use_fast_forms
from .generated import generated_pictures
from .vae import held_out_psnr, latent_std, train_vae

STAGES = ("data", "vae", "decoder", "denoiser", "save")
SEED = 20261125
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
    denoiser_rate: float = denoiser.PEAK_LR


FULL = Plan(DEMO, 4096, 640, 10**9, 32, 16384, 128, 1440, 10**9, 128, 480, 10**9, 32)
SMOKE = Plan(SMALL, 16, 1e9, 4, 2, 8, 4, 1e9, 6, 2, 1e9, 4, 2)


def smoke_album(device: torch.device, size: int) -> Album:
    """Generated pictures alone, of which four pass for photographs: all that a smoke run trains on."""
    torch.manual_seed(SEED)
    drawn = [generated_pictures(1, size + 40, torch.device("cpu"))[0].permute(1, 2, 0) for _ in range(5)]
    kinds = ("photograph",) * 4 + ("texture",)
    return Album([(kind, (x * 255).byte().numpy()) for kind, x in zip(kinds, drawn)], device, size, bank=16)


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
        """Print, and keep the log next to the checkpoints; the first process alone does it."""
        if not parallel.is_first():
            return
        write_whole(self.work / "training_log.json", json.dumps(self.log))
        print(text, flush=True)

    def album(self) -> Album:
        """The training pictures on the device."""
        size = self.plan.network.image_size
        if self.smoke:
            return smoke_album(self.device, size)
        pictures = [picture for file in sorted(self.work.glob("album*.zip")) for picture in data.read_album(file)]
        if not pictures:
            raise LabError(f"no album in {self.work}: run the stage 'data' first")
        self.log["pictures"] = {kind: sum(k == kind for k, _ in pictures) for kind in ("photograph", "texture")}
        return Album(pictures, self.device, size)

    def holes(self) -> torch.Tensor:
        """(m, size, size) uint8 on the device."""
        size = self.plan.network.image_size
        return torch.from_numpy(masks.random_masks(self.plan.mask_count, SEED + parallel.rank(), size)).to(self.device)

    def held_out(self) -> torch.Tensor:
        """(k, 3, size, size) on the device; in a smoke run, as there are no photographs, generated pictures."""
        size = self.plan.network.image_size
        if self.smoke:
            return generated_pictures(4, size, self.device) * 2 - 1
        return held_out_pictures(self.work / "held_out", size).to(self.device)

    def vae(self) -> AutoencoderKL:
        """The autoencoder of the first training, on the device."""
        vae = make_vae(self.plan.network)
        vae.load_state_dict(load_weights(self.work / "vae_plain.safetensors"))
        return vae.to(self.device)


def data_stage(shop: Workshop) -> None:
    if not shop.smoke and not list(shop.work.glob("album*.zip")):
        data.fetch_packages(shop.work / "packages")
        data.write_sources(data.make_album(shop.work / "packages", shop.work / "album.zip"))


def vae_stage(shop: Workshop) -> None:
    plan, weights_file = shop.plan, shop.work / "vae_plain.safetensors"
    if weights_file.exists():
        return
    album = shop.album()
    vae, log = train_vae(
        album, shop.holes(), shop.held_out(), plan.network, shop.work / "vae.pt", seconds=plan.vae_seconds, stop_after=shop.left,
        max_steps=plan.vae_steps, batch=plan.vae_batch,
    )  # fmt: skip
    log["latent_std"] = parallel.agree(latent_std(vae, album))
    log["scaling_factor"] = round(1 / log["latent_std"], 4)
    shop.log["vae"] = log
    if shop.left > 0 and parallel.is_first():
        save_half(vae, weights_file)
    shop.say(
        f"vae: {log['steps']} steps, held-out PSNR {log['held_out_psnr_db']:.2f} dB, scaling factor {log['scaling_factor']}"
    )


def denoiser_stage(shop: Workshop) -> None:
    plan, vae = shop.plan, use_fast_forms(shop.vae()).to(memory_format=torch.channels_last)
    encoder = denoiser.Encoder(vae, shop.log["vae"]["scaling_factor"], shop.album(), shop.holes(), plan.encode_batch)
    pool = denoiser.Pool(encoder, plan.pool)
    shop.say(f"denoiser: {plan.pool} latents, std {pool['latent'].float().std():.3f}")
    trainer, log = denoiser.train_denoiser(
        plan.network, pool, shop.work / "denoiser.pt", seconds=plan.denoiser_seconds, stop_after=shop.left,
        max_steps=plan.denoiser_steps, batch=plan.denoiser_batch, peak=plan.denoiser_rate,
    )  # fmt: skip
    shop.log["denoiser"] = log
    network = denoiser.averaged_network(plan.network, trainer)
    if parallel.is_first():
        save_half(network, shop.work / "denoiser.safetensors")
    shop.say(f"denoiser: {log['steps']} steps, {log['seconds']:.0f} s, loss {log['curve'][-1]}")


def decoder_stage(shop: Workshop) -> None:
    plan, vae, second_file = shop.plan, shop.vae(), shop.work / "vae_second.safetensors"
    held_out = shop.held_out()
    if not second_file.exists():
        average, shop.log["decoder"] = train_decoder(
            vae, shop.album(), held_out, shop.work / "decoder.pt", seconds=plan.decoder_seconds, stop_after=shop.left,
            max_steps=plan.decoder_steps, batch=plan.decoder_batch,
        )  # fmt: skip
        if parallel.agree(shop.left) <= 0:
            return
        if parallel.is_first():
            save_half(mix_decoders(vae, average, 1.0), second_file)
        parallel.wait()
    second = make_vae(plan.network)
    second.load_state_dict(load_weights(second_file))
    mixed = mix_decoders(shop.vae(), decoder_parameters(second), DECODER_SHARE)
    if parallel.is_first():
        save_half(mixed, shop.work / "vae.safetensors")
    shop.log["decoder"] |= {"share": DECODER_SHARE, "mixed_held_out_psnr_db": held_out_psnr(mixed, held_out)}
    shop.say(f"decoder: {shop.log['decoder']['steps']} steps, held-out PSNR {shop.log['decoder']['held_out_psnr_db']} dB")


def save_stage(shop: Workshop) -> None:
    if not shop.smoke and parallel.is_first():
        for name in ("vae.safetensors", "denoiser.safetensors", "training_log.json"):
            (DEMO_FOLDER / name).write_bytes((shop.work / name).read_bytes())


def start_from_shipped(work: Path, stages: tuple[str, ...], further: Path = DEMO_FOLDER) -> None:
    """Lay the shipped weights and log where the first stages look for their checkpoints, unless there are some.

    First kernels of the denoiser that became shifts are moved back to the middle. Where the autoencoder is not to be
    trained, the shipped one, whose encoder the denoiser knows, encodes.

    Args:
        work: the work folder.
        stages: what will be run.
        further: a folder with weights or a log that go before the shipped ones, of a training that was not finished.
    """

    def newest(name: str) -> Path:
        return further / name if (further / name).exists() else DEMO_FOLDER / name

    log = json.loads(newest("training_log.json").read_text(encoding="utf-8"))
    for name, key, part in (("vae", "vae", "vae"), ("denoiser", "network", "denoiser")):
        file = work / f"{name}.pt"
        if not file.exists():
            weights = load_weights(newest(f"{name}.safetensors"))
            if name == "denoiser":
                weights[denoiser.FIRST_KERNELS] = denoiser.unshifted(weights[denoiser.FIRST_KERNELS])
            save({key: weights, "steps": log[part]["steps"], "log": log[part]}, file)
    if not (decoder := work / "decoder.pt").exists():
        save({"log": log["decoder"]}, decoder)
    for stage, name in (("vae", "vae_plain"), ("decoder", "vae")):
        if stage not in stages and not (file := work / f"{name}.safetensors").exists():
            file.write_bytes(newest("vae.safetensors").read_bytes())
    log_file = work / "training_log.json"
    if not log_file.exists():
        log_file.write_text(json.dumps(log), encoding="utf-8")


def run(plan: Plan, work: Path, stages: tuple[str, ...], stop_after: float, smoke: bool) -> dict:
    """Run the stages, in their own order, and return the training log (also written to `work/training_log.json`).

    A stage whose plan is not done when `stop_after` seconds have passed saves its state and ends the run; the next run goes on.
    """
    began = time.time()
    work.mkdir(parents=True, exist_ok=True)
    device = parallel.start()
    torch.manual_seed(
        SEED + (int(began) + 1000 * parallel.rank()) * (not smoke)
    )  # neither another run's batches nor process's
    log_file = work / "training_log.json"
    log = json.loads(log_file.read_text(encoding="utf-8")) if log_file.exists() else {"seed": SEED}
    cards = parallel.world() if device.type == "cuda" else 1
    log["hardware"] = (f"{cards} x " if cards > 1 else "") + (
        torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    )
    log["torch"] = torch.__version__
    parallel.wait()
    shop = Workshop(plan, work, smoke, device, log, began + stop_after)
    for name, stage in zip(STAGES, (data_stage, vae_stage, decoder_stage, denoiser_stage, save_stage)):
        if name in stages:
            stage(shop)
            parallel.wait()
            shop.say(f"{name}: {time.time() - began:.0f} s since the start")
            if parallel.agree(shop.left) <= 0:
                shop.say(f"{stop_after:.0f} s are over: the same command goes on from here")
                break
    return shop.log


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The float32 state dict of a float16 safetensors file; integers (BatchNorm counters) stay integers."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}


def save_half(module: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, numbers in float16, integers as they are."""
    halves = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in module.state_dict().items()}
    with written_whole(path) as part:
        save_file(halves, part)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.training", description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints and album; a second run resumes from it")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds after which to save and stop")
    parser.add_argument(
        "--from-shipped", nargs="?", type=Path, const=DEMO_FOLDER, metavar="FOLDER",
        help="train the shipped weights further, not new ones; what FOLDER has of a training that was not finished goes before them",
    )  # fmt: skip
    parser.add_argument(
        "--seconds",
        nargs="+",
        default=[],
        metavar="STAGE=S",
        help="training time that vae, decoder and denoiser are planned for, all runs together",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        default=[],
        metavar="STAGE=N",
        help="pictures or latents a step in each process (default: 32 for vae and decoder, 128 for denoiser)",
    )
    parser.add_argument(
        "--denoiser-rate", type=float, default=denoiser.PEAK_LR, metavar="RATE",
        help="learning rate of the denoiser between its rise and its fall (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps of everything on synthetic pictures, on any machine"
    )
    args = parser.parse_args()
    if not 0 < args.denoiser_rate < math.inf:
        raise LabError(f"--denoiser-rate takes a number above 0, not {args.denoiser_rate}")
    parallel.start()
    if args.from_shipped and parallel.is_first():
        args.work_dir.mkdir(parents=True, exist_ok=True)
        start_from_shipped(args.work_dir, tuple(args.stages), args.from_shipped)
    parallel.wait()
    plan = (
        SMOKE
        if args.smoke
        else replace(FULL, **by_stage("--seconds", args.seconds, float), **by_stage("--batch", args.batch, int))
    )
    plan = replace(plan, denoiser_rate=args.denoiser_rate)
    run(plan, args.work_dir, tuple(args.stages), args.stop_after, args.smoke)
    parallel.stop()
    return 0


def by_stage(option: str, words: list[str], number: type) -> dict[str, float]:
    """("--seconds", ["vae=300"], float) -> {"vae_seconds": 300.0}, as the plan names it.

    Raises:
        LabError: a word names no trained stage, or no number above 0.
    """
    found = {}
    for word in words:
        stage, _, text = word.partition("=")
        try:
            value = number(text)
        except ValueError:
            value = 0
        if not value > 0:
            raise LabError(f"{option} takes words like denoiser=900, with a number above 0, not {word!r}")
        if stage not in ("vae", "decoder", "denoiser"):
            raise LabError(f"{option} knows vae, decoder and denoiser, not {stage!r}")
        found[f"{stage}_{option[2:]}"] = value
    return found


if __name__ == "__main__":
    errors.leave(errors.run(main))
