"""Held-out photographs: how well the demo checkpoint fills, in numbers and in one picture.

`python -m moebius_lab.evidence.evaluation` fills every picture of `demo/heldout/`, none of whose source files was trained
on, with several seeds, and writes `evaluation.json` and a contact sheet. The fill starts from noise, not from the picture: the
truth inside the hole is never seen. Next to it stands what a user would take instead: PatchMatch, and OpenCV's two methods.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .. import LabError, errors
from ..config import BASELINES, CONDITIONAL_IDS, DEMO, FASTEST
from ..inpainting.backends import Backend, TorchBackend
from ..inpainting.imaging import feather, is_hole, mask_to_hole, mask_to_latent, to_unit_range
from ..inpainting.loop import Settings, inpaint, preset
from ..inpainting.picture_files import read_image, read_mask
from ..model.checkpoint import DEMO_FOLDER, SHIPPED, load_checkpoint, load_vae, presets_of
from ..model.sampler import alphas_cumprod
from ..model.unet import MoebiusNet
from .baselines import navier_stokes_fill, patchmatch_fill, telea_fill
from .measures import MEASURES, measures, texture_error, texture_ratio
from .perceptual import PerceptualDistance

HELD_OUT_FOLDER = DEMO_FOLDER / "heldout"
BORDER_TIMESTEPS = (300, 600, 900)  # at which the predicted noise is compared with the true one
HOLE_TIMESTEPS = (100, 300, 500, 700, 900)  # at which it is compared in the hole
SEEDS = (0, 1, 2)  # of the fills whose measures are averaged
GREYED = (
    "brick-wall2",
    "garden-rock",
    "greatWallofChina",
    "paving_001",
)  # held-out pictures that are filled without their colours too
METHODS = ("ours", "patchmatch", "telea", "navier_stokes")


def exact_device(name: str) -> torch.device:
    """The device of a command's `--device`: "cpu", "cuda", or one of several cards as in "cuda:1".

    A card then computes convolutions and matrix products in float32, where PyTorch would take TF32 with its ten bits.

    Raises:
        LabError: another name, or a card that PyTorch does not find.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise LabError(f"--device takes cpu, cuda, or one of several cards as in cuda:1, not {name!r}")
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            cards = f"only cuda:0 to cuda:{found - 1}" if found else "no card"
            raise LabError(
                f"PyTorch finds {cards} here, not {name}: leave out --device to compute on the CPU, or install a driver "
                "and a PyTorch for CUDA"
            )
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def demo_backend(denoiser: str | Path = "demo", device: str | torch.device = "cpu") -> TorchBackend:
    """Shipped weights of the demo network in PyTorch, by name, or another file of its denoiser, with its autoencoder."""
    return TorchBackend(load_checkpoint(denoiser, DEMO).to(device), load_vae("demo", DEMO).to(device))


def held_out_pairs(folder: Path = HELD_OUT_FOLDER) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (picture uint8 (256, 256, 3), mask uint8 (256, 256))} of a folder of NAME.webp and NAME_mask.png."""
    return {
        file.stem: (read_image(file), read_mask(file.with_name(f"{file.stem}_mask.png")))
        for file in sorted(folder.glob("*.webp"))
    }


def chroma(filled: np.ndarray, hole: np.ndarray) -> float:
    """Root mean square of the chroma (YCrCb) in the hole, in levels: 0 is grey."""
    colour = cv2.cvtColor(filled, cv2.COLOR_RGB2YCrCb)[hole][:, 1:].astype(float) - 128
    return float(np.sqrt((colour**2).sum(1).mean()))


def greyed(picture: np.ndarray) -> np.ndarray:
    """The picture without its colours."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def evaluate_pair(
    backend: Backend,
    picture: np.ndarray,
    mask: np.ndarray,
    settings: Settings,
    seeds: tuple[int, ...] = (0,),
    distance: PerceptualDistance | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Fill one hole with the network and with what a user would take instead.

    Args:
        backend: the network.
        picture, mask: uint8 (H, W, 3) and (H, W).
        settings: of the network's fills, except for the seed.
        seeds: the measures of the network's fills are means over these.
        distance: measures how far a fill looks from the truth; with it PatchMatch is tried too.

    Returns:
        {method: measures} and {method: filled picture}, that of the first seed.
    """
    hole, core = feather(mask) > 0, is_hole(mask)  # every pixel that pasting may change, and the hole itself
    fills = [inpaint(backend, picture, mask, replace(settings, seed=seed)) for seed in seeds]
    filled = {
        "ours": fills[0],
        "telea": telea_fill(picture, hole),
        "navier_stokes": navier_stokes_fill(picture, hole),
    }
    if distance is not None:
        filled["patchmatch"] = patchmatch_fill(picture, hole)
    rows = {method: measures(result, picture, core, distance) for method, result in filled.items()}
    every = [rows["ours"], *(measures(fill, picture, core, distance) for fill in fills[1:])]
    rows["ours"] = {key: round(float(np.mean([row[key] for row in every])), 4) for key in rows["ours"]}
    return rows, filled


@torch.no_grad()
def reconstruction_psnr(backend: Backend, picture: np.ndarray) -> float:
    """PSNR of encoding and decoding one picture, dB: the upper end of what any fill can reach."""
    x = to_unit_range(picture)
    mean, _ = backend.encode(x)
    y = backend.decode(mean).clamp(-1, 1)
    return float(-10 * torch.log10((x - y).pow(2).mean() / 4))


def noise_errors(
    network: MoebiusNet, latents: Tensor, mask: Tensor, masked: Tensor, timesteps: Sequence[int], seed: int
) -> Iterator[Tensor]:
    """Squared error of the predicted noise (B, 4, s, s), on the CPU, at each of some timesteps; arguments as of `border_error`."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    generator, schedule = torch.Generator().manual_seed(seed), alphas_cumprod().float()
    ids = torch.tensor(CONDITIONAL_IDS).expand(len(latents), -1)
    for timestep in timesteps:
        noise = torch.randn(latents.shape, generator=generator)
        noisy = schedule[timestep].sqrt() * latents + (1 - schedule[timestep]).sqrt() * noise
        inputs = torch.cat([noisy, mask, masked], 1), torch.full((len(latents),), float(timestep)), ids
        predicted = network(*(x.to(device) for x in inputs)).cpu()
        yield (predicted - noise) ** 2


