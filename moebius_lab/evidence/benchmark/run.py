"""Everything that a machine can be measured for, in one go: `run`, and what it is made of.

Backends are opened once and then take turns, round by round, so that what else the machine does meets all alike. A number is
the median of the rounds after one that does not count. What a machine lacks, what fails and what takes too long is listed with
the reason. Whatever is finished stands in the results file at once.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ... import LabError, __version__
from ...config import CONTENDERS, FLOAT16, MEASURES, RUNS, STRAIGHTFORWARD, entry_of, measured
from ...files import digest_of
from ...inpainting.imaging import plan_windows
from ...inpainting.loop import Settings, preset
from ...page.browser import cards
from ...page.bundle import write_bundle
from ...port.export import example_feeds
from ...provenance import PACKAGE, package_files
from ..loops import Loops
from ..parity import reference_outputs
from . import footprint
from .contenders import Candidate, Entrant, Reader, Work, candidates, start_profiler
from .footprint import LATE
from .profiles import (
    limit_work,
    write_limits,
)
from .results import DECODE, DIFFERENCE, ENCODE, FAST_PICTURE, METHOD, PICTURE, STEP, UNGUIDED, Results, summary

CURVE = (1, 2, 5, 10, 20, 50)  # steps of a whole picture, strength 1
OPENING = 0.5  # share of the time limit after which no more backends are opened: those that are open have to be measured
CROWDED = "opening the backends before it took half of the time limit; allow more, or name fewer backends or precisions"


# -- timing ------------------------------------------------------------------------------------------------------------


def measure(
    what: str, works: dict, repeats: int = 5, warmup: int = 1, patience: float = float("inf"), deadline: float = float("inf")
) -> tuple[dict, dict]:
    """Time the same work on several backends, in turns.

    Args:
        what: the name of the work, for the progress bar.
        works: a `Work` for each backend, by any key.
        repeats: timed rounds.
        warmup: rounds before them that do not count.
        patience: seconds that one backend may take for all its rounds: a slow one has fewer of them, and none where a single
            run takes longer.
        deadline: on `time.monotonic`'s clock; no round begins after it.

    Returns:
        The milliseconds of each round by key, and for each key that has none the reason.
    """
    times: dict = {key: [] for key in works}
    allowed, missing = dict.fromkeys(works, repeats), {}
    for i in tqdm(range(warmup + repeats), desc=what, unit="round", leave=False):
        for key, work in works.items():
            if key in missing or i >= warmup + allowed[key]:
                continue
            if time.monotonic() > deadline:
                if not times[key]:
                    missing[key] = LATE
                continue
            start = time.perf_counter()
            try:
                own = work()
            except Exception as error:  # any failure of any runtime is an entry of the table, with its reason
                missing[key] = one_line(error)
                continue
            seconds = time.perf_counter() - start
            if i == 0:
                allowed[key] = int(min(repeats, patience / max(seconds, 1e-9)))
                if not allowed[key]:
                    missing[key] = f"one run takes {seconds:.0f} s, longer than the {patience:.0f} s allowed"
            if i >= warmup:
                times[key].append(own if isinstance(own, float) else seconds * 1000)
    for key in missing:
        times.pop(key)
    return times, missing


def one_line(error: Exception) -> str:
    """An exception as the reason in a table."""
    words = str(error).strip().splitlines() or [""]
    return words[0] if isinstance(error, LabError) else f"{type(error).__name__}: {words[0]}"


# -- the whole run -----------------------------------------------------------------------------------------------------


class _Run:
    """One call of `run`."""

    def __init__(self, bench: Loops, results: Results, repeats: int, patience: float, deadline: float) -> None:
        self.bench, self.results, self.repeats, self.patience, self.deadline = bench, results, repeats, patience, deadline
        self.entrants: list[Entrant] = []

    def left(self) -> bool:
        return time.monotonic() < self.deadline

    def lacks(self, what: str, key: tuple[str, str], reason: str, steps: int = 0) -> None:
        entry = {"what": what, "backend": key[0], "form": key[1], "steps": steps, "reason": reason}
        self.results.add("missing", [entry])

    def open(self, listed: list[Candidate], stack: ExitStack, until: float = float("inf")) -> None:
        """Open what can be opened, until the clock of `deadline` shows `until`; the rest is listed as missing."""
        for candidate in (bar := tqdm(listed, desc="opening", unit="backend", leave=False)):
            key = (candidate.backend, candidate.form)
            bar.set_postfix_str(", ".join(key))
            if time.monotonic() > until:
                self.lacks(STEP, key, CROWDED)
                continue
            own = ExitStack()
            try:
                entrant = candidate.open(own)
            except Exception as error:  # any failure of any runtime is an entry of the table, with its reason
                own.close()
                self.lacks(STEP, key, one_line(error))
                continue
            stack.enter_context(own)
            self.entrants.append(entrant)
            self.results.add("evidence", [{"backend": entrant.backend, "form": entrant.form, "evidence": entrant.evidence}])
            self.results.add("rows", [vars(summary(what, key, [ms])) for what, ms in entrant.opening.items()])

    def time(self, what: str, works: dict[tuple[str, str], Work], repeats: int, warmup: int = 1, steps: int = 0) -> None:
        if not works:
            return
        label = f"{what}, {steps} steps" if steps else what
        times, missing = measure(label, works, repeats, warmup, self.patience, self.deadline)
        rows = [summary(what, key, values, steps=steps) for key, values in times.items()]
        self.results.add("rows", [vars(row) for row in rows])
        for key, reason in missing.items():
            self.lacks(what, key, reason, steps)

    def works(self, what: str) -> dict[tuple[str, str], Work]:
        return {entrant.key: entrant.works[what] for entrant in self.entrants if what in entrant.works}

    def pictures(self, settings: Settings, repeats: int, warmup: int, what: str = PICTURE) -> None:
        steps = len(settings.schedule())
        step_ms = {(r["backend"], r["form"]): r["median"] for r in self.results.data["rows"] if r["what"] == STEP}
        no_step = {(m["backend"], m["form"]): m["reason"] for m in self.results.data["missing"] if m["what"] == STEP}
        works = {}
        for entrant in (entrant for entrant in self.entrants if entrant.fill):
            seconds = step_ms.get(entrant.key, 0.0) * settings.evaluations() / 2 / 1000
            if entrant.key in no_step:
                self.lacks(what, entrant.key, f"of its step: {no_step[entrant.key]}", steps)
            elif seconds > self.patience:
                self.lacks(what, entrant.key, f"{steps} steps take about {seconds:.0f} s, longer than allowed", steps)
            else:
                works[entrant.key] = partial(entrant.fill, settings)
        self.time(what, works, repeats, warmup, steps)

    def differences(self) -> None:
        """How far the outputs of each graph, guided and not, are from PyTorch's in float32 on the processor, in their own units."""
        able = [entrant for entrant in self.entrants if entrant.outputs]
        if not able:
            return
        feeds, references = example_feeds(self.bench.config), reference_outputs(self.bench.net, self.bench.vae)
        for entrant in tqdm(able, desc="differences", unit="backend", leave=False):
            for run, reference in references.items():
                what = f"{DIFFERENCE}, {run}"
                if not self.left():
                    self.lacks(what, entrant.key, LATE)
                    continue
                try:
                    got = entrant.outputs(RUNS[run], feeds[run])
                except Exception as error:  # any failure of any runtime is an entry of the table, with its reason
                    self.lacks(what, entrant.key, one_line(error))
                    continue
                largest = max(float(np.abs(y - reference[name]).max()) for name, y in got.items())
                self.results.add("rows", [vars(summary(what, entrant.key, [largest], ""))])

    def limits(self) -> None:
        for limit, name, unit in (("product", "large matrix product", "GFLOP/s"), ("copy", "large copy", "GB/s")):
            able = [entrant for entrant in self.entrants if entrant.limit]
            works = {entrant.key: partial(entrant.limit, limit) for entrant in able}
            times, missing = measure(name, works, min(self.repeats, 5), 1, self.patience, self.deadline)
            for entrant in (entrant for entrant in able if entrant.key in times):
                half = entry_of(entrant.form).arithmetic == FLOAT16 and limit == "copy"
                work = limit_work(entrant.where)[limit] * (0.5 if half else 1)
                rates = [work / ms * 1000 for ms in times[entrant.key] if ms > 0]
                if rates:
                    self.results.add("rows", [vars(summary(name, entrant.key, rates, unit))])
                else:
                    self.lacks(name, entrant.key, "too short to be told from the spread of two runs")
            for key, reason in missing.items():
                self.lacks(name, key, reason)

    def profile(self) -> None:
        able = [entrant for entrant in self.entrants if entrant.profile and "profile" in entry_of(entrant.form).costly]
        for entrant in tqdm(able, desc="profiles", unit="backend", leave=False):
            backend, form = entrant.key
            if not self.left():
                self.lacks("profile", entrant.key, LATE)
                continue
            try:
                times = entrant.profile()
            except Exception as error:  # any failure of any runtime is an entry of the table, with its reason
                self.lacks("profile", entrant.key, one_line(error))
                continue
            self.results.add("profiles", [{"backend": backend, "form": form} | vars(entry) for entry in times])

    def take_turns(self, measures: tuple[str, ...]) -> None:
        """Everything that is measured on the backends that are open, in the order of `config.MEASURES`."""
        few = min(self.repeats, 3)
        if "step" in measures:
            for what in (STEP, UNGUIDED):
                self.time(what, self.works(what), self.repeats)
        if "picture" in measures:
            self.pictures(Settings(), few, 1)
            self.pictures(preset("fast"), few, 1, FAST_PICTURE)
        if "parts" in measures:
            for what in (ENCODE, DECODE):
                self.time(what, self.works(what), self.repeats)
        if "difference" in measures:
            self.differences()
        if "limits" in measures:
            self.limits()
        if "curve" in measures:
            for steps in CURVE:
                self.pictures(Settings(steps=steps, strength=1.0), few, 0)
        if "profile" in measures:
            self.profile()


