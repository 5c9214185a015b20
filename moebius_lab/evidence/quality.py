"""Quality against evaluations of the network: every solver, guided wholly, late, early and never, on the held-out photographs.

`python -m moebius_lab.evidence.quality` fills every hole of `demo/heldout/` in every way of `ways` and writes `demo/quality.json`,
picture by picture, so that a run that was stopped goes on where it was. Every fill starts from the same noise of its seed. The preset
"fast" is chosen on every second picture (`chosen_on`) and reported on the others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .. import errors
from ..config import DEFAULT_PRESET, DEMO, PRESETS, STRAIGHTFORWARD
from ..files import write_json
from ..inpainting.backends import Backend
from ..inpainting.imaging import is_hole
from ..inpainting.loop import Settings, inpaint, preset
from ..model.checkpoint import DEMO_FOLDER
from ..port.graphs import Graphs
from ..port.sessions import OnnxBackend, open_session
from .evaluation import HELD_OUT_FOLDER, SEEDS, demo_backend, exact_device, held_out_pairs
from .measures import MEASURES, hole_psnr, measures
from .perceptual import PerceptualDistance

QUALITY = DEMO_FOLDER / "quality.json"
SCHEDULES = {"wholly": (0.0, 1.0), "late": (0.5, 1.0), "early": (0.0, 0.5), "never": (0.0, 1.0)}
"""The part of the run in which a way is guided, as shares; "never" has a guidance of 1."""
STEPS = {"wholly": (4, 6, 10), "late": (4, 6, 10), "early": (6,), "never": (6,)}
"""The numbers of steps that every solver tries with each schedule."""
CURVE_SEEDS = (0, 1)  # of ways that are not presets; presets have `evaluation.SEEDS`
LONGEST = Settings(steps=100, strength=1.0, init="noise")  # the reference for few steps; with seed 0
RELEASED = "as released"  # the preset's steps, but starting from noise, so that every way starts from the same noise
LIKE = {RELEASED: "as released, harmonized", DEFAULT_PRESET: "fast, not harmonized"}
"""Ways by name, and what each is called with harmonizing instead of without, or the other way round."""
TITLES = {name: MEASURES[name] for name in ("psnr_db", "ssim", "texture", "perceptual")}
TITLES |= {"to_longest_db": f"PSNR against {LONGEST.steps} steps, dB"}
"""The measures that are shown, and their titles."""
COMPARED = ("ddim", "dpm++2m", "unipc")
"""The solvers of the curves: those for a network that was not distilled."""
SLACK = {"psnr_db": 0.1, "ssim": 0.01, "texture": 0.05}
"""How far a preset's mean may be from that of the release, in dB and the measures' own units."""


def chosen_on(name: str) -> bool:
    """Whether a preset may be chosen on this picture: every second one, by name; results are reported on the others."""
    return sorted(path.stem for path in HELD_OUT_FOLDER.glob("*.webp")).index(name) % 2 == 0


def from_noise(name: str) -> Settings:
    """A preset's settings, but starting from noise."""
    return preset(name, init="noise")


@cache
def ways() -> dict[str, tuple[Settings, tuple[int, ...]]]:
    """Every way of sampling that is compared, by name, with its seeds; the release comes first."""
    unnamed = {from_noise(name): name for name in PRESETS}
    found = {RELEASED: (from_noise("as-released"), SEEDS)}
    del unnamed[from_noise("as-released")]
    for solver in COMPARED:
        for schedule, interval in SCHEDULES.items():
            for steps in STEPS[schedule]:
                guidance = 1.0 if schedule == "never" else Settings.guidance
                settings = Settings(solver, steps, 1.0, guidance, interval, init="noise")
                seeds = SEEDS if unnamed.pop(settings, "") else CURVE_SEEDS
                found[f"{solver}, {steps} steps, guided {schedule}"] = settings, seeds
    found |= {name: (settings, SEEDS) for settings, name in unnamed.items()}
    for way, name in LIKE.items():  # what harmonizing does, and presets beside the release like with like
        settings = found[way][0]
        found[name] = replace(settings, harmonize=not settings.harmonize), SEEDS
    return found


