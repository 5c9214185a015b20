"""The browsers that run the page: how each is found here, what it can run, and what brings it.

    path = find("firefox", "webgpu")  # or NoBrowser, which says what is missing and how to get it
    bring(print)  # what is missing, where Debian's packages may be installed

To add one is to add an entry to `ENGINES`. How they are driven is in `driving`.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

from .. import LabError
from ..config import PROVIDERS

BRING_SECONDS = 300  # that one way of bringing a browser may take to download
STARTS_SECONDS = 60  # that a browser may take to say its version


HOW_TO_GET = "run `python -m moebius_lab browser`, which brings it, or install your system's package"


class NoBrowser(LabError):
    """A browser that is not here, or does not start."""


@dataclass(frozen=True)
class Part:
    """A package without which an engine does not run on Linux."""

    package: str  # Debian's
    shown_by: tuple[str, ...]  # programs on the PATH and patterns of files: one of them shows that it is there
    provider: str = ""  # of the page, which alone needs it; empty: none runs without it


@dataclass(frozen=True)
class Engine:
    """A browser that runs the page."""

    label: str  # what tables and messages call it
    programs: tuple[str, ...]  # looked for on the PATH, in this order; what is started
    named_by: str  # the environment variable that names the program where none of `programs` is to be used
    package: str  # Debian's, that brings it
    driven_by: str  # key of `driving.SESSIONS`
    providers: tuple[str, ...]  # of the page, that it has
    asked: str = "--version"  # what its program answers at once without opening a window
    shell: str = ""  # the smallest build that Playwright brings of it
    parts: tuple[Part, ...] = ()

    def lacking(self, *providers: str) -> list[Part]:
        """The parts that are not here, without which it does not run, or does not run one of the page's providers."""
        if sys.platform != "linux":
            return []
        needed = [part for part in self.parts if part.provider in ("", *providers)]
        return [part for part in needed if not any(shutil.which(name) or glob.glob(name) for name in part.shown_by)]

    def find(self, provider: str = "") -> str:
        """The path of its program, which starts: the one that the variable names, else one on the PATH, else Playwright's own.

        Args:
            provider: of the page, that it is to run; empty for none in particular.

        Raises:
            NoBrowser: there is none, none starts, or something is missing that it needs; the message says how to get it.
        """
        if provider and provider not in self.providers:
            raise NoBrowser(f"{self.label} has no {provider} here; choose {' or '.join(self.providers)}")
        path = self._named() or self._installed()
        if lacking := self.lacking(provider):
            what = " and ".join(part.package for part in lacking)
            raise NoBrowser(f"{self.label} lacks {what} for {provider or 'any work'}: {HOW_TO_GET}")
        return path

    def here(self) -> dict[str, str]:
        """By the page's provider: the program, the first line of its answer and when it was installed; or why there is none."""

        @cache
        def said(path: str) -> str:
            answer = (_answer(path, self.asked) or "").partition("\n")[0].strip()
            return f"{path}, {Path(path).stat().st_mtime:.0f}: {answer}"

        found = {}
        for provider in self.providers:
            try:
                found[provider] = said(self.find(provider))
            except NoBrowser as reason:
                found[provider] = str(reason)
        return found

    def _named(self) -> str:
        if not (named := os.environ.get(self.named_by)):
            return ""
        path = shutil.which(named)
        if not path or not _starts(path, self.asked):
            raise NoBrowser(f"{self.named_by} names {named}, which is no browser that starts; correct it or unset it")
        return path

    def _installed(self) -> str:
        broken = []
        for path in self.candidates():
            if _starts(path, self.asked):
                return path
            broken.append(path)
        what = f"{' and '.join(broken)} does not start" if broken else f"there is no {self.label}"
        raise NoBrowser(f"{what}: {HOW_TO_GET}")

    def candidates(self) -> Iterator[str]:
        """Programs that are there, the system's first; whether they start is not known yet."""
        yield from (path for name in self.programs if (path := shutil.which(name)))
        if not self.shell:
            return
        try:
            whole = Path(with_playwright(lambda play: play.chromium.executable_path))
        except NoBrowser:  # no Playwright, and so none of its browsers
            return
        revision = whole.parents[1].name.removeprefix("chromium-")
        shells = whole.parents[2].glob(f"{SHELL_FOLDER}{revision}/*/*headless?shell*")
        yield from (str(path) for path in (whole, *shells) if os.access(path, os.X_OK) and path.is_file())


VULKAN_FILES = ("/usr/share/vulkan/icd.d/*.json", "/etc/vulkan/icd.d/*.json")

ENGINES = {
    "chromium": Engine(
        "Chromium",
        ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell"),
        "MOEBIUS_CHROMIUM",
        "chromium",
        "playwright",
        PROVIDERS,
        shell="chromium-headless-shell",
    ),
    "firefox": Engine(
        "Firefox",
        ("firefox-esr", "firefox"),
        "MOEBIUS_FIREFOX",
        "firefox-esr",
        "bidi",
        PROVIDERS,
        parts=(Part("mesa-vulkan-drivers", VULKAN_FILES, "webgpu"),),
    ),
    "webkit": Engine(
        "WebKit",
        ("WebKitWebDriver",),
        "MOEBIUS_WEBKIT",
        "webkit2gtk-driver",
        "webdriver",
        ("wasm",),
        asked="--help",
        parts=(Part("xvfb", ("Xvfb",)),),
    ),
}
"""Every engine by its name; to add one is to add an entry."""
MAIN = "chromium"
"""The one that everything runs in unless another is asked for."""
OTHERS = tuple(name for name in ENGINES if name != MAIN)
SHELL_FOLDER = "chromium_headless_shell-"  # where Playwright keeps its build, with the revision


