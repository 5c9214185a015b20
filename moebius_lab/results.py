"""Measurements as tidy rows in a JSON file: written as they come, merged over machines, and made into the README's table.

A file has one machine and one network:

    {"format": 1, "date": ..., "network": ..., "weights": ..., "image_size": ..., "made_from": ..., "method": ...,
     "machine": {...}, "rows": [...], "missing": [...], "evidence": [...], "profiles": [...]}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from . import LabError
from .files import COUNT, NUMBER, TEXT, listed, misfit, read_json, record, write_json, write_whole

FORMAT = 1
KEY = ("what", "backend", "form", "steps")
"""Columns that name a row; a later row of the same name replaces an earlier one."""
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
STEP, ENCODE, DECODE, PICTURE = "guided step", "encode", "decode", "whole picture"
BEGIN, END = "<!-- made by `python -m moebius_lab results --readme README.md`: -->", "<!-- until here -->"


@dataclass(frozen=True)
class Row:
    """One quantity of one backend: the median of its repetitions, with quartiles."""

    what: str  # "guided step", "whole picture", "peak memory, card", ...
    backend: str
    form: str  # a precision of ours; "straightforward"; of PyTorch the type that it computes in
    unit: str  # ms, s, MB, GFLOP/s or GB/s
    median: float
    q1: float
    q3: float
    repeats: int
    steps: int = 0  # of a whole picture


class Results:
    """A file of measurements that is whole at any moment, so that who is stopped loses nothing.

    Args:
        path: the file; what stands in it is kept and added to.
        head: everything but the lists.

    Raises:
        LabError: the file holds something else, or measurements of another machine, network or code.
    """

    def __init__(self, path: str | Path, head: dict) -> None:
        self.path = Path(path)
        self.data = {"format": FORMAT} | head | {name: [] for name in LISTS}
        if self.path.is_file():
            old = read(self.path)
            for key in ("machine", "network", "weights", "made_from"):
                if old.get(key) != self.data.get(key):
                    what = "code" if key == "made_from" else key
                    raise LabError(f"{path} holds measurements of another {what}; write to another file, or remove it")
            self.data |= {name: old[name] for name in LISTS}

    def add(self, name: str, entries: list[dict]) -> None:
        """Add entries to one of `LISTS`, in the place of those of the same name, and write the file."""
        merge_into(self.data[name], entries)
        if name == "rows":  # what was measured is not missing any more
            done = {_key(entry) for entry in entries}
            self.data["missing"] = [entry for entry in self.data["missing"] if _key(entry) not in done]
        self.write()

    def write(self) -> None:
        write_json(self.path, self.data)


def _key(entry: dict) -> tuple:
    return tuple(entry.get(column) for column in KEY) + (entry.get("operator"), entry.get("where"))


def merge_into(entries: list[dict], newer: list[dict]) -> None:
    """Add `newer` to a list of a results file; an entry of the same name gives way."""
    names = {_key(entry) for entry in newer}
    entries[:] = [entry for entry in entries if _key(entry) not in names] + newer


def read(path: str | Path) -> dict:
    """One file of results.

    Raises:
        LabError: no such file, or one of another form.
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
        LabError: there is none, or one of another form.
    """
    if not paths:
        raise LabError("there are no results; make some with `python -m moebius_lab benchmark`")
    return sorted((read(path) for path in paths), key=lambda data: data["date"])


def merge(paths: list[str | Path], output: str | Path) -> dict:
    """One file out of several of the same machine and network, as when a time limit cut a run in two; the last one wins.

    Raises:
        LabError: they differ in machine, network or weights.
    """
    files = [read(path) for path in paths]
    whole = files[0]
    for data, path in zip(files[1:], paths[1:]):
        for name in ("machine", "network", "weights"):
            if data[name] != whole[name]:
                raise LabError(f"{path} is of another {name} than {paths[0]}; only files of one machine and network can be merged")
        for name in LISTS:
            merge_into(whole[name], data[name])
        whole |= {name: data[name] for name in ("date", "made_from", "method")}
    done = {_key(row) for row in whole["rows"]}
    whole["missing"] = [entry for entry in whole["missing"] if _key(entry) not in done]
    write_json(output, whole)
    return whole


def machine_name(machine: dict) -> str:
    """A machine in a few words: its card, or else its processor."""
    cards = machine.get("cards") or []
    return cards[0]["name"] if cards else f"{machine['processor']}, {machine['cores']} cores"


def table(files: list[dict]) -> pd.DataFrame:
    """The rows of several files as one table, with date, machine, network and weights of each."""
    heads = ("date", "network", "weights", "release_steps")
    rows = [
        {"machine": machine_name(data["machine"])} | {name: data[name] for name in heads} | row
        for data in files
        for row in data["rows"]
    ]
    return pd.DataFrame(rows)


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each quantity of a machine the measurement that stands last in a `table`."""
    return frame.drop_duplicates(["machine", "network", *KEY], keep="last")


# -- the README --------------------------------------------------------------------------------------------------------


def readme_table(files: list[dict]) -> str:
    """Guided step and whole picture of every machine and backend in Markdown, the fastest first; the last measurement counts."""
    frame = latest(table(files))
    lines = []
    for (network, machine), group in frame.groupby(["network", "machine"], sort=True):
        dates = sorted(set(group.date.str[:10]))
        lines += ["", f"{network} on {machine}, {', '.join(dates)}:", "", f"| backend | form | guided step, ms | picture of {group.release_steps.iloc[0]} steps, s |"]
        lines += ["|---|---|---|---|"]
        steps = group[group.what == STEP].sort_values("median")
        filled = group[(group.what == PICTURE) & (group.steps == group.release_steps)]
        pictures = {(row.backend, row.form): f"{row.median / 1000:.3g}" for row in filled.itertuples()}
        for row in steps.itertuples():
            step = f"{_digits(row.median)} ({_digits(row.q1)} to {_digits(row.q3)})"
            lines.append(f"| {row.backend} | {row.form} | {step} | {pictures.get((row.backend, row.form), '')} |")
    return "\n".join(lines[1:]) + "\n"


def _digits(number: float) -> str:
    """Three digits, and all before the point."""
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def write_readme(path: str | Path, files: list[dict]) -> None:
    """Put the table into a file, between the two marks.

    Raises:
        LabError: the file lacks them.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise LabError(f"{path} must hold the two lines {BEGIN!r} and {END!r} once each")
    made = f"{BEGIN}\n\n{readme_table(files)}\n{END}"
    new = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, text, flags=re.DOTALL)
    write_whole(path, new)
