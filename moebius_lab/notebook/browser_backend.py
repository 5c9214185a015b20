"""The reader's own browser as a backend: graphs run in the JupyterLab page, by the shipped page's engine, on its GPU.

    runner = BrowserRunner("build/bundle", bench.config)
    runner                                                         # a cell: the page answers once it has the widget
    await runner.connect()                                         # another cell
    picture = await asyncio.to_thread(inpaint, runner, image, mask)

    loop = await fill(bench)                                       # all of it, on the backend that `bench` was made with

If no page answers, as under papermill, `connect` starts a headless Chromium, which runs the same modules.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from IPython.display import display

from .. import LabError
from ..config import NetworkConfig, offered
from ..evidence.loops import PYTORCH, Loop
from ..inpainting.backends import GraphBackend
from ..page.browser import Browser
from ..page.bundle import read_manifest, write_bundle
from ..page.driving import TIMEOUT, has_nvidia
from ..page.engines import NoBrowser
from ..page.modules import ENGINE
from .widgets import GONE
from .workbench import Workbench

PART = 4 * 2**20  # bytes of a file in one message: above 10 MB JupyterLab's websocket closes silently
SERVED = "JPY_SESSION_NAME"  # the environment variable that a Jupyter server sets for the kernel of a notebook
WAIT, WAIT_SERVED = 5.0, 60.0  # s to wait for the page's first message: short if nobody is likely to be looking


class BrowserRunner(GraphBackend, anywidget.AnyWidget):
    """A model that runs in the page that shows this notebook, for the sampling loop, parity and benchmark.

    A call waits for the page's answer, which arrives through the kernel's loop. So call it from another thread,
    as in `await asyncio.to_thread(runner.run, ...)`, never straight from a cell.

    Args:
        bundle: a folder of `bundle.write_bundle`.
        config: the network in it.
        provider: "webgpu" or "wasm", for all graphs, without a fallback; "auto" for WebGPU on a machine with a real card,
            else wasm. `evidence` says which one ran.
        precision: one that the bundle has.
        adapter: of the headless Chromium; see `driving.chosen_adapter`.

    Attributes:
        loaded: what the page reports about itself: provider, adapter, device, features, threads, placed nodes, evidence.
        headless: whether the calls go to a headless Chromium; None before `connect`.

    Raises:
        LabError: the bundle is incomplete, or holds another network.
    """

    _esm = Path(__file__).with_suffix(".js")
    status = traitlets.Unicode("The model is not loaded in this page yet.").tag(sync=True)
    gone = traitlets.Unicode(GONE).tag(sync=True)  # what the page shows when this kernel can no longer speak

    def __init__(
        self,
        bundle: str | Path,
        config: NetworkConfig,
        provider: str = "auto",
        precision: str = "fp32",
        adapter: str = "auto",
    ) -> None:
        self.bundle, self.config, self.adapter = Path(bundle), config, adapter
        self.manifest = read_manifest(self.bundle)
        if self.manifest["network"] != config.name:
            raise LabError(f"{bundle} holds the {self.manifest['network']} network, not {config.name}: name its own")
        if precision not in self.manifest["precisions"]:
            raise LabError(f"{bundle} has no precision {precision!r}; choose from {', '.join(self.manifest['precisions'])}")
        self.choice = {"provider": provider, "precision": precision}
        self.loaded: dict = {}
        self.headless: bool | None = None
        self._browser: Browser | None = None
        self._page = ""  # the one that answered last
        self._ready = threading.Event()
        self._answers: dict[int, Future] = {}
        self._calls = 0
        self._busy = threading.Lock()  # the page runs one thing at a time
        super().__init__()
        self._loop_thread = threading.current_thread()
        self.on_msg(self._receive)

    @property
    def evidence(self) -> str:
        """What really runs, in one sentence from the page; LabError before `connect`."""
        self._require_loaded()
        return self.loaded["evidence"]

    @property
    def name(self) -> str:
        where = "headless Chromium" if self.headless else "this browser"
        return f"{where}, {self.loaded['device']}" if self.loaded else "browser, not connected"

    async def connect(self, seconds: float | None = None, headless: bool = True) -> str:
        """Load the model in the page that shows this notebook, or in a headless Chromium if none answers in `seconds`.

        Args:
            seconds: by default `WAIT_SERVED` if a Jupyter server started this kernel, else `WAIT`.
            headless: False to accept only the page.

        Returns:
            The evidence.

        Raises:
            NoBrowser: no page answered, and there is no Chromium or `headless` is False.
            LabError: the page's own message on why it cannot run the model.
        """
        self._loop_thread = threading.current_thread()
        self.disconnect()
        self.send({"to": "*", "call": "hello"})
        if seconds is None:
            seconds = WAIT_SERVED if os.environ.get(SERVED) else WAIT
        answered = await asyncio.to_thread(self._ready.wait, seconds)
        if not answered and not headless:
            raise NoBrowser(
                "no page shows this notebook, and a headless Chromium would take too long: open it in JupyterLab"
            )
        self.headless = not answered
        await asyncio.to_thread(self._load_in_page if answered else self._load_headless)
        self.status = self.name
        return self.evidence

    def disconnect(self) -> None:
        """Forget the page, and close the headless Chromium if there is one."""
        self._ready.clear()
        self.loaded, self.headless = {}, None
        if self._browser is not None:
            self._browser.__exit__()
            self._browser = None

    def run(self, graph: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph on float32 arrays by name; its outputs by name."""
        return self.time(graph, feeds, 1)[0]

    def time(self, graph: str, feeds: dict[str, np.ndarray], times: int) -> tuple[dict[str, np.ndarray], list[float]]:
        """Run one graph `times` times: its outputs, and the milliseconds of each run, measured in the page."""
        self._require_loaded()
        if self._browser is not None:
            return self._browser.time(graph, feeds, times)
        arrays = {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in feeds.items()}
        dims = {name: list(x.shape) for name, x in arrays.items()}
        done, buffers = self._call("run", {"graph": graph, "dims": dims, "times": times}, list(arrays.values()))
        outputs = {
            name: np.frombuffer(buffer, np.float32).reshape(shape)
            for (name, shape), buffer in zip(done["dims"].items(), buffers)
        }
        return outputs, done["milliseconds"]

    def _require_loaded(self) -> None:
        if not self.loaded:
            raise LabError("no browser is connected: `await runner.connect()` first")

    # -- loading ---------------------------------------------------------------------------------------------------

    def _load_headless(self) -> None:
        provider = self.choice["provider"]
        if provider == "auto":
            provider = "webgpu" if has_nvidia() else "wasm"
        self._browser = Browser(self.bundle, provider, self.choice["precision"], self.adapter).__enter__()
        self.loaded = self._browser.loaded

    def _load_in_page(self) -> None:
        self._send_folder(ENGINE, self.manifest["page"])
        manifest = copy.deepcopy(self.manifest)
        manifest["precisions"] = {self.choice["precision"]: manifest["precisions"][self.choice["precision"]]}
        choice = {"manifest": manifest, "provider": self.choice["provider"]}
        prepared, _ = self._call("prepare", choice | {"recorded": True})
        if not prepared["module"]:
            try:
                self._load_sent(prepared)
                return
            except LabError:  # a device that does not take the recording, which ONNX Runtime may manage
                prepared, _ = self._call("prepare", choice | {"recorded": False})
        self._send_file(prepared["module"])
        self._load_sent(prepared)

    def _load_sent(self, prepared: dict) -> None:
        """Send the files that a prepared page lacks, and let it load the model."""
        for i, (name, beside) in enumerate(prepared["missing"]):
            self.status = f"Sending file {i + 1} of {len(prepared['missing'])} to this page."
            self._send_file(name, "" if beside else self.manifest["weights_base"])
        self.status = "Starting the model in this page."
        chosen = {"provider": prepared["provider"], "recorded": not prepared["module"]}
        self.loaded, _ = self._call("load", {"choice": self.choice | chosen})

    def _send_folder(self, name: str, base: str) -> None:
        folder = self.bundle / base / name
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self._send_file(name + file.relative_to(folder).as_posix(), base)

    def _send_file(self, name: str, base: str = "") -> None:
        body = memoryview((self.bundle / base / name).read_bytes())
        for start in range(0, max(len(body), 1), PART):
            self._call("part", {"name": name}, [body[start : start + PART]])

    # -- messages --------------------------------------------------------------------------------------------------

    def _call(self, call: str, content: dict, buffers: list | None = None) -> tuple[dict, list]:
        if threading.current_thread() is self._loop_thread:
            raise LabError("the page answers through the kernel's loop: use `await asyncio.to_thread(...)` for this call")
        with self._busy:
            self._calls += 1
            answer = self._answers[self._calls] = Future()
            self.send({"to": self._page, "id": self._calls, "call": call, **content}, buffers or [])
            try:
                return answer.result(TIMEOUT)
            except TooLate:
                raise LabError(f"the page did not answer in {TIMEOUT} s: is it still open? connect again") from None
            finally:
                self._answers.pop(self._calls)

    def _receive(self, _, content: dict, buffers: list) -> None:
        if "ready" in content:
            gone = self._page != content["ready"] and self.headless is False
            self._page = content["ready"]
            self._ready.set()
            if gone:
                self._page_was_lost()
            return
        answer = self._answers.get(content.get("id", 0))
        if answer is None or content["from"] != self._page:
            return
        if "error" in content:
            answer.set_exception(LabError(content["error"]))
        else:
            answer.set_result((content["result"], buffers))

    def _page_was_lost(self) -> None:
        """Another page has appeared, most likely the same one reloaded: the model went with the old page."""
        self.loaded, self.headless = {}, None
        self.status = "The page was reloaded: connect again."
        for answer in self._answers.values():
            answer.set_exception(LabError("the page was reloaded while it was running: connect again"))


async def fill(bench: Workbench, runner: BrowserRunner | None = None) -> Loop:
    """The sampling loop on `bench.backend`; an earlier one of PyTorch's or ONNX Runtime's is reused.

    For "browser" the bundle in `bench.folder` is made first if it is missing, and the widget is shown so that the page can
    answer: call this in a cell.

    Args:
        bench: picture, mask, network, precision and backend.
        runner: for "browser", one that is connected; by default one is made, and disconnected at the end.

    Raises:
        LabError: see `BrowserRunner` and `Workbench.loop`.
    """
    if bench.backend != "browser":
        return await asyncio.to_thread(bench.loop, PYTORCH if bench.backend == "torch" else bench.precision)
    if runner is not None:
        return await asyncio.to_thread(bench.run_loop, runner)
    bundle = bench.folder / "bundle"
    await asyncio.to_thread(write_bundle, bench, bundle, tuple(offered()))
    runner = BrowserRunner(bundle, bench.config, precision=bench.precision)
    display(runner)
    await runner.connect()
    try:
        return await asyncio.to_thread(bench.run_loop, runner)
    finally:
        runner.disconnect()
