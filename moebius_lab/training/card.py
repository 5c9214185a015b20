"""The model card's numbers: `python -m moebius_lab.training.card` writes them anew from evaluation.json, quality.json and
training_log.json."""

from __future__ import annotations

import json
from pathlib import Path

from .. import LabError
from ..config import BASELINES, DEFAULT_PRESET, DISTILLED, PRESETS
from ..evidence import quality
from ..evidence.evaluation import METHODS
from ..evidence.measures import MEASURES
from ..inpainting.loop import preset
from ..model.checkpoint import DEMO_FOLDER, SHIPPED
from ..model.sampler import solver_steps

CARD = DEMO_FOLDER / "README.md"
TEXTURE_AIM = 0.9  # share of the held-out pictures on which the texture must be better than both OpenCV methods'
BORDER_AIM = 5.0  # error on the worst side over that inside, up to which nobody sees the border
PATCHMATCH_AIM = 0.75  # share of the held-out pictures on which a fill should look nearer to the truth than PatchMatch's
TEXTURE_ERROR_AIM = 1.0  # mean abs log2 texture
TITLES = {method: BASELINES.get(method, method) for method in METHODS} | {"patchmatch": "PatchMatch (`pypatchmatch`)"}


def _reached(aim: bool) -> str:
    return "reached" if aim else "missed"


def _figures(m: dict) -> str:
    return f"{m['psnr_db']:.2f} | {m['ssim']:.3f} | {m['texture']:.3f} | {m['texture_error']:.2f} | {m['perceptual']:.2f}"


def numbers(report: dict, distilled: dict, measured: dict) -> str:
    """What the `evaluation.json` of the demo and of its distilled weights say, and `quality.json` of the default preset, as Markdown."""
    settings, mean, wins, count = report["settings"], report["mean"], report["texture_wins"], report["count"]
    nearer, seeds = report["wins_over_patchmatch"], ", ".join(map(str, report["seeds"]))
    run = len(solver_steps(settings["solver"], settings["steps"], settings["strength"]))
    lines = [
        f"{count} held-out pictures (`heldout/`), {report['evaluations']} evaluations ({run} of {settings['steps']} DDIM steps at strength {settings['strength']}, guidance {settings['guidance']}), started from noise, seed {seeds}; "
        "means, all pictures in `evaluation.json`. Texture:",
        "Laplacian energy in the hole over that around it, 1 is right where hole and surroundings are of one kind. Perceptual: distance to the",
        "truth by the features of EfficientNet-lite0 (`perceptual.py`), 0 is equal.",
        "",
        "| | PSNR in the hole, dB | SSIM in the hole | texture | abs log2 texture | perceptual |",
        "|---|---|---|---|---|---|",
    ]
    few, few_nearer = distilled["settings"], distilled["wins_over_patchmatch"]
    rows = quality.table(measured)
    by_picture = rows[rows.way == quality.name_of(DEFAULT_PRESET)].groupby("picture")[list(MEASURES)].mean()
    default_nearer = sum(
        by_picture.perceptual[name] < p["patchmatch"]["perceptual"] for name, p in report["pictures"].items()
    )
    evaluations = preset(DEFAULT_PRESET).evaluations()
    for method, title in TITLES.items():
        lines.append(f"| {title} | {_figures(mean[method])} |")
        if method == "ours":
            lines += [
                f"| ours, *{DEFAULT_PRESET}*: {evaluations} evaluations, harmonized | {_figures(by_picture.mean().to_dict())} |",
                f"| ours, distilled: {distilled['evaluations']} evaluations, harmonized | {_figures(distilled['mean']['ours'])} |",
            ]
    greyed = ", ".join(f"`{name}` {levels}" for name, levels in report["chroma_of_greyed"].items())
    worse = [
        name
        for name, p in report["pictures"].items()
        if p["ours"]["texture_error"] >= min(p["telea"]["texture_error"], p["navier_stokes"]["texture_error"])
    ]
    names = ", ".join(f"`{name}`" for name in worse) or "none"
    ratio = report["worst_border_ratio"]
    lines += [
        "",
        f"Nearer to the truth than PatchMatch: perceptual on {nearer['perceptual']} of {count} (the aim was 3 of 4: "
        f"{_reached(nearer['perceptual'] >= PATCHMATCH_AIM * count)}), PSNR on {nearer['psnr_db']},",
        f"SSIM on {nearer['ssim']}; texture on {nearer['texture_error']} (PatchMatch's is nearer on {count - nearer['texture_error']}). The truth itself has an abs log2 texture of "
        f"{mean['truth_texture_error']:.2f}, because holes hide things.",
        f"*{DEFAULT_PRESET}*: perceptual on {default_nearer}: {_reached(default_nearer >= PATCHMATCH_AIM * count)}. The distilled weights "
        f"(`demo-fast`, {few['steps']} steps of {few['solver']} without guidance): perceptual on {few_nearer['perceptual']}: "
        f"{_reached(few_nearer['perceptual'] >= PATCHMATCH_AIM * count)},",
        f"PSNR on {few_nearer['psnr_db']}, SSIM on {few_nearer['ssim']}; texture on {few_nearer['texture_error']} (PatchMatch's on {count - few_nearer['texture_error']}). An abs log2 texture "
        f"of at most {TEXTURE_ERROR_AIM} was the aim: {_reached(distilled['mean']['ours']['texture_error'] <= TEXTURE_ERROR_AIM)} by `demo-fast`.",
        f"Pictures made grey and filled, chroma in the hole (root mean square, levels; 0 is right): as released {greyed}; harmonized "
        f"{max(distilled['chroma_of_greyed'].values()):g}.",
        f"Texture nearer to 1 than both OpenCV methods on {wins} of {count} (not on: {names}); the aim was 9 of 10: "
        f"{_reached(wins >= TEXTURE_AIM * count)}. In `bee` the hole",
        f"lies in blur that is smoother than what is around it, so there the truth has {report['pictures']['bee']['truth_texture']} too.",
        f"The autoencoder alone reaches {mean['reconstruction_psnr_db']:.2f} dB on these windows; the aim was 25: "
        f"{_reached(mean['reconstruction_psnr_db'] >= 25)}.",
        f"Border: the predicted noise's squared error in the window's worst outermost row or column is {ratio:.1f} times that inside; the aim was "
        f"at most {BORDER_AIM:.0f}: {_reached(ratio <= BORDER_AIM)}.",
    ]
    return "\n".join(lines)