def _require_known(backends: tuple[str, ...], precisions: tuple[str, ...], measures: tuple[str, ...]) -> None:
    for kind, chosen, known in (
        ("backend", backends, CONTENDERS), ("precision", precisions, measured()), ("measurement", measures, MEASURES),
    ):  # fmt: skip
        if unknown := [name for name in chosen if name not in known]:
            raise LabError(f"{kind} {unknown[0]!r} is unknown; choose from {', '.join(known)}")


def run(
    bench: Loops,
    output: str | Path,
    backends: tuple[str, ...] = tuple(CONTENDERS),
    precisions: tuple[str, ...] = tuple(measured()),
    measures: tuple[str, ...] = tuple(MEASURES),
    repeats: int = 7,
    patience: float = 60.0,
    seconds: float = float("inf"),
    runner: Reader | None = None,
) -> dict:
    """Measure all that this machine can be measured for.

    Args:
        bench: the network and the picture; its graphs are made where they are missing.
        output: the results file, see `results.py`. It is written after every measurement, and what it holds of the same
            machine and code stays.
        backends: keys of `config.CONTENDERS`.
        precisions: keys of `config.measured()`: of the graphs, and "straightforward".
        measures: keys of `config.MEASURES`.
        repeats: timed rounds, of a whole picture three at most.
        patience: seconds that one backend may take for one measurement.
        seconds: that the whole may take, opening half of it at most; what is left over then is listed as missing.
        runner: the reader's own browser, connected, as one more backend; `run` then has to be in another thread than the page's.

    Returns:
        What the file holds.

    Raises:
        LabError: an unknown backend, precision or measurement.
    """
    _require_known(backends, precisions, measures)
    if "profile" in measures and threading.current_thread() is threading.main_thread():
        start_profiler()
    began = time.monotonic()
    results = Results(output, head(bench))
    results.write()
    limits = write_limits(bench.folder / "onnx" / "limits")
    made: list[Path] = []

    def bundle() -> Path:
        if not made:
            folder = bench.folder / "measured"
            write_bundle(bench, folder, precisions, graphs=limits)
            made.append(folder)
        return made[0]

    this = _Run(bench, results, repeats, patience, began + seconds)
    with ExitStack() as stack:
        if set(measures) - {"load", "memory"}:  # those two open what they measure themselves, alone
            listed = candidates(bench, backends, precisions, bundle, limits, runner)
            this.open(listed, stack, began + OPENING * seconds)
        this.take_turns(measures)
    usual = tuple(name for name in backends if not CONTENDERS[name].experiment)
    chromium = tuple(name for name in usual if CONTENDERS[name].provider)
    if "load" in measures and chromium and this.left():
        footprint.loads(bench, bundle, chromium, precisions, results, this.lacks)
    if "memory" in measures and this.left():
        footprint.peaks(bench, bundle, usual, precisions, results, this.lacks, this.left)
    results.write()
    return results.data


