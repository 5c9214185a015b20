"""What several test files need: networks with deterministic weights, their graphs, and a picture for them.

`make test` runs the files in two processes. What costs seconds is made once for both, and kept (`kept_graphs`); the files that
take longest are begun first (`LONGEST_FIRST`).
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from moebius_lab.config import PRECISIONS, STRAIGHTFORWARD, offered
from moebius_lab.notebook.workbench import Workbench, prepare
from moebius_lab.page.bundle import recorded, write_bundle
from moebius_lab.page.driving import BASELINE, session_of
from moebius_lab.page.engines import ENGINES, MAIN, NoBrowser, find

DATA = Path(__file__).parent / "data"
expect.set_options(timeout=60_000)  # ms: a busy machine shows late what a quiet one shows at once
LONGEST_FIRST = (
    "notebooks",  # makes TINY's graphs
    "kept",  # makes SMALL's meanwhile: who comes second would only wait for TINY's
    "page",
    "browser",
    "runs",
    "recording",
    "jupyterlab",
    "page_engines",
    "engines",
    "dataset",
    "distilled",
    "tools",
    "kernels",
    "needs",
    "large",
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
def kept_graphs(pytestconfig, tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`kept_graphs(name, make)`: a copy of a run's folder, in which `make(folder)` has stored graphs.

    The folder lies in pytest's cache, for both processes and for later runs: what is made again is what `Graphs` finds
    out of date. Each process gets a copy, which its tests may change.
    """

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        kept = pytestconfig.cache.mkdir("networks") / name
        with FileLock(f"{kept}.lock"):
            make(kept)
            return shutil.copytree(kept, tmp_path_factory.mktemp(name) / name)

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
    """A browser as it comes, but that it compiles WebAssembly once; test_browser.py has one with WebGPU."""
    browser = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox", BASELINE])
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def engine_here() -> Callable[[str, str], None]:
    """`engine_here(name, provider)` skips a test of an engine that cannot be had here; Chromium every machine can have."""

    def require(name: str, provider: str) -> None:
        try:
            ENGINES[name].find(provider)
        except NoBrowser as reason:
            if name == MAIN:
                raise
            pytest.skip(str(reason))

    return require


@pytest.fixture(scope="module")
def first_tab(request, engine_here):
    """The tab of a browser with a new profile, for all tests of that engine: another would not be in front everywhere."""
    engine_here(request.param, "wasm")
    session = session_of(ENGINES[request.param], "wasm", "none")
    yield session.new_tab()
    session.close()


@pytest.fixture(scope="session")
def small(kept_graphs, picture_files) -> Workbench:
    """SMALL, with its graphs in every form: what the reference outputs are of."""
    return deterministic("small", (*PRECISIONS, STRAIGHTFORWARD), kept_graphs, picture_files)


@pytest.fixture(scope="session")
def tiny(kept_graphs, picture_files) -> Workbench:
    """TINY, with its graphs in every precision: for the software WebGPU adapter, and where a network is only a passenger."""
    return deterministic("tiny", tuple(PRECISIONS), kept_graphs, picture_files)


def deterministic(network: str, forms: tuple[str, ...], kept_graphs, picture_files: tuple[Path, Path]) -> Workbench:
    def run_in(folder: Path) -> Workbench:
        return prepare(network, "deterministic", *map(str, picture_files), str(folder))

    def export(folder: Path) -> None:
        bench = run_in(folder)
        for form in forms:
            bench.stored(form)
        recorded(bench, {form: bench.stored(form) for form in offered()})

    return run_in(kept_graphs(network, export))


@pytest.fixture(scope="session")
def demo(kept_graphs) -> Workbench:
    """The shipped network, with the graphs that its page takes."""

    def run_in(folder: Path) -> Workbench:
        return prepare("demo", "demo", output_dir=str(folder), precision="fp16-storage")

    def export(folder: Path) -> None:
        bench = run_in(folder)
        recorded(bench, {bench.precision: bench.stored()})

    return run_in(kept_graphs("demo", export))


@pytest.fixture(scope="session")
def small_bundle(small, tmp_path_factory) -> Path:
    """SMALL as a page's static folder."""
    return bundled(small, tmp_path_factory, ("fp16-storage", "fp16", "fp32"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny, tmp_path_factory) -> Path:
    """TINY as a page's static folder."""
    return bundled(tiny, tmp_path_factory, ("fp16-storage", "fp16", "fp32"))


def bundled(bench: Workbench, tmp_path_factory, precisions: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "page"
    write_bundle(bench, folder, precisions)
    return folder
