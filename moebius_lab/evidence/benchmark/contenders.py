"""The contenders of a benchmark: every backend, each opened with one form of the graphs."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ... import LabError
from ...config import CARD, CONTENDERS, PRECISIONS, PROCESSOR, RUNS, Contender, Way, entry_of
from ...inpainting.backends import LOOP_OUTPUTS, Backend, GraphBackend
from ...inpainting.loop import Settings, inpaint
from ...page.browser import Browser
from ...page.driving import has_nvidia
from ...port.denoiser import StepGraph
from ...port.export import OUTPUT_NAMES, example_feeds, example_inputs, torch_graphs
from ...port.sessions import OnnxBackend, open_session, webgpu_session
from ..loops import Loops
from .profiles import (
    COPIED,
    LIMIT_CHAIN,
    LIMIT_SIDES,
    OperatorTime,
    limit_feeds,
    limit_graphs,
    operator_times,
)
from .results import CHOOSING, RUN_NAMES, STEP

SOFTWARE = "this machine has no graphics card; Chromium's software adapter says nothing about speed"
READER = "this notebook's browser"
PROFILE_RUNS = 3
TRYING = 60  # s in which the page tries all kernels before anything is timed
MATRIX = "on matrix units"  # in the name of a way, as `web/engine/kernels/product.js` puts it
STEPS_A_ROUND = 5  # when a step takes milliseconds: the round's time is their median
Work = Callable[[], object]
"""Something to time: it returns when finished, or returns as a float the milliseconds that it measured itself."""


class Reader(Backend, Protocol):
    """The browser of the person who reads a notebook, connected (`notebook.browser_backend.BrowserRunner`)."""

    evidence: str  # what really runs, in the page's words
    choice: dict[str, str]  # provider and precision that were asked for
    loaded: dict  # what the page says of itself

    def time(self, graph: str, feeds: dict, times: int) -> tuple[dict, list[float]]:
        """Run one graph on arrays by name: its outputs, and each run's milliseconds."""


@dataclass
class Entrant:
    """One backend with one form of the graphs, ready to run."""

    backend: str
    form: str
    where: str  # profiles.PROCESSOR or CARD
    evidence: str  # what really runs, in the runtime's words
    works: dict[str, Work] = field(default_factory=dict)  # by name, as in `results.RUN_NAMES`
    fill: Callable[[Settings], object] | None = None  # the whole picture
    limit: Callable[[str], float] | None = None  # "product" or "copy" -> ms of one repetition
    profile: Callable[[], list[OperatorTime]] | None = None  # of a step
    outputs: Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None  # of a graph on arrays by name
    opening: dict[str, float] = field(default_factory=dict)  # milliseconds that parts of opening it took, by name

    @property
    def key(self) -> tuple[str, str]:
        return self.backend, self.form


@dataclass(frozen=True)
class Candidate:
    """A contender's entrant that may or may not open here."""

    backend: str
    form: str
    open: Callable[[ExitStack], Entrant]


@dataclass(frozen=True)
class Job:
    """What to open, and what it needs."""

    bench: Loops
    contender: Contender
    way: Way
    form: str
    bundle: Callable[[], Path]  # makes the bundle that holds the precisions, when it is first needed
    limits: dict[str, Path]  # graphs of `profiles.write_limits`


