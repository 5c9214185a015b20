"""Held-out photographs: how well the demo checkpoint fills, in numbers and in one picture.

`python -m moebius_lab.training.evaluate` fills every picture of `demo/heldout/`, none of whose source files was trained
on, and writes `evaluation.json` and a contact sheet. The fill starts from noise, not from the picture: the truth inside
the hole is never seen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage.metrics import structural_similarity

from ..backends import Backend, TorchBackend
from ..checkpoint import load_checkpoint, load_vae
from ..config import DEMO
from ..imaging import feather, is_hole, read_image, read_mask, to_unit_range
from ..inpaint import Settings, inpaint

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
HELD_OUT_FOLDER = DEMO_FOLDER / "heldout"
OPENCV_RADIUS = 5  # px, the neighbourhood that Telea and Navier-Stokes look at


def demo_backend() -> Backend:
    """The shipped demo checkpoint in PyTorch on the CPU."""
    return TorchBackend(load_checkpoint(DEMO_FOLDER / "denoiser.safetensors", DEMO), load_vae(DEMO_FOLDER / "vae.safetensors", DEMO))


def held_out_pairs(folder: Path = HELD_OUT_FOLDER) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (picture uint8 (256, 256, 3), mask uint8 (256, 256))} of a folder of NAME.webp and NAME_mask.png."""
    return {
        file.stem: (read_image(file), read_mask(file.with_name(f"{file.stem}_mask.png"))) for file in sorted(folder.glob("*.webp"))
    }


def hole_psnr(filled: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Peak signal-to-noise ratio over the hole's pixels, dB; both pictures uint8 (H, W, 3), hole bool (H, W)."""
    error = np.mean((filled[hole].astype(float) - truth[hole].astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def hole_ssim(filled: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Structural similarity (scikit-image, 7 px windows), averaged over the hole's pixels; 1 is equal."""
    _, similarity = structural_similarity(filled, truth, channel_axis=2, full=True)
    return float(similarity[hole].mean())


def texture_ratio(filled: np.ndarray, hole: np.ndarray, ring: int = 24) -> float:
    """Laplacian energy in the hole over that of a ring of `ring` px around it: 1 is equal texture, 0 is smooth.

    Pixels within 4 px of the hole's edge count for neither side, so that a seam is not taken for texture.
    """
    grey = cv2.cvtColor(filled, cv2.COLOR_RGB2GRAY).astype(np.float32)
    energy = cv2.Laplacian(grey, cv2.CV_32F) ** 2
    area = hole.astype(np.uint8)
    inside = cv2.erode(area, np.ones((9, 9), np.uint8)) > 0
    if not inside.any():
        inside = hole
    near = cv2.dilate(area, np.ones((9, 9), np.uint8)) > 0
    around = (cv2.dilate(area, np.ones((2 * ring + 1, 2 * ring + 1), np.uint8)) > 0) & ~near
    return float(energy[inside].mean() / (energy[around].mean() + 1e-3))


def texture_error(ratio: float) -> float:
    """How far a texture ratio is from 1, symmetric in too little and too much: |log2 ratio|."""
    return float(abs(np.log2(max(ratio, 1e-6))))


def evaluate_pair(backend: Backend, picture: np.ndarray, mask: np.ndarray, settings: Settings) -> tuple[dict, dict[str, np.ndarray]]:
    """Fill one hole with the network and with OpenCV's two methods.

    Returns:
        {method: {psnr_db, ssim, texture, texture_error}} and {method: filled picture}.
    """
    hole = feather(mask) > 0  # every pixel that pasting may change
    area = hole.astype(np.uint8)
    filled = {
        "ours": inpaint(backend, picture, mask, settings),
        "telea": cv2.inpaint(picture, area, OPENCV_RADIUS, cv2.INPAINT_TELEA),
        "navier_stokes": cv2.inpaint(picture, area, OPENCV_RADIUS, cv2.INPAINT_NS),
    }
    core = is_hole(mask)
    rows = {}
    for method, result in filled.items():
        ratio = texture_ratio(result, core)
        rows[method] = {
            "psnr_db": round(hole_psnr(result, picture, core), 3),
            "ssim": round(hole_ssim(result, picture, core), 4),
            "texture": round(ratio, 4),
            "texture_error": round(texture_error(ratio), 4),
        }
    return rows, filled


@torch.no_grad()
def reconstruction_psnr(backend: Backend, picture: np.ndarray) -> float:
    """PSNR of encoding and decoding one picture, dB: the upper end of what any fill can reach."""
    x = to_unit_range(picture)
    mean, _ = backend.encode(x)
    y = backend.decode(mean).clamp(-1, 1)
    return float(-10 * torch.log10((x - y).pow(2).mean() / 4))


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


SHEET_TITLES = ("input", "hole", "ours", "OpenCV Telea", "truth")


def evaluate(backend: Backend, pairs: dict[str, tuple[np.ndarray, np.ndarray]], settings: Settings) -> tuple[dict, Image.Image]:
    """Evaluate every pair: the report that `evaluation.json` keeps, and the contact sheet."""
    report: dict = {"settings": {"steps": settings.steps, "guidance": settings.guidance, "init": settings.init, "seed": settings.seed}}
    report["pictures"], rows = {}, []
    for name, (picture, mask) in pairs.items():
        numbers, filled = evaluate_pair(backend, picture, mask, settings)
        report["pictures"][name] = numbers | {
            "truth_texture": round(texture_ratio(picture, is_hole(mask)), 4),  # far from 1 where the hole hid something else
            "reconstruction_psnr_db": round(reconstruction_psnr(backend, picture), 3),
        }
        shown = np.where(is_hole(mask)[..., None], 128, picture).astype(np.uint8)
        rows.append((name, [shown, np.repeat(mask[..., None], 3, 2), filled["ours"], filled["telea"], picture]))
    every = report["pictures"].values()

    def mean(method: str, key: str) -> float:
        return round(float(np.mean([p[method][key] for p in every])), 3)

    report["mean"] = {m: {k: mean(m, k) for k in ("psnr_db", "ssim", "texture", "texture_error")} for m in ("ours", "telea", "navier_stokes")}
    report["mean"]["reconstruction_psnr_db"] = round(float(np.mean([p["reconstruction_psnr_db"] for p in every])), 3)
    report["texture_wins"] = sum(
        p["ours"]["texture_error"] < min(p["telea"]["texture_error"], p["navier_stokes"]["texture_error"]) for p in every
    )
    report["count"] = len(pairs)
    return report, contact_sheet(rows, SHEET_TITLES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.training.evaluate", description=__doc__)
    parser.add_argument("--sheet", type=Path, default=Path("build/evaluation.png"), help="where the contact sheet goes")
    parser.add_argument("--report", type=Path, default=DEMO_FOLDER / "evaluation.json")
    parser.add_argument("--guidance", type=float, default=Settings.guidance)
    args = parser.parse_args()
    report, sheet = evaluate(demo_backend(), held_out_pairs(), Settings(guidance=args.guidance, init="noise"))
    args.report.write_text(json.dumps(report, indent=1) + "\n")
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.sheet)
    print(json.dumps(report["mean"], indent=1), f"texture better than both: {report['texture_wins']} of {report['count']}")


if __name__ == "__main__":
    main()
