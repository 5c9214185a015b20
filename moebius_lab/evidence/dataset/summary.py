"""What an evaluation says: rows of every hole, means with their intervals, each form of the port against the original, FID.

Intervals are of 95 %, by bootstrap over picture files: the holes and squares of one picture are averaged first, because they are not
independent. Means and differences cover the holes that every contender filled, so that all rows of a table are of the same ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import bootstrap

from ... import LabError
from ...config import BASELINES, FILLERS, ORIGINAL
from ...files import write_json, written_whole
from ..measures import MEASURES
from ..quality import SLACK
from .cluster import KEYS, SCHEMA, kept_plan, read_part
from .plan import TRUTH, Contender
from .scripted import frechet_distance

CASE = ["picture", "square", "hole"]
TITLES = MEASURES | {"lpips": "LPIPS (VGG)"}
"""The measures and their titles."""
RESAMPLES = 2000
LEVEL = 0.95
DECIMALS = 9  # of what is reported: a sum's last digits say nothing
ENOUGH = 20  # pictures; the bootstrap's intervals of fewer are too narrow
FEW_FOR_FID = 2048  # holes; of fewer, the covariance of 2048 features has no full rank, and FID comes out too large
PAPER = """The paper's own rows, FID / LPIPS, **not comparable** with those above: another protocol, other pictures, full weights. 512 px,
10,000 test pictures with holes of 40 to 50 % (Places2 Test, CelebA-HQ, FFHQ), 36,500 validation pictures (Large and Small), as the README of
PixelHacker describes it. Places2 Test 9.48 / 0.207; Large 2.35 / 0.173; Small 0.92 / 0.091; at 256 px 14.13 / 0.470; CelebA-HQ 5.39 /
0.122; FFHQ 8.15 / 0.231."""


# -- rows --------------------------------------------------------------------------------------------------------------


def contender_of(key: str) -> Contender:
    """The contender of a key (`Contender.key`)."""
    names = sorted((*FILLERS, *BASELINES, TRUTH), key=len, reverse=True)
    name = next((name for name in names if key == name or key.startswith(f"{name}-")), None)
    if name is None:
        raise LabError(f"{key!r} is no contender of an evaluation; remove its folder from parts/")
    form, _, solver = key.removeprefix(name).removeprefix("-").rpartition("-")
    return Contender(name, form, solver)


def read_rows(folder: str | Path) -> pd.DataFrame:
    """Every row that is kept in a run's folder, finished or not, sorted by contender and case; "label" is the contender's for people.

    Raises:
        DamagedFile, LabError: the folder holds no evaluation, or no results yet.
    """
    folder = Path(folder)
    kept_plan(folder)
    tables = [table for path in sorted(folder.glob("parts/*/*.parquet")) if (table := read_part(path)) is not None]
    if not tables:
        raise LabError(f"{folder} has no results yet; run `evaluate` again, which goes on where it was")
    rows = pa.concat_tables(tables).to_pandas()
    order = {key: i for i, key in enumerate((*FILLERS, *BASELINES, TRUTH))}
    rows["label"] = rows["contender"].map(lambda key: contender_of(key).label)
    rows["place"] = rows["contender"].map(lambda key: order[contender_of(key).filler])
    return rows.sort_values(["place", "contender", *CASE], ignore_index=True).drop(columns="place")


def unreadable(rows: pd.DataFrame) -> pd.DataFrame:
    """Pictures that could not be read, or not be filled by somebody: columns "picture" and "error", each once."""
    return rows.loc[rows["error"] != "", ["picture", "error"]].drop_duplicates(ignore_index=True)


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the holes that every contender filled."""
    good = rows[(rows["error"] == "") & (rows["contender"] != TRUTH)]
    fillers = good.groupby(CASE)["contender"].transform("nunique")
    return good[fillers == good["contender"].nunique()]


# -- numbers -----------------------------------------------------------------------------------------------------------


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Where the mean of such values lies, by percentile bootstrap; (NaN, NaN) for fewer than two values.

    Args:
        values: (n,), one for each picture.
        seed: of the resamples.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=100,
    )
    return tuple(map(float, found.confidence_interval))


def _measured(rows: pd.DataFrame) -> list[str]:
    return [name for name in TITLES if rows[name].notna().any()]


