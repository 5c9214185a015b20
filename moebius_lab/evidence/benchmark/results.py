"""Measurements as tidy rows in a JSON file: written as they arrive, and turned into the README's tables.

A file covers one machine, one network and one version of the code, and no table mixes the rows of two files:

    {"format": 1, "date": ..., "network": ..., "weights": ..., "image_size": ..., "made_from": ..., "code": ..., "method": ...,
     "machine": {...}, "rows": [...], "missing": [...], "evidence": [...], "profiles": [...]}
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ... import LabError
from ...config import CONTENDERS, PRECISIONS, STEP_UNGUIDED
from ...files import COUNT, NUMBER, TEXT, listed, misfit, read_json, record, write_json, write_whole

FORMAT = 1
DISPATCHED, CAPTURED, REPLACED = (way.label for way in CONTENDERS["chromium-webgpu"].ways)
"""Backends of the page on WebGPU: one dispatches each operator in every run, one captures each graph once and replays it, and one
replays kernels of our own where they are faster."""
KEY = ("what", "backend", "form", "steps")
"""Columns that identify a row; a later row with the same key replaces the earlier one."""
SAME = {"machine": "machine", "network": "network", "weights": "weights", "made_from": "code", "code": "code"}
"""Entries shared by all of a file, and their names in messages: `made_from` identifies the graphs, `code` what runs them."""
LISTS = ("rows", "missing", "evidence", "profiles")
_NAMED = {"backend": TEXT, "form": TEXT}
SHAPE = record(
    date=TEXT,
    network=TEXT,
    weights=TEXT,
    made_from=TEXT,
    method=TEXT,
    release_steps=COUNT,
    machine=record(processor=TEXT, cores=COUNT, cards=listed(record(name=TEXT))),
    rows=listed(record(what=TEXT, unit=TEXT, median=NUMBER, q1=NUMBER, q3=NUMBER, repeats=COUNT, steps=COUNT, **_NAMED)),
    missing=listed(record(what=TEXT, reason=TEXT, **_NAMED)),
    evidence=listed(record(evidence=TEXT, **_NAMED)),
    profiles=listed(record(operator=TEXT, where=TEXT, calls=NUMBER, ms=NUMBER, **_NAMED)),
)
"""What a file holds, as a JSON Schema."""
ADVICE = "name another file, or remove it and measure again"
RUN_NAMES = {"vae_encoder": "encode", "step": "guided step", STEP_UNGUIDED: "unguided step", "vae_decoder": "decode"}
"""What the rows of the time of each of `config.RUNS` are called; `web/measuring/measuring.js` has the same names."""
ENCODE, STEP, UNGUIDED, DECODE = RUN_NAMES.values()
PICTURE, FAST_PICTURE = "whole picture", "fast picture"  # as released; and by the preset "fast"
READY, ASKED_READY = (
    "from the cache to ready",
    "from the cache to ready, ONNX Runtime asked there",
)  # from a recording, if there is one
CHOOSING, KNOWN = "kernels, first visit", "kernels, later visit"  # chosen, or known from before, and put together
DIFFERENCE = (
    "largest difference from PyTorch"  # of one of `RUNS`, which follows after a comma: of its outputs, in their own units
)
_MEASURED = (
    "one round that does not count, then the rounds, backends in turns; median and quartiles. A step ends when the card is done; "
    "its latents stay where they are, but for ONNX Runtime's native sessions, which take and give arrays. In Chromium the page's "
    "worker measures{}; a round of its WebGPU step is the median of {}. A whole picture goes from pixels to pixels."
)
METHOD = _MEASURED.format(
    ": as in a picture, a captured step is asked for while the one before runs and counts from that one's end", "five"
)
"""How `benchmark.run` measures; a file measured by another method states its own."""
SHORT = {
    METHOD: "",
    _MEASURED.format(
        "", "three"
    ): "Method: as now, but in Chromium a step was asked for when the one before was done, and a round "
    "was the median of three.",
}
"""What a table says of a method that is or was `METHOD`."""
BEGIN, END = "<!-- made by `python -m moebius_lab results --readme README.md`: -->", "<!-- until here -->"


@dataclass(frozen=True)
class Row:
    """One quantity of one backend: the median of its repetitions, with quartiles."""

    what: str  # "guided step", "whole picture", "peak memory, card", ...
    backend: str
    form: str  # one of our precisions; "straightforward"; for PyTorch, the type that it computes in
    unit: str  # ms, s, MB, GFLOP/s or GB/s; empty for a plain number
    median: float
    q1: float
    q3: float
    repeats: int
    steps: int = 0  # of a whole picture


def summary(what: str, key: tuple[str, str], values: list[float], unit: str = "ms", steps: int = 0) -> Row:
    """A row from repeated values: median and quartiles; of one value, that value."""
    q1, q3 = statistics.quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else (values[0], values[0])
    return Row(what, *key, unit, statistics.median(values), q1, q3, len(values), steps)


class Results:
    """A file of measurements that is complete at every moment, so that whoever is interrupted loses nothing.

    Args:
        path: the file; its measurements are kept and added to.
        head: everything but the lists.

    Raises:
        LabError: the file holds something else, or measurements of another machine, network or code.
    """

    def __init__(self, path: str | Path, head: dict) -> None:
        self.path = Path(path)
        self.data = {"format": FORMAT} | head | {name: [] for name in LISTS}
        if self.path.is_file():
            old = read(self.path)
            for key, what in SAME.items():
                if old.get(key) != self.data.get(key):
                    raise LabError(f"{path} holds measurements of another {what}; write to another file, or remove it")
            self.data |= {name: old[name] for name in LISTS}

    def add(self, name: str, entries: list[dict]) -> None:
        """Add entries to one of `LISTS`, replacing those with the same key, and write the file."""
        merge_into(self.data[name], entries)
        if name == "rows":  # what has been measured is no longer missing
            done = {_key(entry) for entry in entries}
            self.data["missing"] = [entry for entry in self.data["missing"] if _key(entry) not in done]
        self.write()

    def write(self) -> None:
        write_json(self.path, self.data)


def _key(entry: dict) -> tuple:
    return tuple(entry.get(column) for column in KEY) + (entry.get("operator"), entry.get("where"))


def merge_into(entries: list[dict], newer: list[dict]) -> None:
    """Add `newer` to a list of a results file, replacing entries with the same key."""
    names = {_key(entry) for entry in newer}
    entries[:] = [entry for entry in entries if _key(entry) not in names] + newer


def read(path: str | Path) -> dict:
    """One file of results.

    Raises:
        LabError: there is no such file, or it has another format.
    """
    path = Path(path)
    if not path.is_file():
        raise LabError(f"{path}: there is no such file; make one with `python -m moebius_lab benchmark`")
    data = read_json(path, {}, ADVICE)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LabError(f"{path} is no file of measurements of form {FORMAT}; {ADVICE}")
    if words := misfit(data, SHAPE):
        raise LabError(f"{path} is damaged ({words}); {ADVICE}")
    return data


def read_all(paths: list[str | Path]) -> list[dict]:
    """Several results files, the oldest first.

    Raises:
        LabError: there is none, or one has another format.
    """
    if not paths:
        raise LabError("there are no results; make some with `python -m moebius_lab benchmark`")
    return sorted((read(path) for path in paths), key=lambda data: data["date"])


def merge(paths: list[str | Path], output: str | Path) -> dict:
    """Merge files of the same machine, network and code, as when a time limit cut a run in two; the last one wins.

    Raises:
        LabError: they differ in machine, network, weights or code.
    """
    files = [read(path) for path in paths]
    whole = files[0]
    for data, path in zip(files[1:], paths[1:]):
        for name, what in SAME.items():
            if data.get(name) != whole.get(name):
                raise LabError(
                    f"{path} is of another {what} than {paths[0]}; only files of one machine, network and code can be merged"
                )
        for name in LISTS:
            merge_into(whole[name], data[name])
        whole |= {name: data[name] for name in ("date", "method")}
    done = {_key(row) for row in whole["rows"]}
    whole["missing"] = [entry for entry in whole["missing"] if _key(entry) not in done]
    write_json(output, whole)
    return whole


def machine_name(machine: dict) -> str:
    """A machine in a few words: its card, or else its processor, and the number of cores."""
    cards = machine.get("cards") or []
    return f"{cards[0]['name'] if cards else machine['processor']}, {machine['cores']} cores"


def run_name(data: dict) -> str:
    """One file in a few words: network, machine, time and code. All that was measured together shares this name."""
    digest = data.get("code") or data["made_from"]  # older files name only the graphs' code
    code = digest[:8] if re.fullmatch("[0-9a-f]{64}", digest) else "not recorded"
    return f"{data['network']} on {machine_name(data['machine'])}, {data['date']}, code {code}"


def table(files: list[dict]) -> pd.DataFrame:
    """The rows of several files, concatenated; `run` names the file, and rows of two files are never one quantity."""
    heads = ("network", "weights", "release_steps")
    rows = [{"run": run_name(data)} | {name: data[name] for name in heads} | row for data in files for row in data["rows"]]
    return pd.DataFrame(rows)


def measured_by_benchmark(files: list[dict]) -> list[dict]:
    """Those of the files that no reader's page made; see `devices`."""
    return [data for data in files if "source" not in data]


