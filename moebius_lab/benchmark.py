"""Warmed timings as tidy rows; a timing is a median with its quartiles, never a verdict."""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import torch
from tqdm.auto import tqdm

from . import LabError
from .backends import open_session, webgpu_session
from .browser import Browser, has_nvidia
from .browser_runner import BrowserRunner
from .export import PublishedStep, example_inputs, straightforward_inputs
from .graph import StepGraph
from .workbench import Workbench


@dataclass(frozen=True)
class Timing:
    """Time of one piece of work on one backend."""

    what: str
    backend: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    repeats: int


Work = Callable[[], object]
"""Something to time: it returns when it is finished, or returns the milliseconds that it measured itself, as a float."""


def measure(what: str, works: dict[str, Work], repeats: int = 5, warmup: int = 1) -> list[Timing]:
    """Time the same work on several backends, in turns, so that what else the machine does meets all alike.

    Args:
        what: the name of the work.
        works: a function for each backend's name.
        repeats: timed rounds, at least 3.
        warmup: rounds before them that do not count.

    Returns:
        One `Timing` a backend.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in tqdm(range(warmup + repeats), desc=what, unit="round", leave=False):
        for name, work in works.items():
            start = time.perf_counter()
            own = work()
            if i >= warmup:
                times[name].append(own if isinstance(own, float) else (time.perf_counter() - start) * 1000)
    return [
        Timing(what, name, statistics.median(t), *statistics.quantiles(t, n=4)[::2], len(t)) for name, t in times.items()
    ]


# -- a guided step, everywhere ----------------------------------------------------------------------------------------


@dataclass
class Contest:
    """What can be timed on this machine, what cannot and why, and what each backend says of itself."""

    works: dict[str, Work] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)

    def enter(self, name: str, make: Callable[[], tuple[Work, str]]) -> None:
        """Add what `make` returns, a work and its evidence; where it raises, the reason is kept."""
        try:
            self.works[name], self.evidence[name] = make()
        except Exception as error:  # any failure of any runtime is a row of the table, with its reason
            self.missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]

    def enter_runner(self, runner: BrowserRunner, feeds: dict) -> None:
        """Add a step in the reader's own browser; where no page is connected, that is the reason."""
        self.enter(runner.name, lambda: ((lambda: float(runner.time("step", feeds, 1)[1][0])), runner.evidence))


@contextmanager
def guided_steps(
    bench: Workbench,
    precisions: tuple[str, ...] = ("fp32",),
    bundle: str | Path | None = None,
    browsers: tuple[tuple[str, int], ...] = (),
    runner: BrowserRunner | None = None,
) -> Iterator[Contest]:
    """One guided step of `export.example_inputs`, ready to be timed on every backend of this machine.

    PyTorch (CPU and CUDA, published form and rewritten), ONNX Runtime on the CPU (straightforward export and ours), the
    native WebGPU provider and Chromium. Transfers of latents, which are small, are part of a step.

    Args:
        bench: the network; its graphs are made where they are missing.
        precisions: of the ONNX graphs.
        bundle: a bundle with these precisions for Chromium; without one Chromium is left out.
        browsers: (provider, threads) pairs to run it with; threads 0 for the page's own choice.
        runner: the reader's own browser, connected; its work waits for the page, so it is measured from another thread, as in
            `await asyncio.to_thread(measure, ...)`.

    Yields:
        What there is to time; browsers and sessions are closed afterwards.
    """
    contest, inputs = Contest(), example_inputs(bench.config)["step"]
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    with ExitStack() as stack:
        contest.enter("PyTorch eager, CPU", lambda: _torch_step(bench, "cpu", torch.float32))
        for kind, name in ((torch.float32, "fp32"), (torch.float16, "fp16")):
            contest.enter(f"PyTorch eager, CUDA, {name}", lambda kind=kind: _torch_step(bench, "cuda", kind))
        contest.enter("PyTorch, our form, CUDA graph, fp32", lambda: _cuda_graph(bench))
        contest.enter("ONNX Runtime, CPU, straightforward", lambda: _straightforward(bench))
        for form in precisions:
            path = bench.stored(form)["step"]
            contest.enter(f"ONNX Runtime, CPU, {form}", lambda path=path: _session_step(open_session(path), feeds))
            for layout in ("NCHW", "NHWC") if form == "fp32" else ("NCHW",):
                name = f"WebGPU native, {form}, {layout}"
                contest.enter(name, lambda path=path, layout=layout: _session_step(webgpu_session(path, layout), feeds))
            for provider, threads in browsers if bundle else ():
                name = f"Chromium, {provider}{f', {threads} threads' if threads else ''}, {form}"
                contest.enter(name, lambda p=provider, t=threads, f=form: _browser_step(stack, bundle, p, t, f, feeds))
        if runner is not None:
            contest.enter_runner(runner, feeds)
        try:
            yield contest
        finally:
            contest.works.clear()  # with them the sessions, which hold gigabytes at full size


def _torch_step(bench: Workbench, device: str, kind: torch.dtype) -> tuple[Work, str]:
    if device == "cuda" and not torch.cuda.is_available():
        raise LabError("this machine has no CUDA device")
    as_it_is = (device, kind) == ("cpu", torch.float32)  # no second copy of the weights beside all sessions
    step = PublishedStep(bench.net if as_it_is else copy.deepcopy(bench.net)).to(device, kind).eval()
    inputs = [tensor.to(device, kind) for tensor in example_inputs(bench.config)["step"].values()]

    @torch.inference_mode()
    def work() -> None:
        step(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    work()
    return work, f"PyTorch {torch.__version__}, {name}"


def _cuda_graph(bench: Workbench) -> tuple[Work, str]:
    """The rewritten step as one recorded CUDA graph: what this card could do without any launch overhead."""
    if not torch.cuda.is_available():
        raise LabError("this machine has no CUDA device")
    step = StepGraph(bench.net).cuda()
    inputs = [tensor.cuda() for tensor in example_inputs(bench.config)["step"].values()]
    with torch.inference_mode():
        stream = torch.cuda.Stream()
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

    return work, f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}"


def _straightforward(bench: Workbench) -> tuple[Work, str]:
    feeds = {name: tensor.numpy() for name, tensor in straightforward_inputs(bench.config).items()}
    return _session_step(open_session(bench.straightforward()), feeds, "noise")


def _session_step(session: onnxruntime.InferenceSession, feeds: dict, output: str = "next_latents") -> tuple[Work, str]:
    def work() -> None:
        session.run([output], feeds)

    work()
    return work, f"ONNX Runtime {onnxruntime.__version__}, {', '.join(session.get_providers())}"


def _browser_step(stack: ExitStack, bundle, provider: str, threads: int, form: str, feeds: dict) -> tuple[Work, str]:
    if provider == "webgpu" and not has_nvidia():
        raise LabError("this machine has no graphics card; Chromium's software adapter says nothing about speed")
    browser = stack.enter_context(Browser(bundle, provider, form, threads=threads))
    return lambda: float(browser.time("step", feeds, 1)[1][0]), browser.evidence


def machine() -> dict[str, object]:
    """What the timings were taken on."""
    packages = ("torch", "onnxruntime", "onnx", "diffusers", "numpy")
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
