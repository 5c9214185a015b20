"""Measurements that readers made on their own devices, by the page's button: checked, filed, and side by side in one table.

The page writes a file of results (`results.SHAPE`) with a `source` and with what it knows of the device. Every row of the table states
its date, its source and the version of the page, since no two rows need be of one code.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd

from ... import LabError
from ...config import NETWORKS, PRECISIONS, RUNS
from ...files import COUNT, NUMBER, TEXT, listed, mapping, misfit, record, write_whole
from ...port.export import OUTPUT_NAMES
from . import results

DIFFERENCE, SIGNAL = "largest difference, ", "signal to noise, "
"""How the rows of an output's differences from PyTorch begin; `RUN.OUTPUT` follows."""
LONGEST_TEXT = 1000  # letters


def _only(**properties: dict) -> dict:
    """The JSON Schema of an object that has these properties and no others."""
    return record(**properties) | {"additionalProperties": False}


_NAMED = {"backend": TEXT, "form": {"enum": list(PRECISIONS)}}
_KNOWN = [
    *results.RUN_NAMES.values(),
    *(f"{kind}{run}.{name}" for run in RUNS for name in OUTPUT_NAMES[RUNS[run]] for kind in (DIFFERENCE, SIGNAL)),
]
SHAPE = _only(
    format={"const": results.FORMAT},
    source=TEXT,
    date={"type": "string", "pattern": r"^\d{4}-\d\d-\d\d \d\d:\d\d UTC$"},
    network={"enum": list(NETWORKS)},
    weights=TEXT,
    image_size=COUNT,
    release_steps=COUNT,
    made_from={"type": "string", "pattern": "^[0-9a-f]{16}$"},
    code={"type": "string", "pattern": "^[0-9a-f]{16}$"},
    method=TEXT,
    machine=_only(
        system=TEXT,
        processor=TEXT,
        cores=COUNT,
        memory_gib={"type": ["number", "null"]},
        cards=listed(_only(name=TEXT, vendor=TEXT, architecture=TEXT, description=TEXT, fallback={"type": "boolean"})),
        browser=_only(engine=TEXT, version=TEXT),
        runtime=TEXT,
        threads=COUNT,
        features=listed(TEXT),
        limits=mapping(NUMBER),
        workspace=COUNT,
    ),
    rows=listed(_only(what={"enum": _KNOWN}, unit={"enum": ["ms", "dB", ""]}, median=NUMBER, q1=NUMBER, q3=NUMBER, repeats=COUNT, steps=COUNT, **_NAMED)),
    missing=listed({}, 0),
    evidence=listed(_only(evidence=TEXT, **_NAMED), 1),
    profiles=listed({}, 0),
)  # fmt: skip
"""What such a file holds and nothing else, as a JSON Schema: what is not known here could tell of a person."""


def check(path: str | Path) -> dict:
    """A reader's file, once it is known to hold a whole measurement and nothing else.

    Raises:
        LabError: it does not.
    """
    data = results.read(path)
    if "source" not in data:
        raise LabError(f"{path} was not made by the page; files of `python -m moebius_lab benchmark` are shown as they are")
    if words := misfit(data, SHAPE) or _wrong(data):
        raise LabError(
            f"{path} is no measurement of this version's page ({words}); measure again, and send the file as it is"
        )
    return data


def _wrong(data: dict) -> str:
    """What a file of the right shape has that no measurement has, in a few words."""
    for text in _texts(data):
        if "://" in text or len(text) > LONGEST_TEXT:
            return f"{text[:40]!r} is no fact of a device"
    rows = {row["what"]: row for row in data["rows"]}
    for run, what in results.RUN_NAMES.items():
        outputs = [f"{DIFFERENCE}{run}.{name}" for name in OUTPUT_NAMES[RUNS[run]]]
        if lacking := [name for name in (what, *outputs) if name not in rows]:
            return f"it lacks {lacking[0]!r}"
        if not 0 < rows[what]["q1"] <= rows[what]["median"] <= rows[what]["q3"]:
            return f"{what!r} has no times in order"
    return ""


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inside for text in _texts(part)]


def add(path: str | Path, folder: str | Path, source: str = "") -> Path:
    """File a reader's measurement: in `folder`, under a name made of what it holds.

    Args:
        path: the file, as the page saved it.
        folder: made if missing.
        source: where it came from, in a few words; empty for the page's own.

    Returns:
        The new file.

    Raises:
        LabError: it is no whole measurement, or another one has that name.
    """
    data = check(path)
    data["source"] = source or data["source"]
    browser = data["machine"]["browser"]
    parts = (
        data["date"][:10],
        device_name(data),
        browser["engine"],
        browser["version"].split(".")[0],
        data["network"],
        _form(data),
    )
    target = Path(folder) / f"{'-'.join(filter(None, map(_plain, parts)))}.json"
    text = json.dumps(data, indent=1) + "\n"
    if target.is_file() and target.read_text(encoding="utf-8") != text:
        raise LabError(f"{target} is another measurement of the same day; rename that one, and add this one again")
    write_whole(target, text)
    return target


def _plain(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def device_name(data: dict) -> str:
    """What a measurement ran on, in a few words: the graphics device, or a processor and the number of its cores."""
    machine = data["machine"]
    if machine["cards"]:
        return machine["cards"][0]["name"] + (" (software)" if machine["cards"][0]["fallback"] else "")
    return f"processor, {machine['cores']} cores"


def _form(data: dict) -> str:
    return data["evidence"][0]["form"]


def devices(files: list[dict]) -> pd.DataFrame:
    """A row for each reader's file, by network, then fastest first; files of other sources are left out."""
    lines = []
    for data in files:
        if "source" not in data:
            continue
        rows = {row["what"]: row for row in data["rows"]}
        errors = [row["median"] for what, row in rows.items() if what.startswith(DIFFERENCE)]
        signals = [row["median"] for what, row in rows.items() if what.startswith(SIGNAL)]
        browser = data["machine"]["browser"]
        lines.append(
            {
                "network": data["network"],
                "device": device_name(data),
                "browser": f"{browser['engine']} {browser['version'].split('.')[0]}, {data['machine']['system']}",
                "runs on": data["evidence"][0]["backend"].partition(", ")[2],
                "form": _form(data),
                **{f"{what}, ms": rows[what]["median"] for what in results.RUN_NAMES.values()},
                "largest difference": max(errors),
                "least dB": min(signals, default=math.inf),
                "date": data["date"],
                "source": data["source"],
                "code": data["code"][:8],
            }
        )
    columns = ["network", f"{results.STEP}, ms"]
    return pd.DataFrame(lines).sort_values(columns, ignore_index=True) if lines else pd.DataFrame()


def readme_text(files: list[dict]) -> str:
    """All of the README's tables in Markdown: readers' devices, where there are any, and `results.readme_table`."""
    table, others = devices(files), results.readme_table(files)
    if table.empty:
        return others
    head = "**Devices of readers**, measured by the page’s button, each row with its date, source and version of the page"
    lines = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    lines += [f"| {' | '.join(map(_cell, line))} |" for line in table.itertuples(index=False)]
    return f"{head}\n\n" + "\n".join(lines) + f"\n\n{others}"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
