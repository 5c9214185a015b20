"""A headless Chromium that runs the shipped page's own modules: for parity, benchmarks and tests.

    with Browser("build/bundle", provider="webgpu") as browser:
        outputs = browser.run("vae_decoder", {"latent": latent})
        picture, timings = browser.inpaint(image, mask, Settings())
        print(browser.evidence)

Nothing here computes: `web/engine/engine.js` does, in a page served from the bundle; `driver.js` calls it there.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import LabError
from ..inpainting.loop import Settings
from .bundle import read_manifest
from .serve import Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
"""Programs that are looked for on the PATH, in this order."""
CHROMIUM = "MOEBIUS_CHROMIUM"
"""The environment variable that names the browser's program where none of `NAMES` is to be used."""
SHELL = "chromium-headless-shell"  # the smallest browser that Playwright brings
BRING_SECONDS = 300  # that one way of bringing a browser may take to download
STARTS_SECONDS = 60  # that a browser may take to say its version

SOFTWARE = (
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--disable-gpu-watchdog",
)  # fmt: skip
"""WebGPU without a graphics card: exact, slow, without shader-f16."""

NVIDIA = (
    "--use-gl=angle", "--use-angle=gl-egl", "--use-webgpu-adapter=default", "--disable-vulkan-surface",
    "--enable-features=Vulkan,WebGPU,WebGPUDeveloperFeatures", "--disable-vulkan-fallback-to-gl-for-testing",
    "--ignore-gpu-blocklist", "--enable-unsafe-webgpu", "--enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia",
)  # fmt: skip
"""WebGPU on an NVIDIA card without a display; other combinations gave the software adapter or none. On this driver shader-f16
is hidden unless it is asked for, as in the last flag."""

VULKAN_FILES = tuple(f"{place}/vulkan/icd.d/nvidia_icd.json" for place in ("/etc", "/usr/share", "/usr/local/nvidia/share"))
NVIDIA_FILES = {
    "VK_DRIVER_FILES": VULKAN_FILES,
    "VK_ICD_FILENAMES": VULKAN_FILES,
    "__EGL_VENDOR_LIBRARY_FILENAMES": tuple(
        f"{place}/glvnd/egl_vendor.d/10_nvidia.json" for place in ("/usr/share", "/etc", "/usr/local/nvidia/share")
    ),
}
"""Where NVIDIA's files lie, by the variable that names them; a variable that is set already is left as it is."""

TIMEOUT = 600  # seconds that one call may take
SETTLING = 20_000  # milliseconds that a page may take until its service worker is there

DRIVER = Path(__file__).with_name("driver.js")
IMPORT = "(source) => import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))"
"""What makes `DRIVER` a module of a page, which needs no file of the page's host for it."""
CALL = "([driver, work, argument, seconds]) => driver.inTime(driver[work](argument), seconds)"
SETTLED = (
    "(ms) => Promise.race([navigator.serviceWorker?.ready.then(() => true), new Promise((done) => setTimeout(done, ms))])"
)
"""Runs on the bundle's index.html, whose Content-Security-Policy keeps a module like `DRIVER` out."""


class NoBrowser(LabError):
    """There is no Chromium here, or it does not start."""


def find_chromium() -> str:
    """The path of a Chromium that starts: the one that MOEBIUS_CHROMIUM names, else one on the PATH, else Playwright's own.

    Raises:
        NoBrowser: there is none, or none starts; the message says how to get one.
    """
    if named := os.environ.get(CHROMIUM):
        path = shutil.which(named)
        if not path or not _starts(path):
            raise NoBrowser(f"{CHROMIUM} names {named}, which is no browser that starts; correct it or unset it")
        return path
    broken = []
    for path in _candidates():
        if _starts(path):
            return path
        broken.append(path)
    what = f"{' and '.join(broken)} does not start" if broken else "there is no Chromium"
    raise NoBrowser(f"{what}: run `python -m moebius_lab browser`, which brings one, or install your system's package")


def _candidates() -> Iterator[str]:
    """Browsers that are there, the system's first; whether they start is not known yet."""
    yield from (path for name in NAMES if (path := shutil.which(name)))
    try:
        whole = Path(with_playwright(lambda play: play.chromium.executable_path))
    except NoBrowser:  # no Playwright, and so none of its browsers
        return
    revision = whole.parents[1].name.removeprefix("chromium-")
    shells = whole.parents[2].glob(f"chromium_headless_shell-{revision}/*/*headless?shell*")
    yield from (str(path) for path in (whole, *shells) if os.access(path, os.X_OK) and path.is_file())


@lru_cache
def _starts(path: str) -> bool:
    """Whether a browser gets as far as its version: libraries may be missing, and Ubuntu's package is a word on a snap."""
    if os.name != "posix":  # elsewhere it would open a window
        return True
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=STARTS_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# -- bringing one ------------------------------------------------------------------------------------------------------


