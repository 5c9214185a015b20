"""Everything that a machine can be measured for, in one go: `run`, and what it is made of.

Backends are opened once and then take turns, round by round, so that what else the machine does meets all alike. A number is
the median of the rounds after one that does not count. What a machine lacks, what fails and what takes too long is listed with
the reason. Whatever is finished stands in the results file at once.
"""

from __future__ import annotations

import asyncio
import copy
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import LabError, __version__, footprint
from .backends import OnnxBackend, open_session, step_feeds, webgpu_session
from .browser import Browser, cards, has_nvidia
from .bundle import MEASURED, OFFERS, write_bundle
from .config import CONTENDERS, GRAPHS, MEASURED_PRECISIONS, MEASURES, STEPS, STRAIGHTFORWARD, STRENGTH
from .ddim import Step, ddim_steps
from .export import example_inputs, torch_graphs
from .files import digest_of
from .graph import StepGraph
from .imaging import plan_windows
from .inpaint import Settings, inpaint
from .profiles import (
    CARD,
    COPIED,
    LIMIT_CHAIN,
    LIMIT_SIDES,
    PROCESSOR,
    OperatorTime,
    limit_feeds,
    limit_graphs,
    limit_work,
    operator_times,
    write_limits,
)
from .provenance import PACKAGE, package_files
from .results import DECODE, ENCODE, METHOD, PICTURE, STEP, Results, Row
from .workbench import Workbench

if TYPE_CHECKING:
    from .browser_runner import BrowserRunner  # for notebooks: its widget is nothing that a command needs

READER = "this notebook's browser"
CURVE = (1, 2, 5, 10, 20, 50)  # steps of a whole picture, strength 1
PROFILED = ("fp32", STRAIGHTFORWARD)
PROFILE_RUNS = 3
STEPS_A_ROUND = 3  # where a step takes milliseconds: the round's time is their median

Work = Callable[[], object]
"""Something to time: it returns when it is finished, or returns the milliseconds that it measured itself, as a float."""


@dataclass
class Entrant:
    """One backend with one form of the graphs, ready to run."""

    backend: str
    form: str
    where: str  # profiles.PROCESSOR or CARD
    evidence: str  # what really runs, in the runtime's words
    works: dict[str, Work] = field(default_factory=dict)  # by what they are: STEP, ENCODE, DECODE
    fill: Callable[[Settings], object] | None = None  # the whole picture
    limit: Callable[[str], float] | None = None  # "product" or "copy" -> ms of one repetition
    profile: Callable[[], list[OperatorTime]] | None = None  # of a step

    @property
    def key(self) -> tuple[str, str]:
        return self.backend, self.form


@dataclass(frozen=True)
class Candidate:
    """An entrant that may or may not open here."""

    backend: str
    form: str
    open: Callable[[ExitStack], Entrant]


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
                    missing[key] = "the time limit of the whole run was over"
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


def summary(what: str, key: tuple[str, str], values: list[float], unit: str = "ms", steps: int = 0) -> Row:
    """A row from repeated values: median and quartiles; of one value, that value."""
    q1, q3 = statistics.quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else (values[0], values[0])
    return Row(what, *key, unit, statistics.median(values), q1, q3, len(values), steps)


def one_line(error: Exception) -> str:
    """An exception as the reason in a table."""
    words = str(error).strip().splitlines() or [""]
    return words[0] if isinstance(error, LabError) else f"{type(error).__name__}: {words[0]}"


# -- backends ----------------------------------------------------------------------------------------------------------


