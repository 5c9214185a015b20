"""The shipped demo checkpoint, its photographs and its evaluation."""

import json

import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from moebius_lab import LabError, report
from moebius_lab.checkpoint import make_vae
from moebius_lab.config import DEMO
from moebius_lab.imaging import is_hole
from moebius_lab.inpaint import Settings
from moebius_lab.training import card, data
from moebius_lab.training.denoiser import alphas_cumprod
from moebius_lab.training.evaluate import (
    DEMO_FOLDER,
    border_error,
    contact_sheet,
    demo_backend,
    evaluate_pair,
    held_out_pairs,
    hole_psnr,
    reconstruction_psnr,
    texture_ratio,
    worst_border_ratio,
)
from moebius_lab.unet import MoebiusNet


@pytest.mark.parametrize("name, build", [("denoiser", lambda: MoebiusNet(DEMO)), ("vae", lambda: make_vae(DEMO))])
def test_weights_load_strictly_and_are_finite_half_precision(name, build):
    state = load_file(DEMO_FOLDER / f"{name}.safetensors")
    assert all(v.dtype == torch.float16 and torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
    build().load_state_dict(state, strict=True)


def test_weights_are_small_enough_to_ship():
    assert sum((DEMO_FOLDER / f"{n}.safetensors").stat().st_size for n in ("denoiser", "vae")) < 28e6


def test_scaling_factor_is_the_trained_one():
    log = json.loads((DEMO_FOLDER / "training_log.json").read_text(encoding="utf-8"))
    assert DEMO.vae.scaling_factor == log["vae"]["scaling_factor"]
    assert abs(1 / log["vae"]["latent_std"] - DEMO.vae.scaling_factor) < 1e-3


def test_training_log_shows_a_falling_loss():
    log = json.loads((DEMO_FOLDER / "training_log.json").read_text(encoding="utf-8"))
    for part in ("vae", "denoiser"):
        losses = [loss for _, loss in log[part]["curve"]]
        assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    assert log["hardware"] and log["seed"] and log["denoiser"]["seconds"] > 0


def test_photographs_are_small_credited_and_have_a_hole():
    text = card.CARD.read_text(encoding="utf-8")
    photographs = sorted((DEMO_FOLDER / "photos").glob("*.jpg"))
    assert 3 <= len(photographs) <= 6
    for file in photographs:
        assert file.stat().st_size <= 300_000
        credit = next(line for line in text.splitlines() if f"`{file.name}`" in line)
        assert "CC0" in credit or "CC-BY-" in credit and "SA" not in credit
        mask = np.asarray(Image.open(file.with_name(f"{file.stem}_mask.png")))
        assert mask.shape == Image.open(file).size[::-1] and 0.001 < is_hole(mask).mean() < 0.2


def test_held_out_pictures_are_small_and_their_sources_were_not_trained_on():
    sources = json.loads(data.SOURCES_FILE.read_text(encoding="utf-8"))
    held_out = {s["file"].rpartition("/")[2].partition("_by_")[0].partition(".")[0] for s in sources if s["use"] == "held-out"}
    pairs = held_out_pairs()
    assert len(pairs) >= 10 and set(pairs) <= held_out
    text = card.CARD.read_text(encoding="utf-8")
    for name, (picture, mask) in pairs.items():
        assert picture.shape == (256, 256, 3) and mask.shape == (256, 256)
        assert (DEMO_FOLDER / "heldout" / f"{name}.webp").stat().st_size <= 40_000
        assert f"`{name}`" in text


def test_evaluation_counts_its_own_numbers():
    report = json.loads((DEMO_FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    every = report["pictures"].values()
    wins = sum(p["ours"]["texture_error"] < min(p["telea"]["texture_error"], p["navier_stokes"]["texture_error"]) for p in every)
    assert report["texture_wins"] == wins and report["count"] == len(every) >= 10
    assert report["mean"]["ours"]["psnr_db"] == pytest.approx(np.mean([p["ours"]["psnr_db"] for p in every]), abs=1e-3)


def test_fills_reach_what_the_model_card_says():
    report = json.loads((DEMO_FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    assert report["mean"]["ours"]["psnr_db"] >= report["mean"]["telea"]["psnr_db"] - 2.5
    assert report["mean"]["reconstruction_psnr_db"] >= 25
    assert report["texture_wins"] >= 0.9 * report["count"]
    sides = [error for side, errors in report["border_error"].items() if side != "inside" for error in errors]
    assert max(sides) < 0.06  # 0.98 where the outermost 8 px came out wrong: a row's noise was never predicted
    text = card.CARD.read_text(encoding="utf-8")
    assert f"on {report['texture_wins']} of {report['count']}" in text and f"{report['mean']['ours']['psnr_db']:.2f}" in text


def test_model_card_is_what_its_command_writes():
    text = card.CARD.read_text(encoding="utf-8")
    report, log = card.read_json("evaluation.json"), card.read_json("training_log.json")
    assert card.rewritten(text, report, log) == text
    other = card.rewritten(text, report | {"texture_wins": 3, "worst_border_ratio": 40.0}, log)
    assert "on 3 of" in other and "40.0 times" in other
    with pytest.raises(LabError, match="marks of its training"):
        card.rewritten(text.replace("<!-- end of training -->", ""), report, log)


class _BlindInOneRow(torch.nn.Module):
    """Knows the noise of `given`'s latents, but for the last row of channel 1."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given, self.schedule = given, alphas_cumprod().float()

    def forward(self, x, t, ids):
        alpha = self.schedule[int(t[0])]
        noise = (x[:, :4] - alpha.sqrt() * self.given) / (1 - alpha).sqrt() + 0.1
        noise[:, 1, -1] = 0
        return noise


def test_border_error_finds_the_row_and_channel_that_are_not_seen():
    torch.manual_seed(0)
    latents, mask = torch.randn(3, 4, 32, 32), torch.zeros(3, 1, 32, 32)
    mask[:, :, 10:20, :4] = 1
    errors = border_error(_BlindInOneRow(latents), latents, mask, latents * (1 - mask))
    assert errors["inside"] == pytest.approx([0.01] * 4, abs=1e-4)
    assert errors["bottom"][1] == pytest.approx(1, abs=0.3) and errors["bottom"][0] == pytest.approx(0.01, abs=1e-4)
    assert errors["top"] == pytest.approx([0.01] * 4, abs=1e-4)
    assert worst_border_ratio(errors) == pytest.approx(errors["bottom"][1] / errors["inside"][1], rel=1e-3)


@pytest.mark.slow
def test_a_fill_of_few_steps_keeps_the_picture_and_its_colours():
    picture, mask = held_out_pairs()["redPyramid"]
    backend = demo_backend()
    rows, filled = evaluate_pair(backend, picture, mask, Settings(steps=8, init="noise"))
    hole = is_hole(mask)
    cast = filled["ours"][hole].astype(float).mean(0) - picture[hole].astype(float).mean(0)
    assert np.abs(cast).max() < 25  # levels: no colour cast
    assert rows["ours"]["psnr_db"] > 14
    assert reconstruction_psnr(backend, picture) > 30


def test_measures_know_equal_smooth_and_noisy():
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 190, (96, 96, 3), dtype=np.uint8)
    hole = np.zeros((96, 96), bool)
    hole[32:64, 32:64] = True
    smooth, noisy = picture.copy(), picture.copy()
    smooth[hole] = 125
    noisy[hole] = rng.integers(0, 2, (int(hole.sum()), 3)) * 255
    assert hole_psnr(picture, picture, hole) > 100 > hole_psnr(smooth, picture, hole)
    assert texture_ratio(smooth, hole) < 0.1 < 0.7 < texture_ratio(picture, hole) < 1.4 < texture_ratio(noisy, hole)


@pytest.mark.slow
def test_the_notebook_runs_in_its_smoke_form(tmp_path):
    source = report.SOURCE_FOLDER / "A_train_demo.ipynb"
    executed = tmp_path / "A.ipynb"
    papermill.execute_notebook(
        str(source), str(executed), {"smoke": True, "evaluated": 1, "output_dir": str(tmp_path)},
        kernel_name="python3", cwd=str(source.parent), progress_bar=False,
    )  # fmt: skip
    assert Image.open(tmp_path / "contact_sheet.png").width == 5 * 260
    pictures = [o for cell in nbformat.read(executed, 4).cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 5  # tiles, holes, curves, first kernels, contact sheet


def test_contact_sheet_holds_every_picture():
    red, blue = np.full((8, 8, 3), (255, 0, 0), np.uint8), np.full((8, 8, 3), (0, 0, 255), np.uint8)
    sheet = np.asarray(contact_sheet([("a", [red, blue])], ("x", "y")))
    assert (sheet == (255, 0, 0)).all(-1).sum() == (sheet == (0, 0, 255)).all(-1).sum() == 64
