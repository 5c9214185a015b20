"""How each engine is driven: a window of its own, whose tabs open pages and call functions in them.

    chromium  Playwright, over Chrome's own protocol
    firefox   W3C's WebDriver BiDi, JSON over a WebSocket, which Firefox answers itself
    webkit    W3C's WebDriver, JSON over HTTP, which WebKitGTK's driver answers, on a screen of its own (Xvfb)

Selenium would start Firefox through geckodriver only, which Debian has not, and Playwright's own way to Firefox sends it a command
that Debian's does not know. What is needed here of the two standards is a dozen commands.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from .. import LabError
from .engines import Engine, NoBrowser, find, playwright_api

TIMEOUT = 600  # seconds that one call may take
STARTS_SECONDS = 60  # that a browser may take until it answers
ASK_SECONDS = 0.05  # between two questions whether it is there
ENDS_SECONDS = 10  # that one may take to end by itself

SOFTWARE = (
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--disable-gpu-watchdog",
    "--disable-dawn-features=use_vulkan_zero_initialize_workgroup_memory_extension",
)  # fmt: skip
"""WebGPU of Chromium without a graphics card: exact, slow, without shader-f16.

The last flag has shaders zero their workgroup memory in a loop. With the extension SwiftShader writes one store an element into
each of them, and compiling TINY's step takes 9 s instead of 1.3.
"""

BASELINE = "--js-flags=--liftoff-only --wasm-lazy-compilation --wasm-lazy-validation"
"""WebAssembly as V8's first compiler leaves it, and only the functions that run. On a software adapter it does nothing but begin ONNX
Runtime, which takes 1.6 s of processor time then instead of 5.5."""

NVIDIA = (
    "--use-gl=angle", "--use-angle=gl-egl", "--use-webgpu-adapter=default", "--disable-vulkan-surface",
    "--enable-features=Vulkan,WebGPU,WebGPUDeveloperFeatures", "--disable-vulkan-fallback-to-gl-for-testing",
    "--ignore-gpu-blocklist", "--enable-unsafe-webgpu", "--enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia",
)  # fmt: skip
"""WebGPU of Chromium on an NVIDIA card without a display; other combinations gave the software adapter or none. On this driver
shader-f16 is hidden unless it is asked for, as in the last flag."""

VULKAN_FILES = tuple(f"{place}/vulkan/icd.d/nvidia_icd.json" for place in ("/etc", "/usr/share", "/usr/local/nvidia/share"))
NVIDIA_FILES = {
    "VK_DRIVER_FILES": VULKAN_FILES,
    "VK_ICD_FILENAMES": VULKAN_FILES,
    "__EGL_VENDOR_LIBRARY_FILENAMES": tuple(
        f"{place}/glvnd/egl_vendor.d/10_nvidia.json" for place in ("/usr/share", "/etc", "/usr/local/nvidia/share")
    ),
}
"""Where NVIDIA's files lie, by the variable that names them; a variable that is set already is left as it is."""
LAVAPIPE = "/usr/share/vulkan/icd.d/lvp_icd*.json"  # Mesa's Vulkan on the processor, which has shader-f16

PREFERENCES = {
    "gfx.webgpu.ignore-blocklist": True,  # which has drivers without a card
    "devtools.jsonview.enabled": False,  # a page of the bundle's origin, not one that shows it
}
"""Of Firefox, besides WebGPU's own and those that it takes by itself where it is driven."""

BEGUN = "new Promise((began) => began((FUNCTION)(JSON.parse(text))))"
TOLD = ".then((value) => ({ value }), (error) => ({ error: `${error?.message ?? error}` })).then(JSON.stringify)"
BIDI = f"(text) => {BEGUN}{TOLD}"
WEBDRIVER = f"({BIDI})(arguments[0]).then(arguments[1])"
"""How the two standards call a function with one argument and get what came of it; all of that is JSON."""


AS_MODULE = "await import(URL.createObjectURL(new Blob([text], { type: 'text/javascript' })))"
IMPORT = f"async ([name, text]) => void (globalThis[name] = {AS_MODULE})"
"""Makes a text a module of a page, which needs no file of the page's host for it, and gives it a name there."""


class Refused(Exception):
    """What a page threw, or why an address does not open, in the browser's own words."""


class Tab(Protocol):
    """A page that is open, or will be."""

    errors: list[str]  # that nothing in its page caught, as far as the engine tells

    def goto(self, url: str) -> None:
        """Open an address, until all of it is there; `Refused` if nothing answers."""

    def evaluate(self, function: str, argument: object = None) -> Any:
        """Call a function of JavaScript with one argument; what it returns, or what its promise gives. Both are JSON.

        Raises:
            Refused: the function threw.
        """

    def close(self) -> None:
        """Close it, with its page."""