def newest(files: list[dict]) -> list[dict]:
    """For each network and kind of machine the latest file with times of whole pictures, or the latest if none has any, complete."""

    def has_pictures(data: dict) -> bool:
        return any(row["what"] == PICTURE for row in data["rows"])

    own = sorted(measured_by_benchmark(files), key=lambda data: (has_pictures(data), data["date"]))
    found = {(data["network"], machine_name(data["machine"])): data for data in own}
    return [found[key] for key in sorted(found)]


# -- the README --------------------------------------------------------------------------------------------------------

COSTS = (
    READY,
    ASKED_READY,
    CHOOSING,
    KNOWN,
    "first visit, 100 Mbit/s: to the first picture",
    "peak memory, page",
    "peak memory, browser's GPU process",
    "peak memory, process",
    "peak memory, card",
    "stored weights",
    "activations alive at once",
)
"""The rows of the second table, in order: what a model costs apart from time."""


def readme_table(files: list[dict]) -> str:
    """Every file's tables in Markdown: `newest` of each network and kind of machine open, the others folded away.

    A file is one machine and one code, and each table is made from one file.
    """
    shown = newest(files)
    own = sorted(measured_by_benchmark(files), key=lambda data: data["date"], reverse=True)
    before = [data for data in own if data not in shown]
    parts = [section(data) for data in shown]
    if before:
        parts += [
            "<details><summary>Other runs: on other hosts, with other code, or without whole pictures</summary>",
            *map(section, before),
            "</details>",
        ]
    return "\n\n".join(parts) + "\n"