def _summarised(of_pictures: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Means and intervals of columns: an entry for each name, columns "mean", "low", "high", "pictures"."""
    values = {name: of_pictures[name].dropna().to_numpy() for name in names}
    found = {name: (x.mean() if len(x) else np.nan, *interval(x), len(x)) for name, x in values.items()}
    columns = ["mean", "low", "high", "pictures"]
    return pd.DataFrame.from_dict(found, "index", columns=columns).round(DECIMALS).rename_axis("measure")


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over pictures with their intervals: index (label, measure), columns "mean", "low", "high", "pictures"."""
    same, names = compared(rows), _measured(rows)
    of_pictures = same.groupby(["label", "picture"], sort=False)[names].mean()
    found = {label: _summarised(part, names) for label, part in of_pictures.groupby("label", sort=False)}
    return pd.concat(found, names=["label"]) if found else pd.DataFrame()


def seconds(rows: pd.DataFrame) -> pd.Series:
    """Median seconds of a fill by label."""
    good = rows[(rows["error"] == "") & (rows["contender"] != TRUTH)]
    return good.groupby("label", sort=False)["seconds"].median()


def original_of(contender: Contender, keys: set[str]) -> str:
    """The key of the original that a form of the port is compared with: PyTorch with the same solver; empty if there is none."""
    if contender.filler not in FILLERS:
        return ""
    candidates = (Contender(name, "fp32", contender.solver).key for name in (ORIGINAL, "torch-cuda"))
    return next((key for key in candidates if key in keys and key != contender.key), "")


def paired(rows: pd.DataFrame) -> pd.DataFrame:
    """Each form of the port minus the original in PyTorch, same hole, same noise, same solver.

    Returns:
        Index (label, measure); columns as of `means`, "largest", the largest difference of a single hole, and "within": whether the
        interval lies inside what `quality.SLACK` allows (None for a measure that it does not name).
    """
    same, names = compared(rows), _measured(rows)
    by_key = {key: part.set_index(CASE) for key, part in same.groupby("contender", sort=False)}
    found = {}
    for key, part in by_key.items():
        original = original_of(contender_of(key), set(by_key))
        if not original:
            continue
        apart = (part[names] - by_key[original].loc[part.index, names]).reset_index()
        summarised = _summarised(apart.groupby("picture")[names].mean(), names)
        summarised["largest"] = apart[names].abs().max()
        summarised["within"] = [_within(name, row) for name, row in summarised.iterrows()]
        found[part["label"].iloc[0]] = summarised
    return pd.concat(found, names=["label"]) if found else pd.DataFrame()


def _within(name: str, row: pd.Series) -> bool | None:
    return bool(-SLACK[name] <= row["low"] and row["high"] <= SLACK[name]) if name in SLACK else None


def fid(rows: pd.DataFrame) -> pd.Series:
    """FID of each contender's fills against the untouched pictures, by label, over the holes that everyone filled; empty without features."""
    given = rows[rows["features"].notna() & (rows["error"] == "")]
    if TRUTH not in set(given["contender"]):
        return pd.Series(dtype=float)
    common = given[given.groupby(CASE)["contender"].transform("nunique") == given["contender"].nunique()]
    sets = {label: _features(part) for label, part in common.groupby("label", sort=False)}
    truth = sets.pop(TRUTH)
    return pd.Series({label: frechet_distance(truth, features) for label, features in sets.items()})


def _features(rows: pd.DataFrame) -> np.ndarray:
    return np.stack([np.frombuffer(value, np.float32) for value in rows.sort_values(CASE)["features"]])


# -- words -------------------------------------------------------------------------------------------------------------


def _told(row: pd.Series, sign: str = "") -> str:
    spread = "" if np.isnan(row["low"]) else f" [{row['low']:{sign}.3g}, {row['high']:{sign}.3g}]"
    return f"{row['mean']:{sign}.4g}{spread}"


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """`means` in words, a row for each contender: measures with intervals, FID where it is, median seconds of a fill."""
    found = means(rows)
    if found.empty:
        return found
    wide = found.apply(_told, axis=1).unstack("measure").reindex(found.index.unique("label"))[_measured(rows)]
    wide = wide.rename(columns=TITLES)
    distances = fid(rows)
    if len(distances):
        wide["FID"] = distances.map("{:.4g}".format)
    wide["seconds a fill"] = seconds(rows).map("{:.3g}".format)
    return wide


def paired_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`paired` in words, a row for each form of the port."""
    found = paired(rows)
    if found.empty:
        return found
    told = found.apply(_told, axis=1, sign="+").unstack("measure").reindex(found.index.unique("label"))[_measured(rows)]
    return told.rename(columns=TITLES)


def answer(rows: pd.DataFrame) -> str:
    """Whether the port is faithful and how its fills compare with the baselines, in Markdown, from these rows alone."""
    same = compared(rows)
    if same.empty:
        return "**No hole was filled by every contender**, so nothing is compared here."
    pictures, holes = same["picture"].nunique(), len(same.drop_duplicates(CASE))
    words = [f"Over {holes} holes in {pictures} pictures:", _faithful(paired(rows)), _better(rows)]
    if len(broken := unreadable(rows)):
        words.append(f"{broken['picture'].nunique()} pictures could not be used, and are listed.")
    if pictures < ENOUGH:
        words.append(f"Intervals of fewer than {ENOUGH} pictures are too narrow; evaluate more before you rely on them.")
    return " ".join(word for word in words if word)


def _faithful(differences: pd.DataFrame) -> str:
    if differences.empty:
        return "**No form of the port was compared with the original.**"
    if differences["low"].isna().all():
        return "**One picture is too few to say whether the port is faithful.**"
    judged = differences[differences["within"].notna()]
    outside = judged[~judged["within"].astype(bool)]
    allowed = ", ".join(f"{limit:g} {name.removesuffix('_db')}" for name, limit in SLACK.items())
    total = judged.index.unique("label")
    if outside.empty:
        worst = judged.xs("psnr_db", level="measure")[["low", "high"]].abs().to_numpy().max()
        return (
            f"**every form of the port is faithful** ({len(total)} compared): each interval of the difference from the original lies within what is allowed "
            f"({allowed}), and none reaches beyond {worst:.2g} dB."
        )
    named = "; ".join(
        f"{label}: {', '.join(part.index.unique('measure'))}" for label, part in outside.groupby("label", sort=False)
    )
    kept = len(total) - outside.index.get_level_values("label").nunique()
    return (
        f"**{kept} of {len(total)} forms of the port are shown to be faithful** (within {allowed}); not shown for {named}."
    )


def _better(rows: pd.DataFrame) -> str:
    """The first original against each baseline, by the perceptual measure where it was taken, else by PSNR."""
    same = compared(rows)
    by_key = {key: part.set_index(CASE) for key, part in same.groupby("contender", sort=False)}
    network = next((key for key in by_key if contender_of(key).filler in FILLERS), None)
    measure, lower = ("perceptual", True) if same["perceptual"].notna().all() else ("psnr_db", False)
    told = []
    for key, part in by_key.items():
        if network and key in BASELINES:
            apart = (by_key[network][measure] - part[measure]).groupby("picture").mean()
            told.append(f"{BASELINES[key]} on {int(((apart < 0) == lower).sum())}")
    if not told:
        return ""
    return f"By {TITLES[measure]}, {contender_of(network).label} is nearer to the truth than {', '.join(told)} of {same['picture'].nunique()} pictures."


# -- kept --------------------------------------------------------------------------------------------------------------


def write_summary(folder: str | Path) -> dict[str, object]:
    """Write `rows.parquet`, the same for the same plan wherever it ran, `seconds.parquet` and `summary.json`; returns the last.

    Raises:
        DamagedFile, LabError: see `read_rows`.
    """
    folder, rows = Path(folder), read_rows(folder)
    keys = [name for name, _ in KEYS]
    same = [name for name in SCHEMA.names if name not in ("seconds", "features")]
    _write_table(folder / "rows.parquet", rows[same])
    _write_table(folder / "seconds.parquet", rows[[*keys, "seconds"]])
    summary: dict[str, object] = {
        "answer": answer(rows),
        "holes": len(rows.drop_duplicates(CASE)),
        "means": records(means(rows)),
        "paired": records(paired(rows)),
        "fid": fid(rows).to_dict(),
        "seconds": seconds(rows).to_dict(),
        "unreadable": unreadable(rows).to_dict("records"),
    }
    write_json(folder / "summary.json", summary)
    return summary


def records(frame: pd.DataFrame) -> list[dict]:
    """The rows of a table as JSON can say them: NaN becomes None."""
    rows = frame.reset_index().to_dict("records") if len(frame) else []
    return [{key: None if value is None or value != value else value for key, value in row.items()} for row in rows]


def _write_table(path: Path, rows: pd.DataFrame) -> None:
    schema = pa.schema([SCHEMA.field(name) for name in rows.columns])
    with written_whole(path) as part, part.open("wb") as file:
        pq.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False).replace_schema_metadata(), file)
