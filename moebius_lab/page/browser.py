"""A headless browser that runs the shipped page's own modules: for parity, benchmarks and tests.

    with Browser("build/bundle", provider="webgpu") as browser:
        outputs = browser.run("vae_decoder", {"latent": latent})
        picture, timings = browser.inpaint(image, mask, Settings())
        print(browser.name, browser.evidence)

Nothing here computes: `web/engine/engine.js` does, in a page served from the bundle; `driver.js` calls it there. Which browsers there
are is in `engines`, how they are driven in `driving`.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import LabError
from ..inpainting.loop import Settings
from .bundle import read_manifest
from .driving import IMPORT, TIMEOUT, PlaywrightSession, Refused, Tab, chosen_adapter, has_nvidia, launch_options, session_of
from .engines import MAIN, engine_of, with_playwright
from .serve import Server

LOADING = 120  # seconds that loading a model may take besides what its size takes: one that hangs is not waited for as long as a run
LOADED = 3e6  # bytes a second, of the slowest machine on which a model was loaded
SETTLING = 20_000  # milliseconds that a page may take until its service worker is there

MANIFEST = "manifest.json"
DRIVER = Path(__file__).with_name("driver.js")
CALL = "([work, argument, seconds, late]) => driver.inTime(driver[work](argument), seconds, late)"
LATE = "The browser did not finish in time. Close other programs and try again."
SETTLED = (
    "(ms) => Promise.race([navigator.serviceWorker?.ready.then(() => true), new Promise((done) => setTimeout(done, ms))])"
)
"""Runs on the bundle's index.html, whose Content-Security-Policy keeps a module like `DRIVER` out."""
STATUS = "() => performance.getEntriesByType('navigation')[0].responseStatus ?? 200"
"""How the host answered, as far as the browser tells: WebKit does not."""


def screenshot(bundle: str | Path, width: int = 1280, height: int = 800) -> np.ndarray:
    """The first screen of a bundle's page, as a visitor sees it: uint8 (height, width, 3).

    Raises:
        LabError: no Chromium, or no bundle in that folder.
    """
    read_manifest(bundle)
    options = launch_options()
    with Server(bundle) as server:

        def take(play) -> bytes:
            with play.chromium.launch(**options) as chromium:
                page = chromium.new_page(viewport={"width": width, "height": height})
                page.goto(server.url, wait_until="networkidle")
                return page.screenshot()

        return np.asarray(Image.open(io.BytesIO(with_playwright(take))).convert("RGB"))


def weights_fetched(bundle: str | Path, precision: str, visits: int = 2, engine: str = MAIN) -> list[int]:
    """How many requests for weights each visit makes, in a browser that is started anew each time and keeps what it stores.

    Raises:
        LabError: no such browser, no bundle in that folder, or one without this precision.
    """
    found = []
    with Server(bundle) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for _ in range(visits):
            before = len(server.requests)
            with Browser(server.url, "wasm", precision, profile_folder=folder, engine=engine):
                found.append(sum("/weights/" in path for path in server.requests[before:]))
    return found


def cards() -> list[dict[str, str]]:
    """This machine's NVIDIA cards: name, driver and memory of each, in the driver's words and order."""
    if not has_nvidia():
        return []
    ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    lines = subprocess.run(ask, capture_output=True, check=True, encoding="utf-8").stdout.strip().splitlines()
    return [dict(zip(("name", "driver", "memory"), line.split(", "))) for line in lines]


