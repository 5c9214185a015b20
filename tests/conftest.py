"""What several test files need: the SMALL network with deterministic weights, its graphs, and a picture for it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from moebius_lab.browser import find_chromium
from moebius_lab.bundle import write_bundle
from moebius_lab.workbench import Workbench, prepare

DATA = Path(__file__).parent / "data"


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
def small(tmp_path_factory, picture_files) -> Workbench:
    """SMALL, with its graphs exported once for all tests."""
    image, mask = picture_files
    bench = prepare("small", "deterministic", str(image), str(mask), str(tmp_path_factory.mktemp("small")))
    bench.stored()
    return bench


@pytest.fixture(scope="session")
def small_bundle(small, tmp_path_factory) -> Path:
    """SMALL as a page's static folder."""
    folder = tmp_path_factory.mktemp("bundle") / "page"
    write_bundle(small, folder, ("fp32",))
    return folder
