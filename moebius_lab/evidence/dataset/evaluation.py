"""The evaluation from its parameters to its summary: what the command and the notebook call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ... import LabError
from ...config import SOLVERS
from ...files import written_whole
from ...model.checkpoint import presets_of
from ...port.graphs import Graphs
from ...provenance import facts_digest
from ..baselines import FILLS
from ..perceptual import PerceptualDistance
from . import scripted, sheet, summary
from .cluster import Progress, Ran, facts_of, run
from .plan import Contender, Plan, contenders, picture_names


def make_plan(graphs: Graphs, pictures: str | Path, metrics: str | Path, **chosen: object) -> tuple[Plan, list[str]]:
    """The plan for a folder of pictures, and a line for each measure that is left out here.

    Args:
        graphs: the network, its weights, and where its graphs are kept.
        pictures: the folder.
        metrics: folder that may have the files for FID and LPIPS.
        chosen: other fields of `Plan` by name; `size` is the network's and `preset` the first of the weights unless they are given.

    Raises:
        LabError: a folder is missing or has no pictures, or a value is outside its range.
    """
    found, remarks = scripted.find(metrics)
    try:
        PerceptualDistance()
        perceptual = True
    except LabError as error:
        remarks.append(str(error))
        perceptual = False
    masks = chosen.pop("masks", "")
    if masks and not Path(str(masks)).is_dir():
        raise LabError(f"{masks}: there is no such folder; name one that has a mask for each picture")
    fixed = {
        "pictures": str(Path(pictures).resolve()),
        "names": picture_names(pictures),
        "masks": str(Path(str(masks)).resolve()) if masks else "",
        "network": graphs.config.name,
        "weights": graphs.weights,
        "graphs": str(graphs.folder),
        "perceptual": perceptual,
    }
    usual = {"size": graphs.config.image_size, "preset": next(iter(presets_of(graphs.weights)))}
    given = usual | {name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()}
    return Plan(**fixed | found | given), remarks


def own_folder(plan: Plan, graphs: Graphs) -> Path:
    """A folder below that of the graphs for this plan, these weights and this code: nothing that is kept there is of others."""
    return graphs.folder / "evaluation" / facts_digest(facts_of(plan, graphs))[:12]


def evaluate(
    plan: Plan,
    backends: Sequence[str],
    solvers: Sequence[str],
    baselines: Sequence[str],
    folder: str | Path,
    workers: int | None = None,
    scheduler: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> str:
    """Run what is left of an evaluation and write its summary, tables and contact sheet into `folder`.

    Args:
        plan: of `make_plan`.
        backends, solvers, baselines: see `plan.contenders`; no solvers for the preset's own.
        folder, workers, scheduler, on_progress: see `cluster.run`.

    Returns:
        The tables, what could not be read, the throughput, and the answer, as text.

    Raises:
        LabError: see `cluster.run`.
    """
    solvers = list(solvers) or [plan.presets[plan.preset].solver]
    if unknown := [name for name in solvers if name not in SOLVERS]:
        raise LabError(f"there is no solver {unknown[0]!r}; choose from {', '.join(SOLVERS)}")
    who = contenders(backends, solvers, baselines, bool(plan.inception))
    _check(plan, who)
    ran = run(plan, who, folder, workers, scheduler, on_progress)
    rows = summary.read_rows(folder)
    summary.write_summary(folder)
    picture = sheet.worst(plan, rows)
    if picture is not None:
        with written_whole(Path(folder) / "worst.png") as part:
            picture.save(part, "PNG")
    return _told(rows, ran, folder)


def _check(plan: Plan, who: tuple[Contender, ...]) -> None:
    """Raise LabError for settings or a baseline that could not be used, which would else be seen hours later."""
    picture, hole = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), bool)
    hole[6:10, 6:10] = True
    for contender in who:
        if contender.solver:
            plan.settings(contender, plan.cases()[0])
        elif contender.filler in FILLS:
            FILLS[contender.filler](picture, hole)


def _told(rows: pd.DataFrame, ran: Ran, folder: str | Path) -> str:
    lines = [summary.table(rows).T.to_string()]
    if len(differences := summary.paired_table(rows)):
        lines += ["", "minus the original in PyTorch, same holes and noise:", differences.T.to_string()]
    for _, row in summary.unreadable(rows).iterrows():
        lines.append(f"left out: {row['picture']}: {row['error']}")
    if ran.jobs:
        lines += ["", throughput(ran)]
    if len(summary.fid(rows)) and len(rows.drop_duplicates(summary.CASE)) < summary.FEW_FOR_FID:
        lines.append(f"FID of fewer than {summary.FEW_FOR_FID} holes comes out too large; compare it within this table only")
    lines += ["", " ".join(summary.PAPER.replace("**", "").split()), "", summary.answer(rows).replace("**", ""), str(folder)]
    return "\n".join(lines)


def throughput(ran: Ran) -> str:
    """What a call did, in words: holes a second, and how that compares with a plain loop over the same jobs."""
    words = f"{ran.holes} holes in {ran.seconds:.0f} s, {ran.holes / ran.seconds:.3g} a second"
    if not ran.workers:
        return f"{words}, in a plain loop"
    share = ran.work_seconds / ran.workers / ran.seconds
    lost = f" ({ran.lost} lost, whose jobs were done again)" if ran.lost else ""
    return f"{words}, {ran.workers} workers{lost}: {share:.2f} of as many plain loops, by the time that the workers spent in their jobs"