class Session:
    """A browser that runs, with a profile of its own or one that is kept in a folder.

    Args:
        program: what is started.
        provider: of the page, that is to be quick.
        adapter: one of `ADAPTERS`.
        folder: of the profile; empty for a new one, which is removed.

    Raises:
        NoBrowser: it does not start, or the package that drives it is not installed.
        LabError: a folder where it keeps no profile.
    """

    version: str
    ended: ExitStack  # what ends all that was started for it

    def new_tab(self) -> Tab:
        """A tab in front of all others."""
        raise NotImplementedError

    def close(self) -> None:
        """End the browser and all that was started with it."""
        self.ended.close()


@contextmanager
def running(command: list[str], environment: dict[str, str], inherited: tuple[int, ...] = ()) -> Iterator[subprocess.Popen]:
    """A process with these files open, which gets a while to end by itself when the context ends."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        pass_fds=inherited, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def first_answer(program: str, process: subprocess.Popen, ask: Callable[[], Any]) -> Any:
    """What `ask` gives once the process of a program is ready; NoBrowser if it ends before or takes too long."""
    for _ in range(int(STARTS_SECONDS / ASK_SECONDS)):
        with suppress(OSError, ValueError):  # not there yet, or not all of it
            return ask()
        if process.poll() is not None:
            break
        time.sleep(ASK_SECONDS)
    what = (
        f"ended with code {process.returncode}" if process.returncode is not None else f"said nothing for {STARTS_SECONDS} s"
    )
    raise NoBrowser(f"{program} does not start: it {what}")


def value_of(answer: str) -> Any:
    """What a function gave that was called by `BIDI` or `WEBDRIVER`; `Refused` if it threw."""
    done = json.loads(answer)
    if "error" in done:
        raise Refused(done["error"])
    return done.get("value")


def has_nvidia() -> bool:
    """Whether this machine has an NVIDIA card that its driver can use."""
    return bool(shutil.which("nvidia-smi")) and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


ADAPTERS = ("nvidia", "software", "none")


def chosen_adapter(adapter: str) -> str:
    """What "auto" stands for here, or the adapter itself; LabError where there is none of that name."""
    if adapter == "auto":
        return "nvidia" if has_nvidia() else "software"
    if adapter not in ADAPTERS:
        raise LabError(f"adapter {adapter!r} is unknown; choose auto, {', '.join(ADAPTERS)}")
    return adapter


def environment_for(adapter: str) -> dict[str, str]:
    """The environment of a browser that is to take NVIDIA's card; of any other this process's own."""
    environment = dict(os.environ)
    if adapter == "nvidia":
        for variable, candidates in NVIDIA_FILES.items():
            if found := next((path for path in candidates if Path(path).is_file()), None):
                environment.setdefault(variable, found)
    return environment


# -- Chromium, by Playwright -------------------------------------------------------------------------------------------


def launch_options(adapter: str = "auto", provider: str = "webgpu") -> dict[str, object]:
    """What Playwright's `chromium.launch` needs for WebGPU on this machine.

    Args:
        adapter: "nvidia", "software", "none" for a browser without WebGPU, or "auto": nvidia where there is a card.
        provider: of the page, that is to be quick; the other runs too.

    Raises:
        LabError: no Chromium, or an unknown adapter.
    """
    adapter = chosen_adapter(adapter)
    software = (*SOFTWARE, BASELINE) if provider == "webgpu" else SOFTWARE
    flags = {"nvidia": NVIDIA, "software": software, "none": ("--disable-features=WebGPU", "--disable-gpu")}
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return {"executable_path": find(), "args": [*flags[adapter], *sandbox], "env": environment_for(adapter)}


class PlaywrightTab:
    """A `Tab` of Chromium."""

    def __init__(self, page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def goto(self, url: str) -> None:
        with _refusals():
            self.page.goto(url)

    def evaluate(self, function: str, argument: object = None) -> Any:
        with _refusals():
            return self.page.evaluate(function, argument)

    def close(self) -> None:
        self.page.close()


class PlaywrightSession(Session):
    """Chromium in a window of its own."""

    def __init__(self, program: str, provider: str, adapter: str, folder: str) -> None:
        api, options = playwright_api(), launch_options(adapter, provider) | {"executable_path": program}
        with ExitStack() as started:
            playwright = started.enter_context(api.sync_playwright())
            if (
                adapter == "nvidia"
            ):  # a visitor's driver keeps programs as well: one that comes for the first time has none of them
                kept = Path(
                    folder or started.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)), "driver"
                )
                kept.mkdir(parents=True, exist_ok=True)
                options["env"] = options["env"] | {"__GL_SHADER_DISK_CACHE_PATH": str(kept)}
            try:
                if folder:
                    self.chromium = self.context = playwright.chromium.launch_persistent_context(folder, **options)
                else:
                    self.chromium = playwright.chromium.launch(**options)
                    self.context = self.chromium.new_context()
            except api.Error as error:
                raise NoBrowser(f"{program} does not start: {own_words(str(error))}") from None
            started.callback(self.chromium.close)
            self.context.set_default_timeout(TIMEOUT * 1000)
            page = self.context.new_page()
            self.version = self.context.new_cdp_session(page).send("Browser.getVersion")["product"].partition("/")[2]
            self.unused = [page]
            self.ended = started.pop_all()

    def new_tab(self) -> PlaywrightTab:
        return PlaywrightTab(self.unused.pop() if self.unused else self.context.new_page())

    def process_ids(self) -> dict[int, str]:
        """Its own processes: the kind of each ("browser", "renderer", "GPU", ...) by its id; without a profile's folder."""
        found = self.chromium.new_browser_cdp_session().send("SystemInfo.getProcessInfo")
        return {process["id"]: process["type"] for process in found["processInfo"]}


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except playwright_api().Error as error:
        raise Refused(own_words(str(error))) from None