class TorchGraphs:
    """The published modules on one device and in one type, behind the loop's three methods; float32 at the ends.

    Where they are compiled, it is the step alone: the encoder runs twice and the decoder once a picture.
    """

    def __init__(self, bench: Workbench, device: str, kind: torch.dtype, compiled: bool = False) -> None:
        self.config, self.device, self.kind, self.name = bench.config, device, kind, f"PyTorch, {device}"
        as_it_is = (device, kind) == ("cpu", torch.float32)  # no second copy of the weights beside all sessions
        net, vae = (bench.net, bench.vae) if as_it_is else (copy.deepcopy(bench.net), copy.deepcopy(bench.vae))
        modules = {graph: module.to(device, kind) for graph, module in torch_graphs(net, vae).items()}
        self.modules = modules | ({"step": torch.compile(modules["step"])} if compiled else {})

    @torch.inference_mode()
    def run(self, graph: str, inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
        outputs = self.modules[graph](*(x.to(self.device, self.kind) for x in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(y.float().cpu() for y in outputs)

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.run("vae_encoder", [image])

    def step(self, latents: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> Tensor:
        return self.run("step", step_feeds(latents, mask, masked_latents, step, guidance).values())[0]

    def decode(self, latent: Tensor) -> Tensor:
        return self.run("vae_decoder", [latent])[0]

    @torch.inference_mode()
    def finished(self, graph: str, inputs: list[Tensor]) -> None:
        """Run one graph on inputs that are there already, until the device is done."""
        self.modules[graph](*inputs)
        if self.device == "cuda":
            torch.cuda.synchronize()


def _torch(bench: Workbench, backend: str, device: str, form: str, compiled: bool, stack: ExitStack) -> Entrant:
    if device == "cuda" and not torch.cuda.is_available():
        raise LabError("this machine has no CUDA device")
    kind = {"fp32": torch.float32, "fp16": torch.float16}[form]
    graphs = TorchGraphs(bench, device, kind, compiled)
    stack.callback(graphs.modules.clear)
    inputs = {g: [x.to(device, kind) for x in feeds.values()] for g, feeds in example_inputs(bench.config).items()}
    works = {what: partial(graphs.finished, graph, inputs[graph]) for what, graph in zip((ENCODE, STEP, DECODE), GRAPHS)}
    works[STEP]()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    tf32 = f", TF32 in convolutions: {torch.backends.cudnn.allow_tf32}" if device == "cuda" else ""
    entrant = Entrant(
        backend,
        form,
        CARD if device == "cuda" else PROCESSOR,
        f"PyTorch {torch.__version__}, {name}{tf32}",
        works,
        partial(inpaint, graphs, bench.image, bench.mask),
    )
    if not compiled:
        entrant.limit = partial(_torch_limit, device, kind)
        entrant.profile = partial(_torch_profile, device, works[STEP])
    return entrant


def _torch_limit(device: str, kind: torch.dtype, limit: str) -> float:
    where = CARD if device == "cuda" else PROCESSOR
    few, often = LIMIT_CHAIN[limit]
    x = torch.from_numpy(limit_feeds(limit_graphs(limit, where)[0])["x"]).to(device, kind)
    a = x.expand(LIMIT_SIDES[where] if limit == "product" else COPIED[0], -1).contiguous()
    b = torch.empty_like(a)

    def chain(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.mm(a, a, out=b) if limit == "product" else torch.add(a, 1.0, out=b)
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1000

    chain(few)
    return (chain(often) - chain(few)) / (often - few)


def start_profiler() -> None:
    """Start PyTorch's profiler in this thread, which has to be the one that imported PyTorch, and let it say nothing.

    Kineto, the library below it, otherwise writes to standard error: that it was first called in another thread, and at each profile
    when it starts and stops (level 5 of its log, the highest). What fails is an exception all the same.
    """
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU]):
        pass


def _torch_profile(device: str, step: Work) -> list[OperatorTime]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    step()
    with profile(activities=activities) as seen:
        for _ in range(PROFILE_RUNS):
            step()
    rows = []
    for event in seen.key_averages():
        micros = {PROCESSOR: event.self_cpu_time_total, CARD: getattr(event, "self_device_time_total", 0)}
        rows += [
            OperatorTime(event.key, where, event.count / PROFILE_RUNS, total / PROFILE_RUNS / 1000)
            for where, total in micros.items()
            if total > 0 and (where == CARD or device == "cpu")
        ]
    return sorted(rows, key=lambda row: -row.ms)


def _cuda_graph(bench: Workbench, stack: ExitStack) -> Entrant:
    """The rewritten step as one captured CUDA graph: what this card could do without any launch overhead."""
    if not torch.cuda.is_available():
        raise LabError("this machine has no CUDA device")
    step = StepGraph(copy.deepcopy(bench.net)).cuda()
    inputs = [tensor.cuda() for tensor in example_inputs(bench.config)["step"].values()]
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # which is still copying
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(*inputs)

    def work() -> None:
        graph.replay()
        torch.cuda.synchronize()

    stack.callback([step, *inputs].clear)  # which keeps them until then: the recording reads their memory, and does not hold it
    evidence = f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}, TF32 in convolutions: {torch.backends.cudnn.allow_tf32}"
    return Entrant("PyTorch, rewritten, CUDA graph", "fp32", CARD, evidence, {STEP: work})


def _onnx(bench: Workbench, backend: str, form: str, where: str, open_: Callable, limits: dict[str, Path], stack: ExitStack) -> Entrant:
    paths = bench.stored(form)
    onnx = OnnxBackend(paths, bench.config, open_)
    stack.callback(onnx.sessions.clear)
    feeds = {g: {name: x.numpy() for name, x in inputs.items()} for g, inputs in example_inputs(bench.config).items()}
    wanted = {"vae_encoder": ["mean", "std"], "step": ["next_latents"], "vae_decoder": ["image"]}
    works = {
        what: partial(onnx.sessions[graph].run, wanted[graph], feeds[graph])
        for what, graph in zip((ENCODE, STEP, DECODE), GRAPHS)
    }

    def limit(name: str) -> float:
        graphs = limit_graphs(name, where)
        sessions = {g: limit_sessions.get(g) or limit_sessions.setdefault(g, open_(limits[g])) for g in graphs}
        return _per_repetition(name, where, lambda graph, feeds: _milliseconds(partial(sessions[graph].run, None, feeds)))

    limit_sessions: dict = {}
    stack.callback(limit_sessions.clear)
    providers = ", ".join(onnx.sessions["step"].get_providers())
    evidence = f"ONNX Runtime {onnxruntime.__version__}, {providers}"
    profile = partial(_session_profile, open_, paths["step"], feeds["step"])
    fill = partial(inpaint, onnx, bench.image, bench.mask)
    return Entrant(backend, form, where, evidence, works, fill, limit if form == "fp32" else None, profile)


def _milliseconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def _per_repetition(limit: str, where: str, run: Callable[[str, dict], float]) -> float:
    """Milliseconds of one repetition of a limit's operator: what the longer of two chains takes more than the shorter."""
    few, often = LIMIT_CHAIN[limit]
    short, long = (run(graph, limit_feeds(graph)) for graph in limit_graphs(limit, where))
    return (long - short) / (often - few)


def _session_profile(open_: Callable, path: Path, feeds: dict) -> list[OperatorTime]:
    with tempfile.TemporaryDirectory() as folder:
        session = open_(path, profile=str(Path(folder) / "profile"))
        for _ in range(PROFILE_RUNS + 1):
            session.run(["next_latents"], feeds)
        return operator_times(Path(session.end_profiling()).read_text(encoding="utf-8"), PROFILE_RUNS)


def _chromium(
    bench: Workbench, bundle: Callable[[], Path], provider: str, form: str, capture: bool, threads: int, limits: bool, stack: ExitStack
) -> Entrant:
    if provider == "webgpu" and not has_nvidia():  # before a bundle is made for nothing
        raise LabError(footprint.SOFTWARE)
    browser = stack.enter_context(Browser(bundle(), provider, form, capture=capture, threads=threads))
    if capture and not browser.loaded["captured"]:
        raise LabError("the step was not captured: some of it runs on the processor")
    feeds = {g: {name: x.numpy() for name, x in inputs.items()} for g, inputs in example_inputs(bench.config).items()}
    times = STEPS_A_ROUND if provider == "webgpu" else 1
    where = CARD if provider == "webgpu" else PROCESSOR

    def run(graph: str, feeds: dict) -> float:
        return float(browser.time(graph, feeds, 1)[1][0])

    return Entrant(
        footprint.chromium_name(provider, capture, threads),
        form,
        where,
        f"Chromium {browser.version}; {browser.evidence}",
        {
            STEP: lambda: float(statistics.median(browser.time_steps(feeds["step"], times))),
            ENCODE: partial(run, "vae_encoder", feeds["vae_encoder"]),
            DECODE: partial(run, "vae_decoder", feeds["vae_decoder"]),
        },
        lambda settings: float(browser.inpaint(bench.image, bench.mask, settings)[1]["total"]),
        partial(_per_repetition, where=where, run=run) if limits else None,
        None if capture else lambda: operator_times(browser.profile("step", feeds["step"], PROFILE_RUNS), PROFILE_RUNS),
    )


def _reader(bench: Workbench, runner: BrowserRunner, stack: ExitStack) -> Entrant:
    feeds = {g: {name: x.numpy() for name, x in inputs.items()} for g, inputs in example_inputs(bench.config).items()}
    evidence = f"{runner.name}; {runner.evidence}"
    where = CARD if runner.loaded["provider"] == "webgpu" else PROCESSOR
    works = {
        what: lambda graph=graph: float(runner.time(graph, feeds[graph], 1)[1][0])
        for what, graph in zip((ENCODE, STEP, DECODE), GRAPHS)
    }
    return Entrant(READER, runner.choice["precision"], where, evidence, works, partial(inpaint, runner, bench.image, bench.mask))


def candidates(
    bench: Workbench,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    bundle: Callable[[], Path],
    limits: dict[str, Path],
    runner: BrowserRunner | None = None,
) -> list[Candidate]:
    """Whom to open, in the order of `config.CONTENDERS`; `bundle` makes the one that holds the precisions, when it is first needed."""
    found: list[Candidate] = []

    def add(backend: str, form: str, open_: Callable, *arguments: object) -> None:
        found.append(Candidate(backend, form, partial(open_, bench, *arguments)))

    for name in (name for name in CONTENDERS if name in backends):
        if name.startswith("torch"):
            device, compiled = ("cuda" if "cuda" in name else "cpu"), name.endswith("compiled")
            label = f"PyTorch {'compiled' if compiled else 'eager'}, {device.upper()}"
            forms = ("fp32", "fp16") if device == "cuda" else ("fp32",)
            if compiled:  # which takes minutes for each
                forms = tuple(form for form in forms if form in precisions) or forms[:1]
            for form in forms:
                add(label, form, _torch, label, device, form, compiled)
            if name == "torch-cuda":
                add("PyTorch, rewritten, CUDA graph", "fp32", _cuda_graph)
        for form in precisions:
            if name == "onnxruntime-cpu":
                add("ONNX Runtime, CPU", form, _onnx, "ONNX Runtime, CPU", form, PROCESSOR, open_session, limits)
            elif name == "webgpu-native":
                add("WebGPU, native", form, _onnx, "WebGPU, native", form, CARD, webgpu_session, limits)
            elif name == "chromium-webgpu":
                for capture in (False, True):
                    add(footprint.chromium_name("webgpu", capture), form, _chromium, bundle, "webgpu", form, capture, 0, not capture and form == "fp32")
            elif name == "chromium-wasm" and "wasm" in (OFFERS | MEASURED)[form].providers:
                for threads in (1, 0):
                    add(footprint.chromium_name("wasm", threads=threads), form, _chromium, bundle, "wasm", form, False, threads, form == "fp32")
    if runner is not None:
        add(READER, runner.choice["precision"], _reader, runner)
    return found


# -- the whole run -----------------------------------------------------------------------------------------------------


class _Run:
    """One call of `run`."""

    def __init__(self, bench: Workbench, results: Results, repeats: int, patience: float, deadline: float) -> None:
        self.bench, self.results, self.repeats, self.patience, self.deadline = bench, results, repeats, patience, deadline
        self.entrants: list[Entrant] = []

    def left(self) -> bool:
        return time.monotonic() < self.deadline

    def lacks(self, what: str, key: tuple[str, str], reason: str, steps: int = 0) -> None:
        entry = {"what": what, "backend": key[0], "form": key[1], "steps": steps, "reason": reason}
        self.results.add("missing", [entry])

    def open(self, listed: list[Candidate], stack: ExitStack) -> None:
        for candidate in (bar := tqdm(listed, desc="opening", unit="backend", leave=False)):
            key = (candidate.backend, candidate.form)
            bar.set_postfix_str(", ".join(key))
            if not self.left():
                self.lacks(STEP, key, "the time limit of the whole run was over")
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

    def pictures(self, settings: Settings, repeats: int, warmup: int) -> None:
        steps = len(ddim_steps(settings.steps, settings.strength))
        step_ms = {(r["backend"], r["form"]): r["median"] for r in self.results.data["rows"] if r["what"] == STEP}
        no_step = {(m["backend"], m["form"]): m["reason"] for m in self.results.data["missing"] if m["what"] == STEP}
        works = {}
        for entrant in (entrant for entrant in self.entrants if entrant.fill):
            seconds = step_ms.get(entrant.key, 0.0) * steps / 1000
            if entrant.key in no_step:
                self.lacks(PICTURE, entrant.key, f"of its step: {no_step[entrant.key]}", steps)
            elif seconds > self.patience:
                self.lacks(PICTURE, entrant.key, f"{steps} steps take about {seconds:.0f} s, longer than allowed", steps)
            else:
                works[entrant.key] = partial(entrant.fill, settings)
        self.time(PICTURE, works, repeats, warmup, steps)

    def limits(self) -> None:
        for limit, name, unit in (("product", "large matrix product", "GFLOP/s"), ("copy", "large copy", "GB/s")):
            able = [entrant for entrant in self.entrants if entrant.limit]
            works = {entrant.key: partial(entrant.limit, limit) for entrant in able}
            times, missing = measure(name, works, min(self.repeats, 5), 1, self.patience, self.deadline)
            for entrant in (entrant for entrant in able if entrant.key in times):
                half = entrant.form == "fp16" and limit == "copy"
                work = limit_work(entrant.where)[limit] * (0.5 if half else 1)
                rates = [work / ms * 1000 for ms in times[entrant.key] if ms > 0]
                if rates:
                    self.results.add("rows", [vars(summary(name, entrant.key, rates, unit))])
                else:
                    self.lacks(name, entrant.key, "too short to be told from the spread of two runs")
            for key, reason in missing.items():
                self.lacks(name, key, reason)

    def profile(self) -> None:
        able = [entrant for entrant in self.entrants if entrant.profile and entrant.form in PROFILED]
        for entrant in tqdm(able, desc="profiles", unit="backend", leave=False):
            backend, form = entrant.key
            if not self.left():
                self.lacks("profile", entrant.key, "the time limit of the whole run was over")
                continue
            try:
                times = entrant.profile()
            except Exception as error:  # any failure of any runtime is an entry of the table, with its reason
                self.lacks("profile", entrant.key, one_line(error))
                continue
            self.results.add("profiles", [{"backend": backend, "form": form} | vars(entry) for entry in times])


def run(
    bench: Workbench,
    output: str | Path,
    backends: tuple[str, ...] = tuple(CONTENDERS),
    precisions: tuple[str, ...] = MEASURED_PRECISIONS,
    measures: tuple[str, ...] = tuple(MEASURES),
    repeats: int = 7,
    patience: float = 60.0,
    seconds: float = float("inf"),
    runner: BrowserRunner | None = None,
) -> dict:
    """Measure all that this machine can be measured for.

    Args:
        bench: the network and the picture; its graphs are made where they are missing.
        output: the results file, see `results.py`. It is written after every measurement, and what it holds of the same
            machine and code stays.
        backends: keys of `config.CONTENDERS`.
        precisions: of the graphs, and "straightforward"; see `bundle.OFFERS`.
        measures: keys of `config.MEASURES`.
        repeats: timed rounds, of a whole picture three at most.
        patience: seconds that one backend may take for one measurement.
        seconds: that the whole may take; what is left over then is listed as missing.
        runner: the reader's own browser, connected, as one more backend; `run` then has to be in another thread than the page's.

    Returns:
        What the file holds.

    Raises:
        LabError: an unknown backend, precision or measurement.
    """
    for kind, chosen, known in (
        ("backend", backends, CONTENDERS), ("precision", precisions, OFFERS | MEASURED), ("measurement", measures, MEASURES),
    ):  # fmt: skip
        if unknown := [name for name in chosen if name not in known]:
            raise LabError(f"{kind} {unknown[0]!r} is unknown; choose from {', '.join(known)}")
    if "profile" in measures and threading.current_thread() is threading.main_thread():
        start_profiler()
    deadline = time.monotonic() + seconds
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

    this = _Run(bench, results, repeats, patience, deadline)
    with ExitStack() as stack:
        if set(measures) - {"load", "memory"}:  # those two open what they measure themselves, alone
            this.open(candidates(bench, backends, precisions, bundle, limits, runner), stack)
        if "step" in measures:
            this.time(STEP, this.works(STEP), repeats)
        if "picture" in measures:
            this.pictures(Settings(), min(repeats, 3), 1)
        if "parts" in measures:
            for what in (ENCODE, DECODE):
                this.time(what, this.works(what), repeats)
        if "limits" in measures:
            this.limits()
        if "curve" in measures:
            for steps in CURVE:
                this.pictures(Settings(steps=steps, strength=1.0), min(repeats, 3), 0)
        if "profile" in measures:
            this.profile()
    chromium = tuple(name.removeprefix("chromium-") for name in backends if name.startswith("chromium-"))
    if "load" in measures and chromium and this.left():
        footprint.loads(bench, bundle, chromium, precisions, results, this.lacks)
    if "memory" in measures and this.left():
        footprint.peaks(bench, bundle, backends, precisions, results, this.lacks, this.left)
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
    if shares:
        parts.append(f"The {data['release_steps']} steps are {statistics.median(shares):.0%} of a whole picture's time (median of {len(shares)} backends and forms).")
    gains = {
        backend: steps[backend, STRAIGHTFORWARD] / ms for (backend, form), ms in steps.items()
        if form == "fp32" and (backend, STRAIGHTFORWARD) in steps
    }  # fmt: skip
    if gains:
        parts.append("The straightforward export's step takes " + ", ".join(f"{gain:.2g} times as long in {name}" for name, gain in gains.items()) + ".")
    lacking = sorted({entry["backend"] for entry in data["missing"] if entry["what"] == STEP})
    if lacking:
        parts.append(f"Not measured here: {'; '.join(lacking)}; the table of what is missing has the reasons.")
    return " ".join(parts) or "Nothing was measured here; the table of what is missing has the reasons."


def head(bench: Workbench) -> dict:
    """What a results file says before its rows."""
    windows = len(plan_windows(bench.mask, bench.config.image_size))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "network": bench.config.name,
        "weights": bench.weights if bench.weights in ("demo", "deterministic") else Path(bench.weights).name,
        "image_size": bench.config.image_size,
        "release_steps": len(ddim_steps(STEPS, STRENGTH)),
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
        "versions": {name: _version(name) for name in ("torch", "onnxruntime", "onnxruntime-ep-webgpu", "onnx", "diffusers", "numpy")},
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
