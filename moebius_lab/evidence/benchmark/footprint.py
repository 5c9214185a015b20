"""What a model costs besides time: peaks of memory, from the cache to ready, and the budget of a first visit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ... import LabError
from ...config import CARD, CONTENDERS, NETWORKS, RUNS, Contender, entry_of
from ...inpainting.loop import Settings
from ...inpainting.photographs import demo_photographs
from ...inpainting.picture_files import read_mask, read_picture
from ...page.browser import Browser, card_index
from ...page.bundle import needs, page_bytes, read_manifest
from ...page.driving import has_nvidia
from ...page.modules import KERNELS, RECORDED, page_files
from ...page.serve import Server
from ...port.precision import files_of
from ..loops import Loops
from .contenders import SOFTWARE, candidates
from .results import ASKED_READY, KNOWN, READY, Results, Row, summary

LINE_MBIT = 100.0  # of a first visit, Mbit/s
LOADS = 3
FEW_STEPS = Settings(steps=2, strength=1.0)  # of the picture whose peak is taken: more steps take no more memory
GRAPHS = "graphs"
LATE = "the time limit of the whole run was over"

Lacks = Callable[[str, tuple[str, str], str], None]


# -- from the cache to ready -------------------------------------------------------------------------------------------


def loads(
    bench: Loops,
    bundle: Callable[[], Path],
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    results: Results,
    lacks: Lacks,
) -> None:
    """Load the model in a browser that visits for the first time and, started anew, comes again; add the rows."""
    for contender in (CONTENDERS[name] for name in backends):
        for form in (form for form in precisions if "load" in entry_of(form).costly):
            key = (contender.label, form)  # as the page does, unless a graph cannot be captured
            ways = ((READY, True), (ASKED_READY, False)) if contender.provider == "webgpu" else ((READY, True),)
            for what, recorded in ways:
                if contender.where == CARD and not has_nvidia():
                    lacks(what, key, SOFTWARE)
                    continue
                try:
                    if not recorded and "recording" not in read_manifest(bundle())["precisions"][form]:
                        continue  # ONNX Runtime was asked already
                    rows = _visit(bench, bundle(), contender, form, recorded)
                except LabError as error:
                    lacks(what, key, str(error))
                else:
                    results.add("rows", [vars(row) for row in rows])


def _visit(
    bench: Loops, bundle: Path, contender: Contender, form: str, recorded: bool, settings: Settings = Settings()
) -> list[Row]:
    provider = contender.provider
    with Server(bundle) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = {"profile_folder": folder, "recorded": recorded}
        with Browser(server.url, provider, form, **options) as browser:
            key = (_name(contender, browser), form)
            first = browser.loaded["milliseconds"]
            picture = browser.inpaint(bench.image, bench.mask, settings)[1]["total"] if recorded else 0.0
        again, known = [], []
        for _ in range(LOADS):
            with Browser(server.url, provider, form, **options) as browser:
                again.append(browser.loaded["milliseconds"])
                known.append(sum(browser.loaded["kernels"]["took"].values()))
    if not recorded:
        return [summary(ASKED_READY, key, again)]
    ready = summary(READY, key, again)
    page, weights = first_visit_bytes(read_manifest(bundle), form, provider)
    transfer = {what: bytes_ * 8 / (LINE_MBIT * 1e6) for what, bytes_ in (("page and runtime", page), ("weights", weights))}
    budget = f"first visit, {LINE_MBIT:.0f} Mbit/s"
    whole = sum(transfer.values()) + (ready.median + picture) / 1000
    computed = [Row(f"{budget}: {what}, computed", *key, "s", s, s, s, 1) for what, s in transfer.items()]
    return [
        ready,
        *([summary(KNOWN, key, known)] if any(known) else []),
        Row("first load from this machine's own server", *key, "ms", first, first, first, 1),
        Row("first picture", *key, "ms", picture, picture, picture, 1),
        *computed,
        Row(f"{budget}: to the first picture", *key, "s", whole, whole, whole, 1),
    ]


def _name(contender: Contender, browser: Browser) -> str:
    """What the tables call a run in which the page chose by itself."""
    return contender.seen(browser.loaded["captured"], browser.loaded["kernels"]["replaced"] > 0)


def first_visit_bytes(manifest: dict, precision: str, provider: str) -> tuple[int, int]:
    """Bytes that a first visit fetches: page as served, with the runtime or the recording in its place; the weights of one precision."""
    form = manifest["precisions"][precision]
    recording = form.get("recording") if provider == "webgpu" else None
    runs = recording or manifest["runtime"]["builds"]["wasm" if provider == "wasm" else "jspi"]["wasm"]
    folders = () if provider == "wasm" else (KERNELS, RECORDED) if recording else (KERNELS,)
    modules = {name for name in page_files() if name.startswith(folders)} if folders else set()
    stood_for = sum(form["graphs"][graph][0]["bytes"] for graph in set(RUNS.values())) if recording else 0
    return page_bytes() + page_bytes(modules) + runs["bytes"], form["bytes"] - stood_for


# -- peaks of memory ---------------------------------------------------------------------------------------------------


def peaks(
    bench: Loops,
    bundle: Callable[[], Path],
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    results: Results,
    lacks: Lacks,
    left: Callable[[], bool],
) -> None:
    """The peak of every backend in processes of its own, while one short picture or each graph runs once; add the rows."""
    for form in precisions:
        paths = bench.stored(form)
        stored = sum(file["bytes"] for path in paths.values() for file in files_of(path))
        live = needs(paths.values(), bench.config)["activations"]
        for what, size in (("stored weights", stored), ("activations alive at once", live)):
            results.add("rows", [vars(Row(what, GRAPHS, form, "MB", *[size / 1e6] * 3, 1))])
    for backend, contender in ((name, CONTENDERS[name]) for name in backends if not CONTENDERS[name].compiled):
        for form in contender.ways[0].forms[:1] or precisions:
            name = contender.label
            if not left():
                lacks("peak memory", (name, form), LATE)
                continue
            try:
                if contender.provider:
                    peaks_by_name = _browser_peaks(bench, bundle(), contender, form)
                else:
                    peaks_by_name = {name: _child_peak(bench, backend, form)}
            except LabError as error:
                lacks("peak memory", (name, form), str(error))
                continue
            for name, found in peaks_by_name.items():
                rows = [Row(f"peak memory, {what}", name, form, "MB", *[mb] * 3, 1) for what, mb in found.items()]
                results.add("rows", [vars(row) for row in rows])


@contextmanager
def card_memory() -> Iterator[dict[str, float]]:
    """Watch how far the card's memory in use rises (MB) above what it is now; nothing where there is no card."""
    seen: dict[str, float] = {}
    if not has_nvidia():
        yield seen
        return
    ask = ["nvidia-smi", "-i", str(card_index()), "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    before = float(subprocess.run(ask, capture_output=True, check=True, encoding="utf-8").stdout)
    watch = subprocess.Popen([*ask, "-lms", "50"], stdout=subprocess.PIPE, encoding="utf-8")

    def read() -> None:
        for line in watch.stdout:
            if line.strip().isdigit():
                seen["card"] = max(seen.get("card", 0.0), (float(line) - before) * 2**20 / 1e6)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        watch.terminate()
        watch.wait()
        thread.join()


def _browser_peaks(bench: Loops, bundle: Path, contender: Contender, form: str) -> dict[str, dict[str, float]]:
    """Peaks of a browser's processes and of the card by what ran, as the tables call it: on WebGPU without kernels of ours and with them.

    Each is a first visit: kernels are chosen in it.
    """
    if contender.where == CARD and not has_nvidia():
        raise LabError(SOFTWARE)
    ways = ("none", "fastest") if contender.provider == "webgpu" else ("none",)
    return dict(_browser_peak(bench, bundle, contender, form, kernels) for kernels in ways)


def _browser_peak(bench: Loops, bundle: Path, contender: Contender, form: str, kernels: str) -> tuple[str, dict[str, float]]:
    with card_memory() as card, Browser(bundle, contender.provider, form, kernels=kernels) as browser:
        browser.inpaint(bench.image, bench.mask, FEW_STEPS)
        processes = browser.process_ids()
        found = {"page": 0.0, "browser's GPU process": 0.0}
        for process, kind in processes.items():
            name = {"renderer": "page", "GPU": "browser's GPU process"}.get(kind)
            if name:
                found[name] = max(found[name], _peak_of(process))
        name = _name(contender, browser)
    return name, found | card


def _peak_of(process: int | str) -> float:
    """The most memory that a process has had in its life, MB."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"the memory of a process is read from /proc, which is not there ({error.strerror})") from None
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def _child_peak(bench: Loops, backend: str, form: str) -> dict[str, float]:
    """The same in a Python process of its own that runs each graph once."""
    job = {
        "backend": backend,
        "form": form,
        "network": bench.config.name,
        "weights": bench.weights,
        "folder": str(bench.folder),
    }
    with card_memory() as card:
        command = [sys.executable, "-m", "moebius_lab.evidence.benchmark.footprint", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise LabError((done.stderr.strip().splitlines() or ["the process ended without a word"])[-1])
    return json.loads(done.stdout.splitlines()[-1]) | (card if CONTENDERS[backend].where == CARD else {})


def _child(job: dict) -> None:
    from contextlib import ExitStack

    folder = job["folder"]
    image, mask = next(iter(demo_photographs().values()))
    bench = Loops(
        NETWORKS[job["network"]], job["weights"], Path(folder), image=read_picture(image).rgb, mask=read_mask(mask)
    )
    backend, form = job["backend"], job["form"]
    [candidate, *_] = candidates(bench, (backend,), (form,), lambda: Path(folder), {})
    with ExitStack() as stack:
        for work in candidate.open(stack).works.values():
            work()
        print(json.dumps({"process": _peak_of("self")}))


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
