"""Evaluation of a folder of pictures: plans, a real cluster on this machine, runs that are killed, and what the rows say."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from damage import damages, spoil
from distributed import Client
from PIL import Image

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.config import BASELINES, FILLERS, MASK_KINDS, PRECISIONS
from moebius_lab.evidence import baselines
from moebius_lab.evidence.dataset import cluster, scripted, sheet, summary, work
from moebius_lab.evidence.dataset.evaluation import evaluate, make_plan, own_folder
from moebius_lab.evidence.dataset.plan import GIVEN, TRUTH, Case, Contender, Job, contenders, jobs
from moebius_lab.evidence.evaluation import HELD_OUT_FOLDER
from moebius_lab.page.driving import first_answer, running

BROKEN = ("cut.webp", "empty.jpg", "text.png")
BACKENDS = ("torch", "onnx:fp32", "onnx:int8")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three held-out photographs, one of them with its mask, and three files that are no pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("bee.webp", "bee_mask.png", "Cat.webp", "Owl.webp"):
        shutil.copy(HELD_OUT_FOLDER / name, folder)
    (folder / "cut.webp").write_bytes((HELD_OUT_FOLDER / "pig.webp").read_bytes()[:2000])
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def plan(tiny, pictures, tmp_path_factory):
    plan, _ = make_plan(tiny, pictures, tmp_path_factory.mktemp("none"), kinds=("thick",), squares=2, steps=2, batch=3)
    return plan


WHO = contenders(BACKENDS, ("dpm++2m",), ("telea", "patchmatch"))


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory) -> Path:
    """The run of a plain loop in this process."""
    folder = tmp_path_factory.mktemp("alone")
    ran = cluster.run(plan, WHO, folder, workers=0)
    assert ran.jobs == 20 and ran.holes == 60 and ran.workers == 0
    summary.write_summary(folder)
    return folder


def numbers(folder: Path) -> bytes:
    summary.write_summary(folder)
    return (folder / "rows.parquet").read_bytes()


# -- plans -------------------------------------------------------------------------------------------------------------


def test_every_name_has_what_opens_it():
    assert set(work.OPENERS) == set(FILLERS) and set(baselines.FILLS) == set(BASELINES)
    every = contenders([f"onnx:{form}" for form in PRECISIONS] + ["torch"], ("ddim", "unipc"), tuple(BASELINES), truth=True)
    assert [summary.contender_of(c.key) for c in every] == list(every)
    assert len({c.label for c in every}) == len(every) and every[-1].key == TRUTH


@pytest.mark.parametrize(
    ("backends", "names", "words"),
    [
        (["cuda"], [], "no backend 'cuda'; choose from torch"),
        (["onnx:int7"], [], "onnx has no form 'int7'"),
        (["torch:int8"], [], "torch has no form 'int8'"),
        (["torch"], ["gimp"], "no baseline 'gimp'"),
    ],
)
def test_contenders_that_there_are_not(backends, names, words):
    with pytest.raises(LabError, match=words):
        contenders(backends, ("ddim",), names)


def test_masks_are_no_pictures_and_every_case_is_in_one_job(plan):
    assert set(plan.names) == {"bee.webp", "Cat.webp", "Owl.webp", *BROKEN}
    found = jobs(plan, WHO[:2])
    assert len({job.name for job in found}) == len(found) == 8
    assert [case for job in found[:4] for case in job.cases] == plan.cases() and len(plan.cases()) == 12


def test_a_hole_and_its_noise_depend_on_picture_square_and_kind_alone(plan):
    case, everywhere = Case("bee.webp", 1, "thick"), dataclasses.replace(plan, batch=1, kinds=MASK_KINDS)
    picture, mask = work.load(plan, case)
    again = work.load(everywhere, case)
    assert np.array_equal(picture, again[0]) and np.array_equal(mask, again[1])
    assert picture.shape == (128, 128, 3) and 0.4 <= (mask > 0).mean() <= 0.5
    other = Case("bee.webp", 1, "box")
    assert np.array_equal(work.load(everywhere, other)[0], picture)  # every hole is on the same square
    assert not np.array_equal(work.load(everywhere, other)[1], mask)
    seeds = {plan.settings(c, case).seed for c in WHO[:3]}
    assert len(seeds) == 1 and seeds != {plan.settings(WHO[0], other).seed}
    assert not np.array_equal(work.load(dataclasses.replace(plan, seed=1), case)[1], mask)


def test_masks_of_a_folder_follow_their_square(plan, pictures):
    given = dataclasses.replace(plan, masks=str(pictures))
    assert {case.hole for case in given.cases()} == {GIVEN}
    picture, mask = work.load(given, Case("bee.webp", 0, GIVEN))
    whole = np.asarray(Image.open(pictures / "bee_mask.png").convert("L"))
    assert (mask > 0).mean() == pytest.approx((whole > 127).mean(), rel=0.1)
    with pytest.raises(LabError, match="Cat-mask.png: there is no such file"):
        work.load(given, Case("Cat.webp", 0, GIVEN))


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_a_plain_loop_and_a_lost_one_is_made_up_for(plan, alone, tmp_path):
    """One of the two is killed as soon as results come."""
    killed = []

    def kill_one(progress):
        if progress.done and not killed:
            workers = [p for p in children() if "spawn_main" in " ".join(p.cmdline())]
            killed.append(workers[0].pid)
            workers[0].kill()

    ran = cluster.run(plan, WHO, tmp_path, workers=2, on_progress=kill_one)
    assert killed and ran.workers == 2 and ran.lost == 1 and ran.jobs == 20
    assert numbers(tmp_path) == numbers(alone)
    rows = summary.read_rows(tmp_path)
    assert not rows.duplicated([*summary.CASE, "contender"]).any() and len(rows) == 60


@pytest.mark.slow
def test_a_cluster_that_exists_gives_the_same_bytes(plan, alone, tmp_path):
    """A scheduler and a worker started by Dask's own commands; before it is there, and for a card that it lacks, it is said."""
    dask = [sys.executable, "-m", "dask"]
    told, some = tmp_path / "scheduler.json", WHO[:2]
    with ExitStack() as started:
        at = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)]
        process = started.enter_context(running([*dask, "scheduler", *at], dict(os.environ)))
        address = first_answer("dask", process, lambda: json.loads(told.read_text(encoding="utf-8"))["address"])
        with pytest.raises(LabError, match=f"has no workers; start some with `dask worker {address}`"):
            cluster.run(plan, some, tmp_path / "out", scheduler=address)
        here = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
        started.enter_context(running([*dask, "worker", address, *here], dict(os.environ)))
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        on_a_card = contenders(("torch-cuda",), ("dpm++2m",), ())
        with pytest.raises(LabError, match="no worker of this cluster offers GPU"):
            cluster.run(plan, on_a_card, tmp_path / "card", scheduler=address)
        ran = cluster.run(plan, some, tmp_path / "out", scheduler=address)
    assert ran.workers == 1 and ran.lost == 0 and ran.jobs == 8
    for part in parts(tmp_path):
        same = alone / part.relative_to(tmp_path / "out")
        columns = [name for name in pq.read_schema(part).names if "seconds" not in name]
        assert pq.read_table(part, columns=columns).equals(pq.read_table(same, columns=columns))