def engine_of(name: str) -> Engine:
    """The entry of that name; LabError where there is none."""
    if name not in ENGINES:
        raise LabError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}")
    return ENGINES[name]


def find(name: str = MAIN, provider: str = "") -> str:
    """`Engine.find` of the engine of that name."""
    return engine_of(name).find(provider)


def _answer(path: str, asked: str) -> str | None:
    """What a program answers; None where it does not get so far: libraries may be missing, and Ubuntu's package is a word on a snap."""
    if os.name != "posix":  # elsewhere it would open a window
        return ""
    try:
        done = subprocess.run([path, asked], capture_output=True, encoding="utf-8", errors="replace", timeout=STARTS_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@lru_cache
def _starts(path: str, asked: str) -> bool:
    return _answer(path, asked) is not None


def with_playwright(use: Callable) -> object:
    """Call `use` with Playwright's synchronous interface, in a thread without an event loop, where alone it works."""

    def job() -> object:
        with playwright_api().sync_playwright() as play:
            return use(play)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(job).result()


def playwright_api():
    """Playwright's module, which the page and the graphs do without."""
    try:
        from playwright import sync_api
    except ImportError:
        raise NoBrowser("driving a browser needs Playwright: `pip install playwright`") from None
    return sync_api


# -- bringing them -----------------------------------------------------------------------------------------------------


def bring(say: Callable[[str], None], names: Iterable[str] = tuple(ENGINES)) -> dict[str, str]:
    """Find engines or bring them: Playwright's headless shell of Chromium, else Debian's packages where they may be installed.

    Args:
        say: gets a line before each way is tried, and one at the end for each engine that is missing or lacks something.
        names: of `ENGINES`.

    Returns:
        The programs' paths by the engines' names, of those that are here.

    Raises:
        NoBrowser: an engine's variable names something else than a browser.
        LabError: there is no such engine.
    """
    complaints = {name: _complaint(engine_of(name)) for name in names}
    update = cache(_update_lists)  # once for all that is installed here
    for name, engine in ((name, ENGINES[name]) for name in complaints if complaints[name]):
        if os.environ.get(engine.named_by):
            engine.find()
        ways = {"Playwright's headless shell": partial(_bring_shell, engine)} if engine.shell else {}
        ways["the system's package"] = partial(_bring_packages, engine, update)
        failed = []
        for what, way in ways.items():
            say(f"{complaints[name]}: bringing {what}")
            reason = way()
            _starts.cache_clear()  # what was missing may have come
            if not (complaint := _complaint(engine)):
                break
            failed.append(f"{what}: {reason or complaint}")
        else:
            tests = "fail" if name == MAIN else "are skipped"
            say(
                f"{complaint}, and that could not be brought ({'; '.join(failed)}). Its rows are missing from the notebooks, and "
                f"the tests that need it {tests}: install it, or name one in {engine.named_by}"
            )
    found = {}
    for name in complaints:
        with suppress(NoBrowser):
            found[name] = find(name)
    return found


def _complaint(engine: Engine) -> str:
    """Why an engine does not run all of its providers here, or nothing."""
    try:
        for provider in engine.providers:
            engine.find(provider)
    except NoBrowser as error:
        return str(error).partition(":")[0]
    return ""


def _bring_shell(engine: Engine) -> str:
    """Let Playwright download its smallest build; why that failed, or nothing."""
    if not find_spec("playwright"):
        return "Playwright is not installed"
    return _attempt([sys.executable, "-m", "playwright", "install", engine.shell], BRING_SECONDS)


def _bring_packages(engine: Engine, update: Callable[[], str]) -> str:
    """Let apt install Debian's package and what it lacks, or what Playwright's build lacks; why that failed, or nothing."""
    root, reason = _root()
    if reason:
        return reason
    if engine.shell and any(SHELL_FOLDER in path for path in engine.candidates()):  # that came, but lacks libraries
        return _attempt([sys.executable, "-m", "playwright", "install-deps", engine.shell])
    packages = [part.package for part in engine.lacking(*engine.providers)]
    if not any(_starts(path, engine.asked) for path in engine.candidates()):
        packages.insert(0, engine.package)
    install = ["install", "--no-install-recommends", *packages]
    return (
        update()
        or _attempt([*root, "timeout", str(BRING_SECONDS), *APT, *install, "--download-only"])  # dpkg must not be cut short
        or _attempt([*root, *APT, *install])
    )


APT = (
    "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=60", "-o", "Acquire::Retries=1",
)  # fmt: skip


def _root() -> tuple[list[str], str]:
    """What makes a command root's, and nothing; or nothing, and why no package may be installed here."""
    if not shutil.which("apt-get"):
        return [], "there is no apt-get"
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        return [], ""
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"], ""
    return [], "only root may install it"


def _update_lists() -> str:
    """Let apt read which packages there are; why that failed, or nothing."""
    return _attempt([*_root()[0], "timeout", str(BRING_SECONDS), *APT, "update"])


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