class TorchGraphs(GraphBackend):
    """The published modules on one device and in one type; float32 in and out.

    Compilation covers the step only: the encoder runs twice and the decoder once a picture.
    """

    def __init__(self, bench: Loops, device: str, kind: torch.dtype, compiled: bool = False) -> None:
        self.config, self.device, self.kind, self.name = bench.config, device, kind, f"PyTorch, {device}"
        as_it_is = (device, kind) == ("cpu", torch.float32)  # no second copy of the weights on top of all sessions
        net, vae = (bench.net, bench.vae) if as_it_is else (copy.deepcopy(bench.net), copy.deepcopy(bench.vae))
        modules = {graph: module.to(device, kind) for graph, module in torch_graphs(net, vae).items()}
        self.modules = modules | ({"step": torch.compile(modules["step"])} if compiled else {})
        self.order = {
            RUNS[run]: list(inputs) for run, inputs in example_inputs(bench.config).items()
        }  # of the modules' arguments

    @torch.inference_mode()
    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph on float32 arrays by name; all its outputs by name."""
        outputs = self.modules[graph](*(torch.tensor(inputs[name]).to(self.device, self.kind) for name in self.order[graph]))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: y.float().cpu().numpy() for name, y in zip(OUTPUT_NAMES[graph], outputs, strict=True)}

    @torch.inference_mode()
    def finished(self, graph: str, inputs: list[Tensor]) -> None:
        """Run one graph on inputs that are already on the device, and wait until it is done."""
        self.modules[graph](*inputs)
        if self.device == "cuda":
            torch.cuda.synchronize()


def _torch(job: Job, stack: ExitStack) -> Entrant:
    bench, form, where, compiled = job.bench, job.form, job.contender.where, job.way.compiled
    device = "cuda" if where == CARD else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise LabError("this machine has no CUDA device")
    kind = getattr(torch, PRECISIONS[form].arithmetic)
    graphs = TorchGraphs(bench, device, kind, compiled)
    stack.callback(graphs.modules.clear)
    inputs = {g: [x.to(device, kind) for x in feeds.values()] for g, feeds in example_inputs(bench.config).items()}
    works = {what: partial(graphs.finished, RUNS[run], inputs[run]) for run, what in RUN_NAMES.items()}
    works[STEP]()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    tf32 = f", TF32 in convolutions: {torch.backends.cudnn.allow_tf32}" if device == "cuda" else ""
    entrant = Entrant(
        job.way.label,
        form,
        where,
        f"PyTorch {torch.__version__}, {name}{tf32}",
        works,
        partial(inpaint, graphs, bench.image, bench.mask),
        outputs=graphs.run,
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
    """Start PyTorch's profiler, silently, in this thread, which must be the one that imported PyTorch.

    Kineto, the library underneath, otherwise writes to standard error: that it was first called in another thread, and when
    each profile starts and stops (level 5 of its log, the highest). Failures still raise exceptions.
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


def _cuda_graph(job: Job, stack: ExitStack) -> Entrant:
    """The rewritten step as one captured CUDA graph: what this card could do without any launch overhead."""
    bench = job.bench
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

    stack.callback([step, *inputs].clear)  # kept alive until then: the capture reads their memory but does not own it
    evidence = f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}, TF32 in convolutions: {torch.backends.cudnn.allow_tf32}"
    return Entrant(job.way.label, job.form, job.contender.where, evidence, {STEP: work})