async def run_beside(*arguments: Any, **options: Any) -> dict:
    """`run` in a thread of its own, for a notebook, whose own thread goes on answering the page."""
    start_profiler()
    return await asyncio.to_thread(run, *arguments, **options)


def answer(data: dict) -> str:
    """What the rows of a results file say about a step and a picture, in Markdown, and what is missing from them."""
    rows = data["rows"]
    steps = {(row["backend"], row["form"]): row["median"] for row in rows if row["what"] == STEP}
    whole = [row for row in rows if row["what"] == PICTURE and row["steps"] == data["release_steps"]]
    shares = [steps[key] * row["steps"] / row["median"] for row in whole if (key := (row["backend"], row["form"])) in steps]
    parts = []
    if steps:
        (backend, form), least = min(steps.items(), key=lambda item: item[1])
        parts.append(f"The quickest guided step of {len(steps)} measured here took {least:.3g} ms ({backend}, {form}).")
    if shares and (share := statistics.median(shares)) <= 1:
        which = f"(median of {len(shares)} backends and forms)"
        parts.append(f"The {data['release_steps']} steps are {share:.0%} of a whole picture's time {which}.")
    elif shares:
        parts.append(
            "Steps timed alone took longer than within whole pictures: this machine was too busy to tell their share."
        )
    gains = {
        backend: steps[backend, STRAIGHTFORWARD] / ms for (backend, form), ms in steps.items()
        if form == "fp32" and (backend, STRAIGHTFORWARD) in steps
    }  # fmt: skip
    if gains:
        parts.append(
            "The straightforward export's step takes "
            + ", ".join(f"{gain:.2g} times as long in {name}" for name, gain in gains.items())
            + "."
        )
    lacking = sorted({entry["backend"] for entry in data["missing"] if entry["what"] == STEP})
    if lacking:
        parts.append(f"Not measured here: {'; '.join(lacking)}; the table of what is missing has the reasons.")
    return " ".join(parts) or "Nothing was measured here; the table of what is missing has the reasons."


def head(bench: Loops) -> dict:
    """What a results file says before its rows."""
    windows = len(plan_windows(bench.mask, bench.config.image_size))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "network": bench.config.name,
        "weights": bench.weights_name,
        "image_size": bench.config.image_size,
        "release_steps": len(Settings().schedule()),
        "picture": {"width": bench.image.shape[1], "height": bench.image.shape[0], "windows": windows},
        "library": __version__,
        "made_from": bench.fingerprint(),
        "code": digest_of(package_files(), PACKAGE),  # what runs the graphs, page included
        "method": METHOD,
        "machine": machine(),
    }


def machine() -> dict[str, object]:
    """What the timings were taken on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cards": cards(),
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("torch", "onnxruntime", "onnxruntime-ep-webgpu", "onnx", "diffusers", "numpy")
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