def measure_picture(
    backend: Backend,
    picture: np.ndarray,
    mask: np.ndarray,
    distance: PerceptualDistance,
    names: Iterable[str],
    known: Sequence[dict] = (),
) -> list[dict]:
    """Fill one hole in several ways.

    Args:
        backend: the network.
        picture, mask: uint8 (H, W, 3) and (H, W).
        distance: see `measures.measures`.
        names: of the ways.
        known: rows of an earlier run, which are kept.

    Returns:
        A row for each way and seed: its measures, see `measures.measures`, and for seed 0 also `to_longest_db`, the PSNR
        in the hole against the fill of 100 steps.
    """
    hole = is_hole(mask)
    longest, rows = None, list(known)
    for way, (settings, seeds) in ways().items():
        done = [row["seed"] for row in known if row["way"] == way]
        for seed in [seed for seed in seeds if way in names and seed not in done]:
            filled = inpaint(backend, picture, mask, replace(settings, seed=seed))
            row = {"way": way, "evaluations": settings.evaluations(), "seed": seed}
            row |= measures(filled, picture, hole, distance)
            if seed == LONGEST.seed:
                longest = inpaint(backend, picture, mask, LONGEST) if longest is None else longest
                row["to_longest_db"] = round(hole_psnr(filled, longest, hole), 2)
            rows.append(row)
    return rows


@cache
def filling_backend(device: str, folder: Path) -> Backend:
    """What fills in this process: on the CPU the graphs of `folder` in ONNX Runtime, on a card PyTorch; one thread of the CPU each.

    Args:
        device: see `evaluation.exact_device`.
        folder: has onnx/.
    """
    if exact_device(device).type == "cpu":
        graphs = Graphs(DEMO, "demo", folder).stored(STRAIGHTFORWARD)
        return OnnxBackend(graphs, DEMO, partial(open_session, threads=1))
    torch.set_num_threads(1)
    return demo_backend("demo", device)


def _measure(name: str, device: str, folder: Path, names: list[str], known: list[dict]) -> tuple[str, list[dict]]:
    backend = filling_backend(device, folder)
    return name, measure_picture(backend, *held_out_pairs()[name], PerceptualDistance(), names, known)


def table(report: dict) -> pd.DataFrame:
    """The report's rows as measured, each with its picture and whether presets were chosen on that picture."""
    rows = [
        {"picture": name, "choosing": chosen_on(name)} | row for name, rows in report["pictures"].items() for row in rows
    ]
    return pd.DataFrame(rows)


def curves(rows: pd.DataFrame, names: Sequence[str] = ()) -> pd.DataFrame:
    """Mean and standard error over pictures of every measure, by way: columns (measure, "mean" or "sem") and evaluations.

    Only pictures that were filled in every way are included, so that all points cover the same pictures. The seeds of a
    picture are averaged first: the spread is over pictures.

    Args:
        rows: of `table`.
        names: of the ways; empty for all.
    """
    rows = rows[rows["way"].isin(names or ways())]
    of_picture = rows.groupby("picture")["way"].nunique()
    rows = rows[rows["picture"].map(of_picture) == len(names or ways())]
    of_pictures = rows.groupby(["way", "evaluations", "picture"], sort=False)[list(TITLES)].mean()
    return of_pictures.groupby(["way", "evaluations"], sort=False).agg(["mean", "sem"]).reset_index("evaluations")


def summary(rows: pd.DataFrame, names: Sequence[str] = ()) -> pd.DataFrame:
    """`curves` in words, "17.4 ± 0.6", by way: evaluations, and a column for each of `TITLES`."""
    found = curves(rows, names)
    told = {
        title: [f"{mean:.3g} ± {spread:.2g}" for mean, spread in found[measure].to_numpy()]
        for measure, title in TITLES.items()
    }
    return pd.DataFrame({"evaluations": found["evaluations"].to_numpy()} | told, index=found.index)


def missing(rows: list[dict], names: Iterable[str]) -> bool:
    """Whether a picture lacks a seed of one of these ways."""
    found = {(row["way"], row["seed"]) for row in rows}
    return any((name, seed) not in found for name in names for seed in ways()[name][1])