def _onnx(job: Job, stack: ExitStack) -> Entrant:
    bench, form, where, limits = job.bench, job.form, job.contender.where, job.limits
    open_ = webgpu_session if where == CARD else open_session
    paths = bench.stored(form)
    onnx = OnnxBackend(paths, bench.config, open_)
    stack.callback(onnx.sessions.clear)
    feeds = example_feeds(bench.config)
    works = {
        what: partial(onnx.sessions[RUNS[run]].run, LOOP_OUTPUTS[RUNS[run]], feeds[run]) for run, what in RUN_NAMES.items()
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
    return Entrant(
        job.way.label, form, where, evidence, works, fill, limit if _has_limits(form) else None, profile, outputs=onnx.run
    )


def _has_limits(form: str) -> bool:
    return "limits" in entry_of(form).costly


def _milliseconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def _per_repetition(limit: str, where: str, run: Callable[[str, dict], float]) -> float:
    """Milliseconds of one repetition of a limit's operator: the extra time of the longer of two chains, per repetition."""
    few, often = LIMIT_CHAIN[limit]
    short, long = (run(graph, limit_feeds(graph)) for graph in limit_graphs(limit, where))
    return (long - short) / (often - few)


def _session_profile(open_: Callable, path: Path, feeds: dict) -> list[OperatorTime]:
    with tempfile.TemporaryDirectory() as folder:
        session = open_(path, profile=str(Path(folder) / "profile"))
        for _ in range(PROFILE_RUNS + 1):
            session.run(LOOP_OUTPUTS["step"], feeds)
        return operator_times(Path(session.end_profiling()).read_text(encoding="utf-8"), PROFILE_RUNS)


def _chromium(job: Job, stack: ExitStack) -> Entrant:
    bench, form, where, provider, capture = job.bench, job.form, job.contender.where, job.way.provider, job.way.captured
    if where == CARD and not has_nvidia():  # before making a bundle in vain
        raise LabError(SOFTWARE)
    options = {"capture": capture, "kernels": job.way.kernels, "threads": job.way.threads}
    browser = stack.enter_context(Browser(job.bundle(), provider, form, **options))
    if capture and not browser.loaded["captured"]:
        raise LabError("the step was not captured: some of it runs on the processor")
    if job.way.kernels != "none" and not browser.loaded["kernels"]["replaced"]:
        raise LabError(f"no kernel of our own is used: {browser.loaded['kernels']['note'] or 'none is faster here'}")
    opening = {CHOOSING: sum(browser.loaded["kernels"]["took"].values())} if job.way.kernels != "none" else {}
    if browser.loaded["kernels"]["left"]:  # what later visits would try
        browser.reload(trying=TRYING)
    if job.way.kernels.startswith("matrix") and not any(
        MATRIX in way for way in browser.loaded["kernels"]["choices"].values()
    ):
        raise LabError(f"no product runs on matrix units: {browser.loaded['kernels']['note'] or 'none is faster there'}")
    feeds = example_feeds(bench.config)
    times = STEPS_A_ROUND if where == CARD else 1
    told = chosen(browser.loaded["kernels"]["choices"])

    def run(graph: str, feeds: dict) -> float:
        return float(browser.time(graph, feeds, 1)[1][0])

    def work(name: str) -> Work:
        if RUNS[name] == "step":
            return lambda: float(statistics.median(browser.time_steps(feeds[name], times)))
        return partial(run, RUNS[name], feeds[name])

    return Entrant(
        job.way.label,
        form,
        where,
        f"Chromium {browser.version}; {browser.evidence}{told and f'; forms of kernels chosen: {told}'}",
        {what: work(name) for name, what in RUN_NAMES.items()},
        lambda settings: float(browser.inpaint(bench.image, bench.mask, settings)[1]["total"]),
        partial(_per_repetition, where=where, run=run) if _has_limits(form) and not capture else None,
        None if capture else lambda: operator_times(browser.profile("step", feeds["step"], PROFILE_RUNS), PROFILE_RUNS),
        browser.run,
        opening,
    )


def chosen(choices: dict[str, str]) -> str:
    """The page's choice of kernels in words: how many forms of each kind of operation run in which way.

    Args:
        choices: the way of each form, by the form's key, as the page tells them: "product 1x2y3z" -> "64x128x16 8x8"; and whether a
            whole graph keeps the runtime's commands, by "all of" it.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    for key, way in choices.items():
        kind, _, which = key.rpartition(" ")
        if kind != "all of":
            counts[kind][way or "ours"] += 1
        elif way:
            counts[key][way] += 1
    kinds = [f"{kind}: {', '.join(f'{n} {way}' for way, n in ways.most_common())}" for kind, ways in sorted(counts.items())]
    return "; ".join(kinds)


def _reader(bench: Loops, runner: Reader, stack: ExitStack) -> Entrant:
    feeds = example_feeds(bench.config)
    evidence = f"{runner.name}; {runner.evidence}"
    where = CARD if runner.loaded["provider"] == "webgpu" else PROCESSOR
    works = {what: lambda run=run: float(runner.time(RUNS[run], feeds[run], 1)[1][0]) for run, what in RUN_NAMES.items()}
    return Entrant(
        READER, runner.choice["precision"], where, evidence, works, partial(inpaint, runner, bench.image, bench.mask),
        outputs=runner.run,
    )  # fmt: skip


OPENERS: dict[str, Callable[[Job, ExitStack], Entrant]] = {
    "torch": _torch,
    "cuda-graph": _cuda_graph,
    "onnxruntime": _onnx,
    "chromium": _chromium,
}
"""What opens a way of running a backend, by its `opened_by`."""


def forms_of(way: Way, precisions: tuple[str, ...]) -> tuple[str, ...]:
    """The forms in which one way of running a backend is measured when `precisions` are requested."""
    if not way.forms:
        return tuple(form for form in precisions if not way.provider or way.provider in entry_of(form).providers)
    if way.compiled:
        return tuple(form for form in way.forms if form in precisions) or way.forms[:1]
    return way.forms


def candidates(
    bench: Loops,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    bundle: Callable[[], Path],
    limits: dict[str, Path],
    runner: Reader | None = None,
) -> list[Candidate]:
    """What to open, in the order of `config.CONTENDERS`; `bundle` makes the bundle of all precisions on first use."""
    found = []
    for contender in (contender for name, contender in CONTENDERS.items() if name in backends):
        for way in contender.ways:
            for form in forms_of(way, precisions):
                job = Job(bench, contender, way, form, bundle, limits)
                found.append(Candidate(way.label, form, partial(OPENERS[way.opened_by], job)))
    if runner is not None:
        found.append(Candidate(READER, runner.choice["precision"], partial(_reader, bench, runner)))
    return found