def card_index() -> int:
    """The card that is measured, in the driver's order: the first that CUDA_VISIBLE_DEVICES leaves, as WebGPU takes the first."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return int(first) if first.isdigit() else 0


class Browser:
    """One model loaded in a browser of its own; use it as a context.

    Calls work in any thread, also inside the running event loop of a notebook.

    Args:
        bundle: a folder of `bundle.write_bundle`, which is served meanwhile, or the URL of one that is, ending in a slash.
        provider: "webgpu" or "wasm": where all three graphs run. There is no falling back.
        precision: one that the bundle has.
        adapter: "nvidia", "software", "none" for a browser without WebGPU, or "auto": nvidia where there is a card.
        capture: on WebGPU capture each graph that runs on the device as a whole, and replay it; see `web/engine/capture.js`.
        recorded: where the bundle has a recording of the precision, play that instead of capturing, without ONNX Runtime; see
            `web/engine/recorded/`.
        kernels: of our own in captured graphs: "fastest", where they are faster on this device; "all", wherever there are any;
            or "none"; see `web/engine/kernels/replacement.js`. "matrix" and "matrix exact" are experiments, as "fastest" but with
            products on the card's matrix units, in 16 bits or as three products each; see `docs/kernels.md`.
        threads: of wasm; 0 for the page's own choice, one a core.
        profile_folder: where the browser keeps what it stores, for a later `Browser` of the same URL; empty for nowhere.
        engine: one of `engines.ENGINES`.

    Attributes:
        loaded: what the page says of itself: provider, adapter, features, threads, placed nodes, evidence; and the
            milliseconds from asking for the model until it was ready.
        version: of the browser.

    Raises:
        NoBrowser: it is not here, or lacks something for this provider.
        LabError: the page's own message of why it cannot run the model here.
    """

    def __init__(
        self,
        bundle: str | Path,
        provider: str = "webgpu",
        precision: str = "fp32",
        adapter: str = "auto",
        capture: bool = True,
        recorded: bool = True,
        kernels: str = "fastest",
        threads: int = 0,
        profile_folder: str | Path = "",
        engine: str = MAIN,
    ) -> None:
        self.engine = engine_of(engine)
        self.profile_folder = profile_folder
        self.bundle, self.adapter, self.server = str(bundle), adapter, None
        if "://" not in self.bundle:
            read_manifest(self.bundle)  # says an incomplete bundle before a browser starts
        self.choice = {"provider": provider, "precision": precision, "capture": capture, "kernels": kernels}
        self.choice |= {"recorded": recorded and capture} | ({"threads": threads} if threads else {})
        self.loaded: dict = {}
        self.version = ""

    @property
    def name(self) -> str:
        """The engine and its version."""
        return f"{self.engine.label} {self.version}"

    @property
    def evidence(self) -> str:
        """What really runs, in one sentence of the page's."""
        return self.loaded["evidence"]

    def __enter__(self) -> Browser:
        self.adapter = chosen_adapter(self.adapter)
        self.thread = ThreadPoolExecutor(1)
        self.url = self.bundle
        if "://" not in self.bundle:
            self.server = Server(self.bundle).__enter__()
            self.url = self.server.url
        try:
            self._do(self._open)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close)
        self.thread.shutdown()
        if self.server:
            self.server.__exit__()

    def reload(self, **choice: object) -> None:
        """Load the model in another way in the same browser.

        Args:
            choice: `provider`, `precision`, `capture`, `recorded`, `kernels` or `threads`, as `Browser` takes them, or `trying`,
                seconds in which kernels are tried; what is not named stays, but what is not captured is not recorded.
        """
        self.choice |= choice
        self.choice["recorded"] = self.choice["recorded"] and self.choice["capture"]
        self.engine.find(self.choice["provider"])
        self._do(self._load)

    def run(self, graph: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph on float32 arrays by name; its outputs by name."""
        return self.time(graph, feeds, 1)[0]

    def time(self, graph: str, feeds: dict[str, np.ndarray], times: int) -> tuple[dict[str, np.ndarray], list[float]]:
        """Run one graph `times` times: its outputs, and the milliseconds of each run with its transfers."""
        done = self._call("run", {"graph": graph, "feeds": _feeds(feeds), "times": times})
        outputs = {name: _unpacked(y["data"], np.float32).reshape(y["dims"]) for name, y in done["outputs"].items()}
        return outputs, done["milliseconds"]

    def time_steps(self, feeds: dict[str, np.ndarray], times: int) -> list[float]:
        """Run a step `times` times as the page's sampling loop does, the state staying on the device: milliseconds."""
        return self._call("timeSteps", {"feeds": _feeds(feeds), "times": times})

    def profile(self, graph: str, feeds: dict[str, np.ndarray], times: int) -> str:
        """Run one graph `times` times after a first run, profiled: the events as ONNX Runtime writes them."""
        return self._call("profile", {"graph": graph, "feeds": _feeds(feeds), "times": times})

    def command_times(self, run: str = "step") -> dict:
        """How long the commands of a captured graph take on the device, each alone, and what the device does at most.

        Args:
            run: one of `config.RUNS`; empty: only what the device does.

        Returns:
            "commands": "label" (the runtime's name of a program, or the kind of our kernel), "ours", "count" and "milliseconds" in
            all for each; "limits": "gigabytes" a second that a large copy reads and writes, "gflops" of multiplications and sums in
            registers, and for "tiles" of a product of "sides" M, N, K each one's "name" and "gflops", the numbers that it
            "fetches" from memory and "reads" from its workgroup's for each multiplication, and the "sums" that a thread keeps.

        Raises:
            LabError: that run is not captured here.
        """
        return self._call("commandTimes", {"run": run})

    def process_ids(self) -> dict[int, str]:
        """Chromium's own processes: the kind of each ("browser", "renderer", "GPU", ...) by its id; without a profile's folder."""
        if not isinstance(self.session, PlaywrightSession):
            raise LabError(f"{self.engine.label} does not tell its processes; measure memory in Chromium")
        return self._do(self.session.process_ids)

    def inpaint(
        self, image: np.ndarray, mask: np.ndarray, settings: Settings = Settings()
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Fill the hole of a picture; as `loop.inpaint`, and the page's own timings in milliseconds."""
        height, width = mask.shape
        rgba = np.dstack([image, np.full((height, width, 1), 255, np.uint8)])
        job = {"width": width, "height": height, "image": _packed(rgba), "mask": _packed(mask), "settings": asdict(settings)}
        done = self._call("inpaint", job)
        return _unpacked(done["image"], np.uint8).reshape(height, width, 4)[:, :, :3].copy(), done["timings"]

    def _do(self, work: Callable, *arguments: object) -> object:
        return self.thread.submit(work, *arguments).result()

    def _call(self, work: str, argument: dict) -> Any:
        """Call one of the functions that `driver.js` exports: what it returns, or LabError in the page's words."""
        try:
            return self._do(self._evaluate, work, argument)
        except Refused as error:
            raise LabError(str(error)) from None

    def _evaluate(self, work: str, argument: dict, seconds: float = 0.0) -> Any:
        return self.tab.evaluate(CALL, [work, argument, seconds or TIMEOUT, LATE])

    def _open(self, again: bool = True) -> None:
        self.session = session_of(self.engine, self.choice["provider"], self.adapter, self.profile_folder)
        self.version = self.session.version
        try:
            visited = [] if self.server else [self._visit()]
            self.tab = self.session.new_tab()
            for tab in visited:  # drawing while a model is loaded has stopped the software adapter for good
                tab.close()
            self.tab.goto(self.url + MANIFEST)  # a page of the bundle's origin on which nothing else runs
            self.tab.evaluate(IMPORT, ["driver", DRIVER.read_text(encoding="utf-8")])
        except Refused as error:
            raise LabError(str(error)) from None
        self._load(again)

    def _load(self, again: bool = True) -> None:
        """Load the model; a browser in which it never becomes ready, as Firefox's now and then, is started once more."""
        job = {"manifest": self.url + MANIFEST, "choice": self.choice}
        try:
            size = self._evaluate("sizeOf", job, LOADING)
            self.loaded = self._evaluate("load", job, min(TIMEOUT, LOADING + size / LOADED))
        except Refused as error:
            if not again or str(error) != LATE:
                raise LabError(str(error)) from None
            self.session.close()
            self._open(again=False)

    def _visit(self) -> Tab:
        """Open the page as a visitor does; its service worker then gives it threads also where the host cannot."""
        tab = self.session.new_tab()
        tab.goto(self.url)
        tab.evaluate(SETTLED, SETTLING)
        if tab.errors or not 200 <= tab.evaluate(STATUS) < 300:
            raise LabError(
                f"{self.url} does not open: {tab.errors[0] if tab.errors else 'no such page'}; publish it again, whole"
            )
        return tab

    def _close(self) -> None:
        if hasattr(self, "session"):
            self.session.close()


def _feeds(arrays: dict[str, np.ndarray]) -> dict[str, dict]:
    return {name: {"dims": list(x.shape), "data": _packed(x.astype(np.float32))} for name, x in arrays.items()}


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _unpacked(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)
