"""The worst fills of an evaluation as one picture: what means hide."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image

from ...config import BASELINES, FILLERS
from ...inpainting.imaging import is_hole
from ..evaluation import contact_sheet
from . import work
from .plan import Case, Plan
from .summary import CASE, compared, contender_of

SHOWN = 6  # holes, each of another picture
COLUMNS = 5  # contenders at most, between the hole and the truth
GREY = 128  # level of a hole that is not filled yet


def worst_cases(rows: pd.DataFrame, count: int = SHOWN) -> list[tuple[Case, str]]:
    """The holes that the first contender filled worst, one of each picture, each with what was measured.

    Worst is the largest perceptual distance to the truth, or the lowest PSNR where that was not measured.

    Args:
        rows: of `summary.read_rows`.
        count: at most so many.
    """
    same = compared(rows)
    first = same[same["contender"] == same["contender"].iloc[0]] if len(same) else same
    measure, ascending = ("perceptual", False) if len(first) and first["perceptual"].notna().all() else ("psnr_db", True)
    found = (
        first.sort_values([measure, *CASE], ascending=[ascending, True, True, True]).drop_duplicates("picture").head(count)
    )
    return [
        (
            Case(row["picture"], int(row["square"]), row["hole"]),
            f"{row['hole']} hole, {row['psnr_db']:.1f} dB, {measure} {row[measure]:.2f}",
        )
        for _, row in found.iterrows()
    ]


def worst(plan: Plan, rows: pd.DataFrame, count: int = SHOWN) -> Image.Image | None:
    """Those holes filled again, which gives the same pixels, side by side; None where nothing was compared.

    Shown are the first contender, the other forms with its solver, then baselines.
    """
    cases = worst_cases(rows, count)
    if not cases:
        return None
    keys = list(dict.fromkeys(compared(rows)["contender"]))
    first = contender_of(keys[0])
    who = [c for c in map(contender_of, keys) if c.solver in (first.solver, "")]
    who = sorted(who, key=lambda c: (c.filler in BASELINES, keys.index(c.key)))[:COLUMNS]
    filled = {case: [] for case, _ in cases}
    for contender in who:  # contender by contender, so that each is opened once
        for case in filled:
            filled[case].append(work.fill(plan, contender, case, *work.load(plan, case)))
    lines = []
    for case, words in cases:
        picture, mask = work.load(plan, case)
        hidden = np.where(is_hole(mask)[..., None], np.uint8(GREY), picture)
        lines.append((f"{case.picture}: {words}", [hidden, *filled[case], picture]))
    titles = (FILLERS[c.filler].label + f" {c.form}" if c.filler in FILLERS else c.label for c in who)
    return contact_sheet(lines, ("hole", *titles, "truth"))