def section(data: dict) -> str:
    """One file in Markdown: its name, its times, fastest first, load and memory; its method too, if that differs."""
    method = SHORT.get(data["method"], f"Method: {data['method']}")
    parts = [f"**{run_name(data)}**", method, _times(data), _costs(data)]
    return "\n\n".join(part for part in parts if part)


def _times(data: dict) -> str:
    frame = table([data])
    steps = frame[frame.what == STEP].sort_values("median")
    if steps.empty:
        return ""
    filled = frame[(frame.what == PICTURE) & (frame.steps == frame.release_steps)]
    columns = {f"picture of {data['release_steps']} steps, s": filled, "fast picture, s": frame[frame.what == FAST_PICTURE]}
    cells = {
        title: {(row.backend, row.form): f"{row.median / 1000:.3g}" for row in rows.itertuples()}
        for title, rows in columns.items()
        if rows is filled or not rows.empty
    }
    encode, decode = (frame[frame.what == what].set_index(["backend", "form"])["median"] for what in (ENCODE, DECODE))
    if len(autoencoder := (2 * encode + decode).dropna()):
        cells["two encodings and a decoding, s"] = {key: f"{ms / 1000:.3g}" for key, ms in autoencoder.items()}
    differences = frame[frame.what.str.startswith(DIFFERENCE)].groupby(["backend", "form"])["median"].max()
    if len(differences):
        cells[DIFFERENCE] = {key: f"{number:.1e}" for key, number in differences.items()}
    lines = [f"| backend | form | guided step, ms | {' | '.join(cells)} |", f"|---|---|---|{'---|' * len(cells)}"]
    for row in steps.itertuples():
        step = f"{_digits(row.median)} ({_digits(row.q1)} to {_digits(row.q3)})"
        pictures = " | ".join(values.get((row.backend, row.form), "") for values in cells.values())
        lines.append(f"| {row.backend} | {row.form} | {step} | {pictures} |")
    return "\n".join(lines)


def _costs(data: dict) -> str:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in data["rows"]:
        if row["what"] in COSTS:
            cells.setdefault((row["what"], row["backend"]), {})[row["form"]] = _quantity(row["median"], row["unit"])
    if not cells:
        return ""
    found = {form for values in cells.values() for form in values}
    forms = [form for form in PRECISIONS if form in found] + sorted(found.difference(PRECISIONS))
    lines = [f"| load and memory | backend | {' | '.join(forms)} |", f"|---|---|{'---|' * len(forms)}"]
    for (what, backend), values in sorted(cells.items(), key=lambda item: (COSTS.index(item[0][0]), item[0][1])):
        lines.append(f"| {what} | {backend} | {' | '.join(values.get(form, '') for form in forms)} |")
    return "\n".join(lines)


def _quantity(number: float, unit: str) -> str:
    """A number with its unit; thousands of milliseconds become seconds, and thousands of MB become GB."""
    larger = {"ms": "s", "MB": "GB"}.get(unit)
    return f"{number / 1000:.3g} {larger}" if larger and number >= 1000 else f"{number:.3g} {unit}"


def _digits(number: float) -> str:
    """Three significant digits, or all digits before the point if there are more."""
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def write_readme(path: str | Path, tables: str) -> None:
    """Write tables in Markdown into a file, between the two markers.

    Raises:
        LabError: the file lacks them.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise LabError(f"{path} must hold the two lines {BEGIN!r} and {END!r} once each")
    made = f"{BEGIN}\n\n{tables}\n{END}"
    new = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, text, flags=re.DOTALL)
    write_whole(path, new)
