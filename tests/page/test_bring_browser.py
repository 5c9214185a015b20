"""Finding a browser, and bringing one to a machine that has none: the real Playwright, an apt-get of our own."""

import http.server
import io
import shlex
import shutil
import threading
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import unused_port

from moebius_lab.__main__ import main
from moebius_lab.page import engines
from moebius_lab.page.browser import Browser
from moebius_lab.page.engines import ENGINES, NoBrowser, find

pytestmark = pytest.mark.slow  # commands in processes of their own


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """The folder that alone is the PATH of a machine without a browser, whose Playwright has none and can reach nobody."""
    real = find()
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "env", "timeout", "cp"):
        (folder / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "playwright"))
    program(tmp_path / "real", f'exec {shlex.quote(real)} "$@"')
    with unused_port() as port:
        monkeypatch.setenv("PLAYWRIGHT_DOWNLOAD_HOST", f"http://127.0.0.1:{port}")
        yield folder


class Downloads(http.server.BaseHTTPRequestHandler):
    """What Playwright's host sends: an archive in which a script starts this machine's browser; or nothing, ever."""

    browser: Path
    silent: threading.Event | None = None

    def do_GET(self) -> None:
        if self.silent:
            self.silent.wait(60)
            return
        name = Path(self.path).stem
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            files.writestr(
                f"{name}/chrome-headless-shell" if "shell" in name else name, self.browser.read_text(encoding="utf-8")
            )
        self.send_response(200)
        self.send_header("Content-Length", str(len(archive.getvalue())))
        self.end_headers()
        self.wfile.write(archive.getvalue())

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def downloads(bare, monkeypatch, tmp_path):
    handler = type("Handler", (Downloads,), {"browser": tmp_path / "real"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("PLAYWRIGHT_DOWNLOAD_HOST", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield handler
        server.shutdown()


def apt(bare, installs: str) -> None:
    """An apt-get that notes what it is asked for and, when it installs, does `installs`; and a sudo that needs no password."""
    log = shlex.quote(str(bare / "asked"))
    program(bare / "apt-get", f'echo "$@" >> {log}\ncase "$*" in *--download-only*|*update*) ;; *) {installs} ;; esac')
    program(bare / "sudo", 'shift\nexec "$@"')


def brought(capsys, name: str = "chromium") -> tuple[str | None, str]:
    assert main(["browser", name]) == 0  # a machine without a browser still runs what needs none
    said = capsys.readouterr().out.splitlines()
    label = f"{ENGINES[name].label}: "
    found = [line.removeprefix(label) for line in said if line.startswith(label)]
    return (found[0] if found else None), said[-1]


def asked_of_apt(bare) -> list[str]:
    return (bare / "asked").read_text(encoding="utf-8").splitlines()


def test_the_machine_s_own_browsers_are_taken_and_nothing_is_brought(capsys):
    here = {}
    for name, engine in ENGINES.items():
        with suppress(NoBrowser):
            here[name] = [engine.find(provider) for provider in engine.providers][0]
    assert "chromium" in here and main(["browser", *here]) == 0
    assert capsys.readouterr().out == "".join(f"{ENGINES[name].label}: {path}\n" for name, path in here.items())


def test_without_a_chromium_the_message_says_how_to_get_one(bare):
    with pytest.raises(NoBrowser, match="there is no Chromium: run `python -m moebius_lab browser`"):
        find()


@pytest.mark.slow
def test_a_browser_that_does_not_start_is_passed_over_and_named_if_it_is_the_only_one(bare, tiny_bundle, tmp_path):
    program(bare / "chromium", "echo install the snap >&2; exit 1")
    with pytest.raises(NoBrowser, match=f"{bare}/chromium does not start: run"), Browser(tiny_bundle, "wasm"):
        pass
    shutil.copy(tmp_path / "real", bare / "google-chrome")
    assert find() == str(bare / "google-chrome")


def test_a_browser_may_be_named(bare, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MOEBIUS_CHROMIUM", str(tmp_path / "real"))
    assert find() == str(tmp_path / "real")
    monkeypatch.setenv("MOEBIUS_CHROMIUM", str(tmp_path / "none"))
    assert main(["browser"]) == 2
    assert (
        capsys.readouterr().err
        == f"moebius_lab: MOEBIUS_CHROMIUM names {tmp_path}/none, which is no browser that starts; correct it or unset it\n"
    )


@pytest.mark.slow
def test_playwright_brings_its_headless_shell_and_it_runs_the_model(downloads, tiny_bundle, tmp_path, capsys):
    path, _ = brought(capsys)
    assert Path(path).is_relative_to(tmp_path / "playwright") and path == find()
    with Browser(tiny_bundle, "wasm") as running:
        assert running.evidence.startswith("processor (wasm)")
    assert brought(capsys)[0] == path


def test_a_download_that_says_nothing_is_given_up(downloads, monkeypatch, capsys):
    downloads.silent = threading.Event()
    monkeypatch.setattr(engines, "BRING_SECONDS", 4)
    path, last = brought(capsys)
    downloads.silent.set()
    assert path is None and "headless shell: not there after 4 s" in last


def test_the_system_s_package_is_installed_where_that_is_allowed(bare, capsys, tmp_path):
    apt(bare, f"cp {shlex.quote(str(tmp_path / 'real'))} {shlex.quote(str(bare / 'chromium'))}")
    path, _ = brought(capsys)
    assert path == str(bare / "chromium") and [line.split()[-1] for line in asked_of_apt(bare)] == [
        "update",
        "--download-only",
        "chromium",
    ]


def test_what_a_brought_browser_lacks_is_installed(downloads, bare, tmp_path, capsys):
    downloads.browser = program(
        tmp_path / "lacking",
        f'test -e {shlex.quote(str(tmp_path / "library"))} && exec {shlex.quote(str(tmp_path / "real"))} "$@"',
    )
    apt(bare, f"echo > {shlex.quote(str(tmp_path / 'library'))}")
    path, _ = brought(capsys)
    assert Path(path).is_relative_to(tmp_path / "playwright")
    assert not [line for line in asked_of_apt(bare) if line.endswith(" chromium")]


def test_where_nothing_can_be_brought_one_line_says_why_and_what_will_be_missing(bare, capsys):
    apt(bare, "echo 'E: Unable to locate package chromium' >&2; exit 100")
    path, last = brought(capsys)
    assert path is None
    for words in ("ECONNREFUSED", "Unable to locate package", "rows are missing", "MOEBIUS_CHROMIUM"):
        assert words in last


@pytest.fixture
def others(bare, monkeypatch, tmp_path):
    """Firefox and WebKit on that machine; a shell's words that make apt leave programs there."""
    vulkan = replace(ENGINES["firefox"].parts[0], shown_by=("vulkan-driver",))  # this machine may have one
    monkeypatch.setitem(ENGINES, "firefox", replace(ENGINES["firefox"], parts=(vulkan,)))
    answers = program(tmp_path / "answers", "exit 0")
    return lambda *names: "; ".join(f"cp {shlex.quote(str(answers))} {shlex.quote(str(bare / name))}" for name in names)


def test_of_other_engines_the_packages_and_what_they_lack_are_installed(bare, others, capsys):
    firefox, webkit = others("firefox-esr", "vulkan-driver"), others("WebKitWebDriver", "Xvfb")
    apt(bare, f'case "$*" in *firefox*) {firefox} ;; *) {webkit} ;; esac')
    assert main(["browser", "firefox", "webkit"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f"Firefox: {bare}/firefox-esr", f"WebKit: {bare}/WebKitWebDriver"]
    wanted = [line.partition("--no-install-recommends ")[2] for line in asked_of_apt(bare)]
    assert [packages for packages in wanted if "--download-only" not in packages] == [
        "",  # the lists are brought up to date once
        "firefox-esr mesa-vulkan-drivers",
        "webkit2gtk-driver xvfb",
    ]


def test_an_engine_that_lacks_something_is_there_for_what_it_can_do(bare, others, capsys):
    program(bare / "firefox", "exit 0")
    with pytest.raises(NoBrowser, match="Firefox lacks mesa-vulkan-drivers for webgpu: run `python -m moebius_lab browser`"):
        find("firefox", "webgpu")
    assert find("firefox", "wasm") == str(bare / "firefox")
    apt(bare, "echo 'E: no space left' >&2; exit 100")
    assert brought(capsys, "firefox") == (str(bare / "firefox"), f"Firefox: {bare}/firefox")
    assert asked_of_apt(bare)[-1].endswith("--no-install-recommends mesa-vulkan-drivers")  # and no second Firefox
    with pytest.raises(NoBrowser, match="WebKit has no webgpu here; choose wasm"):
        find("webkit", "webgpu")


def test_where_packages_fail_each_engine_s_line_says_so_and_the_command_succeeds(bare, others, capsys):
    apt(bare, "echo 'E: Unable to locate package' >&2; exit 100")
    assert main(["browser", "firefox", "webkit"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "could not be brought" in line]
    assert len(told) == 2
    for line, label, variable in zip(told, ("Firefox", "WebKit"), ("MOEBIUS_FIREFOX", "MOEBIUS_WEBKIT")):
        assert line.startswith(f"there is no {label}, and that could not be brought (the system's package: E: Unable")
        assert "rows are missing" in line and "are skipped" in line and line.endswith(variable)


def test_an_engine_that_does_not_exist_is_told(capsys):
    assert main(["browser", "netscape"]) == 2
    assert "there is no engine 'netscape'; choose one of chromium, firefox, webkit" in capsys.readouterr().err