def children():
    import psutil

    return psutil.Process().children(recursive=True)


COMMAND = ("--network", "tiny", "--weights", "deterministic", "--mask-kind", "thick", "--squares", "2", "--steps", "2",
           "--batch", "3", "--backends", *BACKENDS, "--baselines", "telea", "patchmatch")  # fmt: skip


@pytest.mark.slow
def test_a_command_that_is_killed_twice_goes_on_where_it_was(plan, alone, tiny, pictures, tmp_path, capsys):
    command = ["evaluate", str(pictures), "-o", str(tmp_path / "out"), "--graphs-dir", str(tiny.folder), *COMMAND]
    kept = [0]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-m", "moebius_lab", *command, "--workers", "0"],
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=tmp_path,
        )
        while len(parts(tmp_path)) < kept[-1] + 4 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate()[1]
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        kept.append(len(parts(tmp_path)))
    assert "ended from outside; what was finished is kept" in said and 8 <= kept[-1] < 20
    before = {path: path.stat().st_mtime_ns for path in parts(tmp_path)}
    assert main([*command, "--workers", "0"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(parts(tmp_path)) == 20
    assert numbers(tmp_path / "out") == numbers(alone)
    out = capsys.readouterr().out
    for name in BROKEN:
        assert f"left out: {name}:" in out
    assert "not comparable" in out and "PSNR in the hole" in out and "plain loop" in out
    assert Image.open(tmp_path / "out" / "worst.png").width > 5 * 128


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("out/parts/*/*.parquet"))


@pytest.mark.slow
@damages
def test_a_damaged_part_is_made_again(plan, alone, tmp_path, capsys, damage):
    folder = shutil.copytree(alone, tmp_path / "run")
    path = folder / jobs(plan, WHO)[-1].name
    spoil(path, damage)
    ran = cluster.run(plan, WHO, folder, workers=0)
    assert ran.jobs == 1 and str(path) in capsys.readouterr().err
    assert numbers(folder) == numbers(alone)


def test_a_disk_without_room_leaves_nothing_half_written(plan, alone, tmp_path):
    """A file that may not grow is what a full disk looks like from here."""
    import resource

    path = tmp_path / "part.parquet"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(OSError):
            cluster.write_part(path, work.do(plan, jobs(plan, WHO[3:4])[0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


def test_a_folder_with_another_evaluation_is_refused(plan, alone, tiny):
    with pytest.raises(LabError, match="differs in share; choose another folder"):
        cluster.run(dataclasses.replace(plan, share=(0.1, 0.2)), WHO, alone, workers=0)
    assert own_folder(plan, tiny) != own_folder(dataclasses.replace(plan, share=(0.1, 0.2)), tiny)
    added = contenders(("torch",), ("dpm++2m",), ("biharmonic",))
    assert {job.name for job in jobs(plan, added)} - {job.name for job in jobs(plan, WHO)}  # others may join it


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nothing://x", "no address"])
def test_a_scheduler_that_does_not_answer(plan, tmp_path, monkeypatch, address):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(LabError, match="no Dask scheduler answers"):
        cluster.run(plan, WHO, tmp_path, scheduler=address)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "1"], "dpm++2m needs at least 2 steps"),
        (["--solvers", "euler"], "no solver 'euler'; choose from ddim"),
        (["--share", "0.5", "0.4"], "--share must run from"),
        (["--mask-kind", "star"], "no kind of mask 'star'"),
        (["--masks", "nowhere"], "nowhere: there is no such folder"),
        (["--batch", "0"], "must be 1 or more"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(pictures, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", str(pictures), "-o", "out", "--network", "tiny", "--weights", "deterministic"]
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_without_pictures(tmp_path, tiny):
    for folder, words in ((tmp_path, "no pictures here"), (tmp_path / "none", "there is no such folder")):
        with pytest.raises(LabError, match=words):
            make_plan(tiny, folder, tmp_path)


# -- what the rows say -------------------------------------------------------------------------------------------------


def test_files_that_are_no_pictures_are_listed_and_the_rest_is_compared(alone):
    rows = summary.read_rows(alone)
    assert set(summary.unreadable(rows)["picture"]) == set(BROKEN) and len(summary.unreadable(rows)) == 3
    same = summary.compared(rows)
    assert len(same) == 6 * len(WHO) and set(same["picture"]) == {"bee.webp", "Cat.webp", "Owl.webp"}
    words = summary.answer(rows)
    assert "Over 6 holes in 3 pictures" in words and "3 pictures could not be used" in words and "faithful" in words


def test_differences_are_paired_with_the_original_of_the_same_solver(alone):
    rows = summary.read_rows(alone)
    found = summary.paired(rows)
    assert list(found.index.unique("label")) == ["ONNX Runtime, fp32, dpm++2m", "ONNX Runtime, int8, dpm++2m"]
    by_hand = []
    for name in ("bee.webp", "Cat.webp", "Owl.webp"):
        mine, original = (rows[(rows.picture == name) & (rows.contender == key)].psnr_db.mean() for key in
                          ("onnx-int8-dpm++2m", "torch-fp32-dpm++2m"))  # fmt: skip
        by_hand.append(mine - original)
    assert found.loc[("ONNX Runtime, int8, dpm++2m", "psnr_db"), "mean"] == pytest.approx(np.mean(by_hand))
    assert found.loc[("ONNX Runtime, fp32, dpm++2m", "psnr_db"), "within"]


def table_of(differences: list[float]) -> pd.DataFrame:
    """Rows of an original, and of a form whose PSNR differs by these numbers, a picture each."""
    rows = []
    for i, apart in enumerate(differences):
        for key, psnr in (("torch-fp32-ddim", 20.0), ("onnx-int8-ddim", 20.0 + apart)):
            row = {
                "picture": f"{i}.png",
                "square": 0,
                "hole": "box",
                "contender": key,
                "error": "",
                "seconds": 1.0,
                "share": 0.4,
            }
            row |= {
                "psnr_db": psnr,
                "ssim": 0.5,
                "texture": 1.0,
                "texture_error": 0.0,
                "perceptual": np.nan,
                "lpips": np.nan,
            }
            rows.append(row | {"label": summary.contender_of(key).label, "features": None})
    return pd.DataFrame(rows)


def test_faithful_is_said_only_where_the_interval_shows_it():
    near, far = table_of([0.01, -0.02, 0.0, 0.02] * 5), table_of([0.3, 0.25, 0.35, 0.28] * 5)
    assert "**every form of the port is faithful**" in summary.answer(near)
    unsure = summary.answer(far)
    assert "**0 of 1 forms" in unsure and "ONNX Runtime, int8, ddim: psnr_db" in unsure
    assert "too few" in summary.answer(table_of([0.0]))
    assert "too narrow" in summary.answer(near.head(30)) and "too narrow" not in summary.answer(near)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [low <= 1 <= high for low, high in (summary.interval(rng.normal(1, 2, 60), i) for i in range(100))]
    assert 0.87 <= np.mean(hits) <= 0.99
    assert np.isnan(summary.interval(np.array([1.0]))).all()


def test_the_worst_hole_is_shown_first_and_filled_again_as_it_was(plan, alone):
    rows = summary.read_rows(alone)
    (first, words), *_ = sheet.worst_cases(rows)
    same = summary.compared(rows)
    mine = same[same.contender == "torch-fp32-dpm++2m"]
    assert mine.perceptual.max() == mine[(mine.picture == first.picture) & (mine.square == first.square)].perceptual.iloc[0]
    filled = work.fill(plan, WHO[0], first, *work.load(plan, first))
    [row] = work.do(plan, Job(WHO[0], 0, (first,)))
    assert f"{row['psnr_db']:.1f} dB" in words and filled.shape == (128, 128, 3)


# -- FID and LPIPS -----------------------------------------------------------------------------------------------------


class Inception(torch.nn.Module):
    """Has the signature of the published file: means of 2 x 2 cells, repeated to its width."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x.float(), (2, 2)).flatten(1).repeat(1, 171)[:, :2048]


class Vgg(torch.nn.Module):
    def forward(self, x: torch.Tensor, resize_images: bool = True, return_lpips: bool = False) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 16).flatten(1) / 255


def test_fid_and_lpips_are_measured_where_the_files_are(tiny, pictures, tmp_path):
    for network, name in ((Inception(), scripted.INCEPTION), (Vgg(), scripted.VGG)):
        torch.jit.script(network).save(str(tmp_path / name))
    plan, remarks = make_plan(tiny, pictures, tmp_path, kinds=("box",), perceptual=False)
    assert remarks == []
    told = evaluate(plan, ("onnx",), (), ("telea",), tmp_path / "out", workers=0)
    rows = summary.read_rows(tmp_path / "out")
    distances = summary.fid(rows)
    assert set(distances.index) == {"ONNX Runtime, fp32, dpm++2m", "OpenCV Telea"} and (distances > 0).all()
    assert "FID of fewer than 2048" in told and "LPIPS (VGG)" in told and "perceptual" not in summary.table(rows).columns
    picture, mask = work.load(plan, Case("bee.webp", 0, "box"))
    assert scripted.lpips(plan.lpips, picture, picture) == 0 < rows[rows.contender == "telea"].lpips.dropna().min()
    assert scripted.find(tmp_path / "nowhere")[0] == {} and all(
        "put " in line for line in scripted.find(tmp_path / "nowhere")[1]
    )
    (tmp_path / "other.pt").write_bytes(b"no network")
    with pytest.raises(LabError, match="is not a TorchScript network"):
        scripted.lpips(str(tmp_path / "other.pt"), picture, picture)


def test_the_frechet_distance_is_that_of_gaussians():
    rng = np.random.default_rng(0)
    x, mixing = rng.normal(size=(4000, 6)), rng.normal(size=(6, 6)) / 3
    y = x @ mixing + 0.5
    from scipy.linalg import sqrtm

    covariances = np.cov(x.T), np.cov(y.T)
    by_formula = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert scripted.frechet_distance(x, y) == pytest.approx(by_formula)
    assert scripted.frechet_distance(x[:4], x[:4]) == pytest.approx(0, abs=1e-9)  # fewer pictures than features


def test_parts_are_read_by_any_tool(alone):
    part = pq.read_table(next(alone.glob("parts/telea/*.parquet")))
    assert part.schema.equals(cluster.SCHEMA) and set(part["contender"].to_pylist()) == {Contender("telea").key}