def bring_chromium(say: Callable[[str], None]) -> str | None:
    """Find a Chromium or bring one: Playwright's headless shell, else Debian's package where it may be installed.

    Args:
        say: gets a line before each way is tried, and one at the end if none led to a browser.

    Returns:
        The browser's path, or None.

    Raises:
        NoBrowser: MOEBIUS_CHROMIUM names something else than a browser.
    """
    try:
        return find_chromium()
    except NoBrowser:
        if os.environ.get(CHROMIUM):
            raise
    failed = []
    for what, bring in (("Playwright's headless shell", _bring_shell), ("the system's package", _bring_package)):
        say(f"no Chromium here: bringing {what}")
        reason = bring()
        _starts.cache_clear()  # what was missing may have come
        try:
            return find_chromium()
        except NoBrowser as error:
            failed.append(f"{what}: {reason or str(error).partition(':')[0]}")
    say(
        f"no Chromium could be brought ({'; '.join(failed)}). Without one the browser's rows are missing from the notebooks, and "
        f"the tests that need one fail: install one, or name one in {CHROMIUM}"
    )
    return None


def _bring_shell() -> str:
    """Let Playwright download its headless shell; why that failed, or nothing."""
    if not find_spec("playwright"):
        return "Playwright is not installed"
    return _attempt([sys.executable, "-m", "playwright", "install", SHELL], BRING_SECONDS)


def _bring_package() -> str:
    """Let apt install Debian's Chromium, or what Playwright's lacks; why that failed, or nothing."""
    if not shutil.which("apt-get"):
        return "there is no apt-get"
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        root = []
    elif shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        root = ["sudo", "-n"]
    else:
        return "only root may install it"
    apt = [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-q",
        "-y",
        "-o",
        "DPkg::Lock::Timeout=60",
        "-o",
        "Acquire::Retries=1",
    ]
    fetch = [*root, "timeout", str(BRING_SECONDS), *apt]  # which ends downloads alone: dpkg must not be cut short
    package = ["install", "--no-install-recommends", "chromium"]
    commands = [[*fetch, "update"], [*fetch, *package, "--download-only"], [*root, *apt, *package]]
    if any("chromium_headless_shell-" in path for path in _candidates()):  # that came, but lacks libraries
        commands = [[sys.executable, "-m", "playwright", "install-deps", SHELL]]
    for command in commands:
        if reason := _attempt(command):
            return reason
    return ""


def _attempt(command: list[str], seconds: float | None = None) -> str:
    """Run a command and all that it starts, for so many seconds if any are given; why it failed, in one line, or nothing."""
    done = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", start_new_session=True
    )
    try:
        said = done.communicate(timeout=seconds)[0]
    except BaseException as error:
        os.killpg(done.pid, signal.SIGKILL)
        done.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"not there after {seconds:.0f} s"
        raise
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(Error|E):", line)]
    return (telling or lines or [f"exit code {done.returncode}"])[0]


def with_playwright(use: Callable) -> object:
    """Call `use` with Playwright's synchronous interface, in a thread without an event loop, where alone it works."""

    def job() -> object:
        with _sync_api().sync_playwright() as play:
            return use(play)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(job).result()


def _sync_api():
    """Playwright's module, which the page and the graphs do without."""
    try:
        from playwright import sync_api
    except ImportError:
        raise NoBrowser("driving a browser needs Playwright: `pip install playwright`") from None
    return sync_api


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


def weights_fetched(bundle: str | Path, precision: str, visits: int = 2) -> list[int]:
    """How many requests for weights each visit makes, in a browser that is started anew each time and keeps what it stores.

    Raises:
        LabError: no Chromium, no bundle in that folder, or one without this precision.
    """
    found = []
    with Server(bundle) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for _ in range(visits):
            before = len(server.requests)
            with Browser(server.url, "wasm", precision, profile_folder=folder):
                found.append(sum("/weights/" in path for path in server.requests[before:]))
    return found


def has_nvidia() -> bool:
    """Whether this machine has an NVIDIA card that its driver can use."""
    return bool(shutil.which("nvidia-smi")) and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


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


def launch_options(adapter: str = "auto") -> dict[str, object]:
    """What Playwright's `chromium.launch` needs for WebGPU on this machine.

    Args:
        adapter: "nvidia", "software", "none" for a browser without WebGPU, or "auto": nvidia where there is a card.

    Raises:
        LabError: no Chromium, or an unknown adapter.
    """
    if adapter == "auto":
        adapter = "nvidia" if has_nvidia() else "software"
    flags = {"nvidia": NVIDIA, "software": SOFTWARE, "none": ("--disable-features=WebGPU", "--disable-gpu")}
    if adapter not in flags:
        raise LabError(f"adapter {adapter!r} is unknown; choose auto, {', '.join(flags)}")
    environment = dict(os.environ)
    if adapter == "nvidia":
        for variable, candidates in NVIDIA_FILES.items():
            if found := next((path for path in candidates if Path(path).is_file()), None):
                environment.setdefault(variable, found)
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return {"executable_path": find_chromium(), "args": [*flags[adapter], *sandbox], "env": environment}