def own_words(message: str) -> str:
    """The engine's sentence out of Playwright's message, which adds where it was thrown."""
    first = message.splitlines()[0].removeprefix("Page.evaluate: ").removeprefix("Page.goto: ")
    return first.removeprefix("EngineError: ").removeprefix("Error: ")


# -- Firefox, by WebDriver BiDi ----------------------------------------------------------------------------------------


class BidiTab:
    """A `Tab` of Firefox."""

    def __init__(self, session: BidiSession) -> None:
        self.session = session
        self.context = session.send("browsingContext.create", type="tab")["context"]
        self.errors = session.errors.setdefault(self.context, [])

    def goto(self, url: str) -> None:
        self.session.send("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, function: str, argument: object = None) -> Any:
        done = self.session.send(
            "script.callFunction",
            functionDeclaration=BIDI.replace("FUNCTION", function),
            arguments=[{"type": "string", "value": json.dumps(argument)}],
            awaitPromise=True,
            target={"context": self.context},
        )
        return value_of(done["result"]["value"])

    def close(self) -> None:
        self.session.send("browsingContext.close", context=self.context)


class BidiSession(Session):
    """Firefox without a window on the screen."""

    def __init__(self, program: str, provider: str, adapter: str, folder: str) -> None:
        try:
            import websocket
        except ImportError:
            raise NoBrowser("driving Firefox needs the package websocket-client: `pip install websocket-client`") from None
        environment = environment_for(adapter)
        if adapter == "software" and (files := glob.glob(LAVAPIPE)):
            environment |= dict.fromkeys(("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), files[0])
        self.errors: dict[str, list[str]] = {}  # by tab
        self.count, self.broken = 0, websocket.WebSocketException
        with ExitStack() as started:
            folder = folder or started.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            preferences = PREFERENCES | dict.fromkeys(
                ("dom.webgpu.enabled", "dom.webgpu.workers.enabled"), adapter != "none"
            )
            lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in preferences.items()]
            Path(folder, "user.js").write_text("\n".join(lines), encoding="utf-8")
            told = Path(folder, "WebDriverBiDiServer.json")  # where Firefox says at which port it listens
            told.unlink(missing_ok=True)
            command = [program, "--headless", "--no-remote", "--remote-debugging-port=0", "--profile", folder]
            self.process = started.enter_context(running(command, environment))
            address = first_answer(program, self.process, lambda: json.loads(told.read_text(encoding="utf-8")))
            url = f"ws://{address['ws_host']}:{address['ws_port']}/session"
            self.socket = started.enter_context(closing(websocket.create_connection(url, TIMEOUT, suppress_origin=True)))
            self.version = self.send("session.new", capabilities={})["capabilities"]["browserVersion"]
            started.push(self._quit)
            self.send("session.subscribe", events=["log.entryAdded"])
            self.ended = started.pop_all()

    def new_tab(self) -> BidiTab:
        return BidiTab(self)

    def _quit(self, *_: object) -> None:
        with suppress(Refused, subprocess.TimeoutExpired):  # ended already, or hangs
            self.send("browser.close")
            self.process.wait(ENDS_SECONDS)  # it stores what it has to

    def send(self, method: str, **parameters: object) -> dict:
        """Send a command and wait for its result; `Refused` in Firefox's words if it fails."""
        self.count += 1
        try:
            self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
            while (answer := json.loads(self.socket.recv())).get("id") != self.count:
                self._note(answer)
        except (OSError, self.broken) as error:
            self.socket.close()  # one that hangs is not waited for again
            raise Refused(f"Firefox does not answer ({error})") from None
        if answer["type"] == "error":
            raise Refused(answer["message"].removeprefix("Error: "))
        return answer["result"]

    def _note(self, event: dict) -> None:
        """Keep what nothing in a page caught."""
        entry = event.get("params", {})
        if (entry.get("type"), entry.get("level")) == ("javascript", "error"):
            self.errors.setdefault(entry["source"].get("context", ""), []).append(entry["text"])


# -- WebKit, by WebDriver ----------------------------------------------------------------------------------------------


class WebDriverTab:
    """A `Tab` of WebKit."""

    def __init__(self, session: WebDriverSession, handle: str) -> None:
        self.session, self.handle, self.errors = session, handle, []

    def send(self, method: str, path: str, **parameters: object) -> Any:
        """Send a command to this tab; see `WebDriverSession.send`."""
        try:
            self.session.send("POST", "/window", handle=self.handle)
            return self.session.send(method, path, **parameters)
        except OSError as error:
            raise Refused(f"WebKit's driver does not answer ({error})") from None

    def goto(self, url: str) -> None:
        self.send("POST", "/url", url=url)
        if not self.evaluate("() => performance.getEntriesByType('navigation').length"):  # WebKit shows a page of its own
            raise Refused(f"nothing answers at {url}")

    def evaluate(self, function: str, argument: object = None) -> Any:
        script = WEBDRIVER.replace("FUNCTION", function)
        return value_of(self.send("POST", "/execute/async", script=script, args=[json.dumps(argument)]))

    def close(self) -> None:
        self.send("DELETE", "/window")


class WebDriverSession(Session):
    """WebKitGTK's browser on a screen of its own. It keeps nothing for a later session."""

    def __init__(self, program: str, provider: str, adapter: str, folder: str) -> None:
        if folder:
            raise LabError("WebKit keeps nothing for a later visit here: choose Chromium or Firefox")
        with ExitStack() as started:
            ours, theirs = os.pipe()
            started.callback(os.close, ours)
            screen = ["Xvfb", "-displayfd", str(theirs), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
            started.enter_context(running(screen, dict(os.environ), (theirs,)))
            os.close(theirs)
            display = os.read(ours, 20).decode().strip()  # nothing if it ended
            with socket.create_server(("127.0.0.1", 0)) as server:
                self.port = server.getsockname()[1]
            environment = environment_for("none") | {"DISPLAY": f":{display}"}
            process = started.enter_context(running([program, "--host=127.0.0.1", f"--port={self.port}"], environment))
            self.path = ""
            first_answer(program, process, lambda: self.send("GET", "/status"))
            timeouts = {"script": TIMEOUT * 1000, "pageLoad": TIMEOUT * 1000}
            new = self.send("POST", "/session", capabilities={"alwaysMatch": {"timeouts": timeouts}})
            self.version, self.path = new["capabilities"]["browserVersion"], f"/session/{new['sessionId']}"
            started.push(self._quit)
            self.unused = [self.send("GET", "/window")]  # the tab that it opened with
            self.ended = started.pop_all()

    def new_tab(self) -> WebDriverTab:
        return WebDriverTab(
            self, self.unused.pop() if self.unused else self.send("POST", "/window/new", type="tab")["handle"]
        )

    def _quit(self, *_: object) -> None:
        with suppress(Refused, OSError):  # ended already
            self.send("DELETE", "")

    def send(self, method: str, path: str, **parameters: object) -> Any:
        """Send a command and wait for its value; `Refused` in the driver's words if it fails."""
        body = json.dumps(parameters).encode() if method == "POST" else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.path}{path}", body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT + ENDS_SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise Refused(json.load(error)["value"]["message"]) from None


SESSIONS: dict[str, type[Session]] = {"playwright": PlaywrightSession, "bidi": BidiSession, "webdriver": WebDriverSession}
"""What drives an engine, by its `driven_by`."""


def session_of(engine: Engine, provider: str, adapter: str, folder: str | Path = "") -> Session:
    """Start an engine for one of the page's providers; adapter and folder as `Session` has them.

    Raises:
        NoBrowser, LabError: it is not here, or does not start; see `Session`.
    """
    return SESSIONS[engine.driven_by](engine.find(provider), provider, adapter, str(folder))