@torch.inference_mode()
def border_error(
    network: MoebiusNet, latents: Tensor, mask: Tensor, masked: Tensor, seed: int = 0
) -> dict[str, list[float]]:
    """Squared error of the predicted noise, a latent channel each, along every side of the window and inside it.

    Only cells outside the hole count, where the answer is given: a side that is much worse than the inside is a fault of
    the network, not a hard picture.

    Args:
        network: in evaluation mode, on any device; all else is on the CPU.
        latents: (B, 4, s, s), scaled.
        mask: (B, 1, s, s), 1 in the hole.
        masked: (B, 4, s, s), scaled latents of the pictures without what is in the hole.
        seed: of the noise, drawn anew at each of `BORDER_TIMESTEPS`.

    Returns:
        {"inside", "top", "bottom", "left", "right": [four means]}.
    """
    known = 1 - F.max_pool2d(mask, 3, 1, 1)  # a cell next to the hole may hold some of it
    total = torch.zeros(latents.shape[1:])
    for error in noise_errors(network, latents, mask, masked, BORDER_TIMESTEPS, seed):
        total += (error * known).sum(0) / len(BORDER_TIMESTEPS)
    count = known.sum(0)

    def mean(rows: slice, columns: slice) -> list[float]:
        return [round(float(v), 5) for v in total[:, rows, columns].sum((1, 2)) / count[:, rows, columns].sum()]

    every, first, last, inner = slice(None), slice(0, 1), slice(-1, None), slice(1, -1)
    sides = {
        "inside": (inner, inner),
        "top": (first, every),
        "bottom": (last, every),
        "left": (every, first),
        "right": (every, last),
    }
    return {name: mean(*cells) for name, cells in sides.items()}


def worst_border_ratio(errors: dict[str, list[float]]) -> float:
    """The largest error on a side over that inside, same channel; near 1 where the border is no worse."""
    return max(e / i for name, side in errors.items() if name != "inside" for e, i in zip(side, errors["inside"]))


@torch.inference_mode()
def hole_error(network: MoebiusNet, latents: Tensor, mask: Tensor, masked: Tensor, seed: int = 0) -> dict[str, float]:
    """Mean squared error of the predicted noise in the hole, by timestep; arguments as of `border_error`.

    It is what training makes small, on pictures that were not trained on: where it rises while the loss falls, the network
    learns its pictures by heart.
    """
    numbers = latents.shape[1] * mask.sum()
    errors = noise_errors(network, latents, mask, masked, HOLE_TIMESTEPS, seed)
    return {str(at): round(float((error * mask).sum() / numbers), 4) for at, error in zip(HOLE_TIMESTEPS, errors)}


def contact_sheet(rows: list[tuple[str, list[np.ndarray]]], titles: tuple[str, ...]) -> Image.Image:
    """Pictures in rows with the column titles above and the row's name below each row."""
    side, gap, line = rows[0][1][0].shape[0], 4, 16
    sheet = Image.new("RGB", (len(titles) * (side + gap), line + len(rows) * (side + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (side + gap) + 4, 2), title, fill="black")
    for i, (name, pictures) in enumerate(rows):
        y = line + i * (side + line)
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (column * (side + gap), y))
        draw.text((4, y + side + 1), name, fill="black")
    return sheet


SHEET_TITLES = {"ours": "ours"} | {name: BASELINES[name] for name in ("patchmatch", "telea")}