def presets(measured: dict) -> str:
    """What `quality.json` says of the presets, as Markdown."""
    rows = quality.table(measured)
    found = quality.summary(rows, [quality.name_of(name) for name in PRESETS])
    lines = [
        f"The same pictures and seeds, by preset, all from noise; means ± standard errors over {rows['picture'].nunique()} pictures.",
        "",
        f"| | evaluations | {' | '.join(quality.TITLES.values())} |",
        f"|---|---|{'---|' * len(quality.TITLES)}",
    ]
    for name in PRESETS:
        numbers = found.loc[quality.name_of(name)]
        lines.append(
            f"| {name} | {numbers['evaluations']} | {' | '.join(numbers[title] for title in quality.TITLES.values())} |"
        )
    chosen = rows["choosing"]
    return "\n".join(
        [
            *lines,
            "",
            f"On the pictures that *fast* was chosen on: {quality.answer(rows[chosen])}",
            f"On the others: {quality.answer(rows[~chosen])}",
        ]
    )


def training(log: dict) -> str:
    """What `training_log.json` says, as Markdown: steps and seconds of all trainings together."""
    lines = ["| | steps, all trainings together | seconds of steps | last loss |", "|---|---|---|---|"]
    for part, batch in (("vae", 32), ("denoiser", 128), ("decoder", 32)):
        name = {"vae": "autoencoder"}.get(part, part)
        lines.append(
            f"| {name} | {log[part]['steps']:,} (batch {batch}) | {log[part]['seconds']:.0f} | {log[part]['curve'][-1][1]} |"
        )
    return "\n".join([*lines, "", f"The last training: {log['hardware']}, PyTorch {log['torch']}; seed {log['seed']}."])


def rewritten(card: str, report: dict, distilled: dict, log: dict, measured: dict) -> str:
    """The card with what stands between its marks made anew.

    Raises:
        LabError: a mark is missing.
    """
    for mark, text in (
        ("numbers", numbers(report, distilled, measured)),
        ("presets", presets(measured)),
        ("training", training(log)),
    ):
        begin, end = f"<!-- {mark}: written by python -m moebius_lab.training.card -->\n", f"\n<!-- end of {mark} -->"
        before, found, rest = card.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise LabError(f"the model card lacks the marks of its {mark}: put back {begin.strip()} and {end.strip()}")
        card = before + begin + text + end + after
    return card


def read_json(name: str, folder: Path = DEMO_FOLDER) -> dict:
    """One of the JSON files next to the weights."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def main() -> None:
    text = rewritten(
        CARD.read_text(encoding="utf-8"),
        read_json("evaluation.json"),
        read_json("evaluation.json", SHIPPED[DISTILLED["demo"]]),
        read_json("training_log.json"),
        read_json("quality.json"),
    )
    CARD.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
