"""A JupyterLab server, and a notebook run in it by a browser, as a reader would: for README's pictures and the tests."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat

from .. import LabError

RUN_SECONDS = 600  # that a whole notebook may take
STOP_SECONDS = 60  # that the server may take to end its kernels
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map((at) => at.textContent)"
FAILED = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]:has(.ansi-red-fg)'  # a warning is not red
ALL_RUN = f"{PROMPTS}.every((prompt) => /\\[\\d+\\]/.test(prompt))"
SETTLED = f"{ALL_RUN} || (document.querySelector('{FAILED}') && !{PROMPTS}.some((prompt) => prompt.includes('*')))"


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """A JupyterLab server on `folder`, with settings of its own that lie there; yields its address.

    Raises:
        LabError: it does not start.
    """
    settings = folder / ".jupyter" / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}', encoding="utf-8")
    kept = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    own = {f"JUPYTER_{name}": str(folder / ".jupyter" / name.lower()) for name in kept}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings.parents[1]), "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".jupyter" / "w")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token="]
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen([*command, f"--ServerApp.root_dir={folder}"], env=os.environ | own, stderr=log, stdout=log)
    try:
        yield _address(folder / "lab.log", server)
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(log: Path, server: subprocess.Popen) -> str:
    for _ in range(240):
        said = log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", said):
            url = f"http://127.0.0.1:{found[1]}"
            with contextlib.suppress(OSError):  # it tells its address before it listens
                urllib.request.urlopen(f"{url}/api/status", timeout=10).close()
                return url
        if server.poll() is not None:
            raise LabError(f"JupyterLab does not start; `pip install jupyterlab`? It said: {said[-500:]}")
        time.sleep(0.25)
    raise LabError(f"JupyterLab did not start within a minute: {said[-500:]}")


def write_notebook(path: Path, code: str) -> None:
    """A notebook whose cells are separated by lines of `# %%` in `code`."""
    cells = [nbformat.v4.new_code_cell(cell.strip("\n")) for cell in code.split("# %%")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def run_all(tab, url: str, notebook: str) -> None:
    """Open a notebook of the server at `url` in a Playwright page and run all of it; returns when its last cell has run.

    Raises:
        LabError: a cell failed, and those after it did not run; with what it said.
    """
    tab.goto(f"{url}/lab/tree/{notebook}?reset", wait_until="domcontentloaded")
    tab.wait_for_selector('.jp-StatusBar-TextItem:has-text("| Idle")')
    tab.click('.lm-MenuBar-itemLabel:text-is("Run")')
    tab.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    tab.wait_for_function(f"() => {SETTLED}", timeout=RUN_SECONDS * 1000)
    if not tab.evaluate(ALL_RUN):
        raise LabError(f"a cell of {notebook} failed: {tab.locator(FAILED).first.inner_text()}")