def differences(rows: pd.DataFrame, way: str, other: str = RELEASED) -> dict[str, float]:
    """A way's means minus those of another, for the measures in `SLACK`, over the same pictures and seeds."""
    mine, release = (rows[rows.way == name].set_index(["picture", "seed"])[list(SLACK)].mean() for name in (way, other))
    return {key: float(mine[key] - release[key]) for key in SLACK}


def name_of(name: str) -> str:
    """A preset's name in `ways`."""
    return next(way for way, (settings, _) in ways().items() if settings == from_noise(name))


def answer(rows: pd.DataFrame) -> str:
    """Whether the default preset keeps the release's measures within `SLACK`, on these rows, in Markdown: both harmonized, and both not."""
    way, words = preset(DEFAULT_PRESET), {"psnr_db": "dB PSNR", "ssim": "SSIM", "texture": "texture"}
    pairs = {
        "both harmonized": (name_of(DEFAULT_PRESET), LIKE[RELEASED]),
        "both as the network makes them": (LIKE[DEFAULT_PRESET], RELEASED),
    }
    found = {kind: differences(rows, *names) for kind, names in pairs.items()}
    told = "; ".join(
        f"{kind} {', '.join(f'{apart[key]:+.3f} {word}' for key, word in words.items())}" for kind, apart in found.items()
    )
    allowed = ", ".join(f"{SLACK[key]:g} {word}" for key, word in words.items())
    worse = [
        f"{words[key]}, {kind}"
        for kind, apart in found.items()
        for key, gap in apart.items()
        if (abs(gap) if key == "texture" else -gap) > SLACK[key]
    ]
    verdict = (
        f"**Not within what is allowed: {'; '.join(worse)}.**" if worse else "**As good as the release by these measures.**"
    )
    pictures, seeds = rows["picture"].nunique(), len(SEEDS)
    return (
        f"{verdict} {way.evaluations()} evaluations instead of {preset('as-released').evaluations()}, means of {pictures} pictures and {seeds} "
        f"seeds, less those of the release: {told} (allowed: {allowed})."
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.evidence.quality", description=__doc__)
    parser.add_argument("--report", type=Path, default=QUALITY)
    parser.add_argument("--output-dir", type=Path, default=Path("build"), help="has onnx/, which is made if missing")
    parser.add_argument("--jobs", type=int, default=1, help="pictures at once, one thread each")
    words = "cpu: ONNX Runtime; cuda or cuda:N: PyTorch there, which needs no onnx/ (default: %(default)s)"
    parser.add_argument("--device", default="cpu", help=words)
    options = parser.parse_args()
    on_card = exact_device(options.device).type == "cuda"
    report = json.loads(options.report.read_text(encoding="utf-8")) if options.report.is_file() else {"pictures": {}}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    folder = options.output_dir.resolve()
    if not on_card:
        Graphs(DEMO, "demo", folder).stored(STRAIGHTFORWARD)
    presets = [*(name_of(name) for name in PRESETS), *LIKE.values()]
    context = multiprocessing.get_context("spawn") if on_card else None  # CUDA does not work in a forked process
    with ProcessPoolExecutor(options.jobs, context) as pool:
        for names in (presets, list(ways())):  # the most important first
            left = {name: report["pictures"].get(name, []) for name in held_out_pairs()}
            left = {name: rows for name, rows in left.items() if missing(rows, names)}
            jobs = [pool.submit(_measure, name, options.device, folder, names, rows) for name, rows in left.items()]
            for done, future in enumerate(as_completed(jobs), 1):
                name, rows = future.result()
                report["pictures"] = dict(sorted((report["pictures"] | {name: rows}).items()))
                write_json(options.report, report)
                print(f"{name}: {done} of {len(jobs)} pictures, {len(names)} ways", flush=True)
    measured = table(report)
    print(curves(measured).round(3).to_string())
    for part, rows in (("chosen on", measured[measured.choosing]), ("reported on", measured[~measured.choosing])):
        print(f"{part}: {answer(rows)}")
    return 0


if __name__ == "__main__":
    errors.leave(errors.run(main))
