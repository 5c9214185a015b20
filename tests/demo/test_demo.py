"""The shipped demo checkpoint, its photographs and its evaluation."""

import json
import re

import cv2
import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from moebius_lab import LabError
from moebius_lab.config import DEMO
from moebius_lab.evidence.baselines import patchmatch_fill
from moebius_lab.evidence.evaluation import (
    DEMO_FOLDER,
    GREYED,
    MEASURES,
    border_error,
    chroma,
    contact_sheet,
    demo_backend,
    evaluate,
    evaluate_pair,
    exact_device,
    greyed,
    held_out_latents,
    held_out_pairs,
    hole_error,
    reconstruction_psnr,
    worst_border_ratio,
)
from moebius_lab.evidence.measures import hole_psnr, measures, texture_ratio
from moebius_lab.evidence.perceptual import PerceptualDistance
from moebius_lab.inpainting.imaging import is_hole, to_unit_range
from moebius_lab.inpainting.loop import Settings
from moebius_lab.model.checkpoint import SHIPPED, make_vae
from moebius_lab.model.sampler import alphas_cumprod
from moebius_lab.model.unet import MoebiusNet
from moebius_lab.notebook import report
from moebius_lab.training import card, data


@pytest.mark.parametrize("name, build", [("denoiser", lambda: MoebiusNet(DEMO)), ("vae", lambda: make_vae(DEMO))])
def test_weights_load_strictly_and_are_finite_half_precision(name, build):
    state = load_file(DEMO_FOLDER / f"{name}.safetensors")
    assert all(v.dtype == torch.float16 and torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
    build().load_state_dict(state, strict=True)


def test_weights_are_small_enough_to_ship():
    assert sum((DEMO_FOLDER / f"{n}.safetensors").stat().st_size for n in ("denoiser", "vae")) < 28e6


@pytest.fixture(scope="module")
def backend():
    return demo_backend()


@pytest.fixture(scope="module")
def some(backend) -> dict:
    """Four of the held-out pairs."""
    return {name: pair for name, pair in held_out_pairs().items() if name in ("aitzgorri", "bee", "bison", "redPyramid")}


def test_scaled_latents_deviate_by_one(backend, some):
    latents = torch.cat([backend.encode(to_unit_range(picture))[0] for picture, _ in some.values()])
    assert float((latents * DEMO.vae.scaling_factor).std()) == pytest.approx(1, abs=0.15)
    log = json.loads((DEMO_FOLDER / "training_log.json").read_text(encoding="utf-8"))
    assert float(latents.std()) == pytest.approx(log["vae"]["latent_std"], rel=0.15)


def test_the_shipped_denoiser_predicts_noise_as_well_as_its_log_says(backend, some):
    errors = border_error(backend.net, *held_out_latents(backend, some))
    log = json.loads((DEMO_FOLDER / "training_log.json").read_text(encoding="utf-8"))
    first, last = (
        np.mean([loss for _, loss in part]) for part in (log["denoiser"]["curve"][:3], log["denoiser"]["curve"][-3:])
    )
    assert np.mean(errors["inside"]) < 1.5 * last < 0.5 * first
    sides = [error for side, channels in errors.items() if side != "inside" for error in channels]
    assert max(sides) < 0.06  # 0.98 where the outermost 8 px came out wrong: a row's noise was never predicted


def test_photographs_are_small_credited_and_have_a_hole():
    text = card.CARD.read_text(encoding="utf-8")
    photographs = sorted((DEMO_FOLDER / "photos").glob("*.jpg"))
    assert 3 <= len(photographs) <= 6
    for file in photographs:
        assert file.stat().st_size <= 300_000
        credit = next(line for line in text.splitlines() if f"`{file.name}`" in line)
        assert re.search(r"\| (CC0-1\.0|CC-BY-[\d.]+|Public domain) \|", credit), credit
        mask = np.asarray(Image.open(file.with_name(f"{file.stem}_mask.png")))
        assert mask.shape == Image.open(file).size[::-1] and 0.001 < is_hole(mask).mean() < 0.2


def test_held_out_pictures_are_small_and_their_sources_were_not_trained_on():
    sources = json.loads(data.SOURCES_FILE.read_text(encoding="utf-8"))
    held_out = {
        s["file"].rpartition("/")[2].partition("_by_")[0].partition(".")[0] for s in sources if s["use"] == "held-out"
    }
    pairs = held_out_pairs()
    assert len(pairs) >= 32 and set(pairs) <= held_out
    text = card.CARD.read_text(encoding="utf-8")
    for name, (picture, mask) in pairs.items():
        assert picture.shape == (256, 256, 3) and mask.shape == (256, 256)
        assert (DEMO_FOLDER / "heldout" / f"{name}.webp").stat().st_size <= 40_000
        assert f"`{name}`" in text


def test_an_evaluation_counts_what_it_measures(backend, some):
    report, sheet = evaluate(backend, dict(list(some.items())[:2]), Settings(steps=2, init="noise"))
    first, second = report["pictures"].values()
    wins = sum(
        p["ours"]["texture_error"] < min(p["telea"]["texture_error"], p["navier_stokes"]["texture_error"])
        for p in (first, second)
    )
    assert report["texture_wins"] == wins and report["count"] == 2 and sheet.height > 2 * 256
    for method in ("ours", "telea", "navier_stokes"):
        halfway = (first[method]["psnr_db"] + second[method]["psnr_db"]) / 2
        assert report["mean"][method]["psnr_db"] == pytest.approx(halfway, abs=1e-3)
    assert first["ours"] != second["ours"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", SHIPPED)
def test_the_committed_evaluation_is_what_the_shipped_weights_give(weights, some):
    backend, report = demo_backend(weights), card.read_json("evaluation.json", SHIPPED[weights])
    assert report["pictures"].keys() == held_out_pairs().keys()
    for name, (picture, mask) in some.items():
        told = report["pictures"][name]
        assert reconstruction_psnr(backend, picture) == pytest.approx(told["reconstruction_psnr_db"], abs=0.1)
        if name in ("bee", "redPyramid"):
            rows, _ = evaluate_pair(backend, picture, mask, Settings(**report["settings"]), tuple(report["seeds"]))
            for method, numbers in rows.items():
                assert numbers["psnr_db"] == pytest.approx(told[method]["psnr_db"], abs=1), (name, method)


def test_the_model_card_says_what_was_measured():
    report, text = card.read_json("evaluation.json"), card.CARD.read_text(encoding="utf-8")
    assert report["texture_wins"] >= card.TEXTURE_AIM * report["count"]
    assert f"on {report['texture_wins']} of {report['count']}" in text and f"{report['mean']['ours']['psnr_db']:.2f}" in text
    for found in (report, card.read_json("evaluation.json", SHIPPED["demo-fast"])):
        nearer, pictures = found["wins_over_patchmatch"], found["pictures"].values()
        assert nearer["texture_error"] == sum(
            p["ours"]["texture_error"] < p["patchmatch"]["texture_error"] for p in pictures
        )
        worse = found["count"] - nearer["texture_error"]
        assert re.search(
            rf"SSIM on {nearer['ssim']}; texture on {nearer['texture_error']} \(PatchMatch's( is nearer)? on {worse}\)", text
        )
    assert (
        f"{report['evaluations']} evaluations ({report['evaluations'] // 2} of {report['settings']['steps']} DDIM steps"
        in text
    )


def test_model_card_is_what_its_command_writes():
    text = card.CARD.read_text(encoding="utf-8")
    report, log, measured = (card.read_json(f"{name}.json") for name in ("evaluation", "training_log", "quality"))
    distilled = card.read_json("evaluation.json", SHIPPED["demo-fast"])
    assert card.rewritten(text, report, distilled, log, measured) == text
    other = card.rewritten(text, report | {"texture_wins": 3, "worst_border_ratio": 40.0}, distilled, log, measured)
    assert "on 3 of" in other and "40.0 times" in other
    with pytest.raises(LabError, match="marks of its training"):
        card.rewritten(text.replace("<!-- end of training -->", ""), report, distilled, log, measured)


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


def test_the_error_in_the_hole_is_of_the_hole_alone():
    torch.manual_seed(0)
    latents, mask = torch.randn(3, 4, 32, 32), torch.zeros(3, 1, 32, 32)
    mask[:, :, 10:20, :4] = 1
    found = hole_error(_BlindInOneRow(latents), latents, mask, latents * (1 - mask))
    assert list(found.values()) == pytest.approx([0.01] * len(found), abs=1e-4)  # its row is not in this hole
    mask[:, :, -1] = 1
    assert min(hole_error(_BlindInOneRow(latents), latents, mask, latents * (1 - mask)).values()) > 0.05


class _Elsewhere(torch.nn.Module):
    """Predicts no noise, and has its only weight on a device that has no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), device="meta"))

    def forward(self, *inputs):
        assert {x.device.type for x in inputs} == {"meta"}
        return torch.zeros(len(inputs[0]), 4, *inputs[0].shape[2:])


def test_errors_of_the_noise_are_measured_where_the_network_is():
    torch.manual_seed(0)
    latents, mask = torch.randn(3, 4, 32, 32), torch.zeros(3, 1, 32, 32)
    mask[:, :, 10:20, :12] = 1
    assert list(hole_error(_Elsewhere(), latents, mask, latents).values()) == pytest.approx([1] * 5, abs=0.15)
    assert border_error(_Elsewhere(), latents, mask, latents)["inside"] == pytest.approx([1] * 4, abs=0.1)


def test_a_device_that_is_not_there_is_refused_and_a_card_computes_in_float32(monkeypatch):
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    assert exact_device("cpu") == torch.device("cpu") and demo_backend().device == torch.device("cpu")
    for name in ("gpu", "mps", "meta", "cuda:", ""):
        with pytest.raises(LabError, match="--device takes cpu, cuda"):
            exact_device(name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(LabError, match="finds no card here, not cuda: leave out --device"):
        exact_device("cuda")
    assert torch.backends.cudnn.allow_tf32
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(LabError, match="only cuda:0 to cuda:1 here, not cuda:2"):
        exact_device("cuda:2")
    assert exact_device("cuda:1") == torch.device("cuda", 1)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
def test_a_fill_of_few_steps_keeps_the_picture_and_its_colours(backend, some):
    picture, mask = some["redPyramid"]
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


@pytest.fixture(scope="module")
def distance():
    return PerceptualDistance()


def test_perceptual_distance_grows_with_the_fault_and_looks_only_at_the_hole(distance):
    picture, mask = held_out_pairs()["sheep"]
    hole = is_hole(mask)
    outside, blurred, flat = picture.copy(), picture.copy(), picture.copy()
    rows = hole.any(1).argmax()
    outside[: max(0, rows - 64)] = 0
    blurred[hole] = cv2.GaussianBlur(picture, (0, 0), 2)[hole]
    flat[hole] = picture[hole].mean(0)
    near, far = distance.between(blurred, picture, hole), distance.between(flat, picture, hole)
    assert distance.between(picture, picture, hole) == pytest.approx(0, abs=1e-5) and 0.3 < near < far < 10
    assert distance.between(outside, picture, hole) < 0.3 * near


def test_chroma_of_a_grey_picture_is_none_and_of_a_colour_cast_its_strength():
    picture, mask = held_out_pairs()["paving_001"]
    hole = is_hole(mask)
    grey = greyed(picture)
    cast = grey.copy()
    cast[..., 0] = np.clip(cast[..., 0].astype(int) + 20, 0, 255)
    assert chroma(grey, hole) < 0.5 < 8 < chroma(cast, hole) < 25


def test_patchmatch_fills_only_the_hole_and_from_the_picture(distance):
    picture, mask = held_out_pairs()["paving_001"]
    hole = is_hole(mask)
    holed = picture.copy()
    holed[hole] = 255
    filled = patchmatch_fill(holed, hole)
    assert (filled[~hole] == picture[~hole]).all() and hole_psnr(filled, picture, hole) > hole_psnr(holed, picture, hole) + 3
    assert np.array_equal(filled, patchmatch_fill(holed, hole))  # the same seed
    row = measures(filled, picture, hole, distance)
    assert set(row) == set(MEASURES) and row["perceptual"] < measures(holed, picture, hole, distance)["perceptual"]


def test_report_says_how_it_stands_against_patchmatch():
    report = json.loads((DEMO_FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    every = report["pictures"].values()
    for key, wins in report["wins_over_patchmatch"].items():
        better = [p["ours"][key] > p["patchmatch"][key] for p in every]
        assert wins == (sum(better) if key in ("psnr_db", "ssim") else len(better) - sum(better)), key
    assert report["seeds"] and set(report["chroma_of_greyed"]) == set(GREYED)


@pytest.mark.slow
def test_the_notebook_runs_in_its_smoke_form(tmp_path):
    source = report.SOURCE_FOLDER / "A_train_demo.ipynb"
    executed = tmp_path / "A.ipynb"
    papermill.execute_notebook(
        str(source), str(executed), {"smoke": True, "evaluated": 1, "output_dir": str(tmp_path)},
        kernel_name="python3", cwd=str(source.parent), progress_bar=False,
    )  # fmt: skip
    assert Image.open(tmp_path / "contact_sheet.png").width == 5 * 260
    pictures = [
        o for cell in nbformat.read(executed, 4).cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 5  # tiles, holes, curves, first kernels, contact sheet


def test_contact_sheet_holds_every_picture():
    red, blue = np.full((8, 8, 3), (255, 0, 0), np.uint8), np.full((8, 8, 3), (0, 0, 255), np.uint8)
    sheet = np.asarray(contact_sheet([("a", [red, blue])], ("x", "y")))
    assert (sheet == (255, 0, 0)).all(-1).sum() == (sheet == (0, 0, 255)).all(-1).sum() == 64
