"""What several test files need: networks with deterministic weights, their graphs, and a picture for them.

`make test` runs the files in two processes. What costs seconds is made once for both (`made_once`), and the files that take
longest are begun first (`LONGEST_FIRST`).
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from moebius_lab.config import PRECISIONS, STRAIGHTFORWARD
from moebius_lab.notebook.workbench import Workbench, prepare
from moebius_lab.page.browser import find_chromium
from moebius_lab.page.bundle import write_bundle

DATA = Path(__file__).parent / "data"
expect.set_options(timeout=60_000)  # ms: a busy machine shows late what a quiet one shows at once
LONGEST_FIRST = (
    "notebooks",
    "page",
    "browser",
    "jupyterlab",
    "benchmark",
    "errors",
    "training",
    "check",
    "denoiser",
    "demo",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is still busy with one when the others have nothing left.

    Who takes a browser from here is slow.
    """
    place = {f"test_{name}": i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    for item in items:
        if "playwright" in item.fixturenames:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)`: what `make(folder)` leaves in a folder, made by the first process of this run that asks.

    Each process gets a copy, which its tests may change.
    """
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made = common / f"made-{name}"
        with FileLock(f"{made}.lock"):
            if not made.is_dir():
                part = made.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                make(part)
                part.rename(made)
        return shutil.copytree(made, tmp_path_factory.mktemp(name) / name)

    return folder


@pytest.fixture(scope="session")
def pipeline_reference() -> dict[str, np.ndarray]:
    with np.load(DATA / "pipeline_small.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def picture_files(tmp_path_factory, pipeline_reference) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("picture")
    image, mask = folder / "image.png", folder / "mask.png"
    Image.fromarray(pipeline_reference["image"]).save(image)
    Image.fromarray(pipeline_reference["mask"]).save(mask)
    return image, mask


@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as play:
        yield play


@pytest.fixture(scope="module")
def chromium(playwright):
    """A browser without flags of its own; test_browser.py has one with WebGPU."""
    browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def small(made_once, picture_files) -> Workbench:
    """SMALL, with its graphs in every form: what the reference outputs are of."""
    return deterministic("small", made_once, picture_files)


@pytest.fixture(scope="session")
def tiny(made_once, picture_files) -> Workbench:
    """TINY, with its graphs in every form: for the software WebGPU adapter, and where a network is only a passenger."""
    return deterministic("tiny", made_once, picture_files)


def deterministic(network: str, made_once, picture_files: tuple[Path, Path]) -> Workbench:
    def run_in(folder: Path) -> Workbench:
        return prepare(network, "deterministic", *map(str, picture_files), str(folder))

    def export(folder: Path) -> None:
        bench = run_in(folder)
        for form in (*PRECISIONS, STRAIGHTFORWARD):
            bench.stored(form)

    return run_in(made_once(network, export))


@pytest.fixture(scope="session")
def demo(made_once) -> Workbench:
    """The shipped network, with the graphs that its page takes."""

    def run_in(folder: Path) -> Workbench:
        return prepare("demo", "demo", output_dir=str(folder), precision="fp16-storage")

    return run_in(made_once("demo", lambda folder: run_in(folder).stored()))


@pytest.fixture(scope="session")
def small_bundle(small, tmp_path_factory) -> Path:
    """SMALL as a page's static folder."""
    return bundled(small, tmp_path_factory, ("fp16", "fp16-storage", "fp32"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny, tmp_path_factory) -> Path:
    """TINY as a page's static folder."""
    return bundled(tiny, tmp_path_factory, ("fp16", "fp16-storage", "fp32"))


def bundled(bench: Workbench, tmp_path_factory, precisions: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "page"
    write_bundle(bench, folder, precisions)
    return folder