def held_out_latents(
    backend: TorchBackend, pairs: dict[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of held-out pictures with their own holes: what `border_error` and `hole_error` take."""
    rows = []
    for picture, mask in pairs.values():
        x, hole = to_unit_range(picture), mask_to_hole(mask)
        rows.append((backend.encode(x)[0], mask_to_latent(hole), backend.encode(x * (1 - hole))[0]))
    latents, holes, masked = (torch.cat(column) for column in zip(*rows))
    scale = backend.config.vae.scaling_factor
    return scale * latents, holes, scale * masked


def evaluate(
    backend: TorchBackend,
    pairs: dict[str, tuple[np.ndarray, np.ndarray]],
    settings: Settings,
    seeds: tuple[int, ...] = (0,),
    distance: PerceptualDistance | None = None,
) -> tuple[dict, Image.Image]:
    """Evaluate every pair: the report that `evaluation.json` keeps, and the contact sheet. Arguments as of `evaluate_pair`."""
    report: dict = {
        "settings": {
            name: getattr(settings, name) for name in ("solver", "steps", "strength", "guidance", "init", "harmonize")
        },
        "evaluations": settings.evaluations(),
        "seeds": list(seeds),
    }
    report["pictures"], rows = {}, []
    methods = [m for m in METHODS if m != "patchmatch" or distance is not None]
    shown_methods = [m for m in SHEET_TITLES if m in methods]
    for name, (picture, mask) in pairs.items():
        numbers, filled = evaluate_pair(backend, picture, mask, settings, seeds, distance)
        report["pictures"][name] = numbers | {
            "truth_texture": round(texture_ratio(picture, is_hole(mask)), 4),  # far from 1 where the hole hid something else
            "reconstruction_psnr_db": round(reconstruction_psnr(backend, picture), 3),
        }
        shown = np.where(is_hole(mask)[..., None], 128, picture).astype(np.uint8)
        rows.append((name, [shown, np.repeat(mask[..., None], 3, 2), *(filled[m] for m in shown_methods), picture]))
        print(f"{name}: {numbers['ours']}", flush=True)
    every = list(report["pictures"].values())

    def mean(method: str, key: str) -> float:
        return round(float(np.mean([p[method][key] for p in every])), 3)

    report["mean"] = {m: {key: mean(m, key) for key in every[0][m]} for m in methods}
    report["mean"]["reconstruction_psnr_db"] = round(float(np.mean([p["reconstruction_psnr_db"] for p in every])), 3)
    report["mean"]["truth_texture_error"] = round(float(np.mean([texture_error(p["truth_texture"]) for p in every])), 3)
    report["texture_wins"] = sum(
        p["ours"]["texture_error"] < min(p["telea"]["texture_error"], p["navier_stokes"]["texture_error"]) for p in every
    )
    if distance is not None:
        report["wins_over_patchmatch"] = {
            key: sum((p["ours"][key] > p["patchmatch"][key]) == (key in ("psnr_db", "ssim")) for p in every)
            for key in MEASURES
            if key != "texture"
        }
    report["chroma_of_greyed"] = {
        name: round(chroma(inpaint(backend, greyed(picture), mask, settings), is_hole(mask)), 2)
        for name, (picture, mask) in pairs.items()
        if name in GREYED
    }
    report["count"] = len(pairs)
    latents = held_out_latents(backend, pairs)
    report["hole_error"] = hole_error(backend.net, *latents)
    report["border_error"] = border_error(backend.net, *latents)
    report["worst_border_ratio"] = round(worst_border_ratio(report["border_error"]), 2)
    return report, contact_sheet(rows, ("input", "hole", *(SHEET_TITLES[m] for m in shown_methods), "truth"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.evidence.evaluation", description=__doc__)
    parser.add_argument("--sheet", type=Path, default=Path("build/evaluation.png"), help="where the contact sheet goes")
    words = "shipped weights to look at, with the release's steps; distilled ones with their own (default: demo)"
    parser.add_argument("--weights", choices=tuple(SHIPPED), default="demo", help=words)
    parser.add_argument("--denoiser", type=Path, help="a file of a denoiser's weights instead")
    parser.add_argument("--report", type=Path, help="default: evaluation.json next to the weights")
    parser.add_argument("--guidance", type=float, help="instead of the usual one")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--device", default="cpu", help="where the network fills: cpu, cuda or cuda:N (default: %(default)s)"
    )
    args = parser.parse_args()
    device = exact_device(args.device)
    presets = presets_of(args.weights)
    settings = preset("as-released", init="noise") if "as-released" in presets else preset(FASTEST, presets)
    if args.guidance is not None:
        settings = replace(settings, guidance=args.guidance)
    report, sheet = evaluate(
        demo_backend(args.denoiser or args.weights, device),
        held_out_pairs(),
        settings,
        tuple(args.seeds),
        PerceptualDistance(),
    )
    file = args.report or SHIPPED[args.weights] / "evaluation.json"
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.sheet)
    print(
        json.dumps(report["mean"], indent=1),
        f"of {report['count']} nearer than PatchMatch: {report['wins_over_patchmatch']}",
    )
    print(f"squared error of the noise in the hole, by timestep: {json.dumps(report['hole_error'])}")
    print(json.dumps(report["border_error"]), f"worst side over inside: {report['worst_border_ratio']}")
    return 0


if __name__ == "__main__":
    errors.leave(errors.run(main))