class Browser:
    """One model loaded in a Chromium of its own; use it as a context.

    Calls work in any thread, also inside the running event loop of a notebook.

    Args:
        bundle: a folder of `bundle.write_bundle`, which is served meanwhile, or the URL of one that is, ending in a slash.
        provider: "webgpu" or "wasm": where all three graphs run. There is no falling back.
        precision: one that the bundle has.
        adapter: see `launch_options`.
        capture: on WebGPU capture each graph that runs on the device as a whole, and replay it; see `web/engine/capture.js`.
        threads: of wasm; 0 for the page's own choice, one a core.
        profile_folder: where the browser keeps what it stores, for a later `Browser` of the same URL; empty for nowhere.

    Attributes:
        loaded: what the page says of itself: provider, adapter, features, threads, placed nodes, evidence; and the
            milliseconds from asking for the model until it was ready.
        version: of the browser.

    Raises:
        LabError: no Chromium, or the page's own message of why it cannot run the model here.
    """

    def __init__(
        self,
        bundle: str | Path,
        provider: str = "webgpu",
        precision: str = "fp32",
        adapter: str = "auto",
        capture: bool = True,
        threads: int = 0,
        profile_folder: str | Path = "",
    ) -> None:
        self.profile_folder = str(profile_folder)
        self.bundle, self.adapter, self.server = str(bundle), adapter, None
        if "://" not in self.bundle:
            read_manifest(self.bundle)  # says an incomplete bundle before a browser starts
        self.choice = {"provider": provider, "precision": precision, "capture": capture} | (
            {"threads": threads} if threads else {}
        )
        self.loaded: dict = {}
        self.version = ""

    @property
    def evidence(self) -> str:
        """What really runs, in one sentence of the page's."""
        return self.loaded["evidence"]

    def __enter__(self) -> Browser:
        options = launch_options(self.adapter)
        self.thread = ThreadPoolExecutor(1)
        self.url = self.bundle
        if "://" not in self.bundle:
            self.server = Server(self.bundle).__enter__()
            self.url = self.server.url
        try:
            self._do(self._open, options)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close)
        self.thread.shutdown()
        if self.server:
            self.server.__exit__()

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

    def process_ids(self) -> dict[int, str]:
        """Chromium's own processes: the kind of each ("browser", "renderer", "GPU", ...) by its id; without a profile's folder."""
        found = self._do(lambda: self.chromium.new_browser_cdp_session().send("SystemInfo.getProcessInfo"))
        return {process["id"]: process["type"] for process in found["processInfo"]}

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
        except _sync_api().Error as error:
            raise LabError(_own_words(str(error))) from None

    def _evaluate(self, work: str, argument: dict) -> Any:
        return self.page.evaluate(CALL, [self.driver, work, argument, TIMEOUT])

    def _open(self, options: dict[str, object]) -> None:
        api = _sync_api()
        self.playwright = api.sync_playwright().start()
        try:
            if self.profile_folder:
                self.chromium = context = self.playwright.chromium.launch_persistent_context(self.profile_folder, **options)
            else:
                self.chromium = self.playwright.chromium.launch(**options)
                context = self.chromium.new_context()
        except api.Error as error:
            raise NoBrowser(f"{options['executable_path']} does not start: {_own_words(str(error))}") from None
        context.set_default_timeout(TIMEOUT * 1000)
        try:
            if not self.server:
                self._visit(context.new_page())
            self.page = context.new_page()
            self.version = context.new_cdp_session(self.page).send("Browser.getVersion")["product"].partition("/")[2]
            manifest = self.url + "manifest.json"
            self.page.goto(manifest)  # a page of the bundle's origin on which nothing else runs
            self.driver = self.page.evaluate_handle(IMPORT, DRIVER.read_text(encoding="utf-8"))
            self.loaded = self._evaluate("load", {"manifest": manifest, "choice": self.choice})
        except api.Error as error:
            raise LabError(_own_words(str(error))) from None

    def _visit(self, page) -> None:
        """Open the page as a visitor does; its service worker then gives it threads also where the host cannot.

        In a tab of its own, closed before a model is loaded: drawing meanwhile has stopped the software adapter for good.
        """
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        answer = page.goto(self.url)
        page.evaluate(SETTLED, SETTLING)
        page.close()
        if errors or not (answer and answer.ok):
            raise LabError(f"{self.url} does not open: {errors[0] if errors else 'no such page'}; publish it again, whole")

    def _close(self) -> None:
        if hasattr(self, "chromium"):
            self.chromium.close()
        if hasattr(self, "playwright"):
            self.playwright.stop()


def _own_words(message: str) -> str:
    """The engine's sentence out of Playwright's message, which adds where it was thrown."""
    first = message.splitlines()[0].removeprefix("Page.evaluate: ").removeprefix("Page.goto: ")
    return first.removeprefix("EngineError: ").removeprefix("Error: ")


def _feeds(arrays: dict[str, np.ndarray]) -> dict[str, dict]:
    return {name: {"dims": list(x.shape), "data": _packed(x.astype(np.float32))} for name, x in arrays.items()}


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _unpacked(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)
