"""The page's engine in every browser: numbers of the graphs, pictures, and what is told when something fails."""

import re
from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
from hub_server import unused_port

from moebius_lab import LabError
from moebius_lab.config import offered
from moebius_lab.evidence import parity
from moebius_lab.inpainting.loop import Settings, inpaint
from moebius_lab.page.browser import Browser, weights_fetched
from moebius_lab.page.bundle import write_bundle
from moebius_lab.page.engines import ENGINES, OTHERS
from moebius_lab.port.precision import per_graph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
]  # a browser that hangs is one failure, not ten minutes of each test

REFUSED = {"firefox": "NS_ERROR_CONNECTION_REFUSED", "webkit": r"nothing answers at http://127\.0\.0\.1:\d+/"}
ON_A_GPU = [name for name in OTHERS if "webgpu" in ENGINES[name].providers]


@pytest.fixture(scope="module")
def references(tiny) -> dict:
    return parity.reference_outputs(tiny.net, tiny.vae)


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory):
    """TINY in every precision that the page offers."""
    folder = tmp_path_factory.mktemp("engines") / "page"
    write_bundle(tiny, folder, tuple(offered()))
    return folder


def different(browser: Browser, tiny, references: dict, form: str) -> list[parity.Row]:
    rows = parity.compare_graphs(references, tiny.net, browser.run, per_graph(form), browser.name)
    assert len(rows) == sum(map(len, references.values()))
    return [row for row in rows if not row.ok]


@pytest.fixture(scope="module")
def running(engine_here, bundle):
    """`running(name)`: one browser of that engine, for all tests here; each loads what it compares."""
    with ExitStack() as started:

        @cache
        def start(name: str) -> Browser:
            provider = "webgpu" if name in ON_A_GPU else "wasm"
            engine_here(name, provider)
            return started.enter_context(Browser(bundle, provider, "fp32", "software", engine=name))

        yield start


@pytest.mark.parametrize(("form", "share"), [("fp16", 0.5), ("fp16-storage", 0.75), ("int8", 0.75)])
@pytest.mark.parametrize("engine", ON_A_GPU)
def test_with_kernels_of_our_own_they_are_too(running, engine, form, share, tiny, references):
    """Chromium has them in fp32. The runtime widens the weights of two of these forms in each run, our kernels read them as they are; in
    the third products are of 16 bits."""
    browser = running(engine)
    browser.reload(provider="webgpu", precision=form, capture=True, kernels="all")
    kernels = browser.loaded["kernels"]
    assert kernels["note"] == "" and kernels["replaced"] > share * kernels["commands"], kernels
    assert not different(browser, tiny, references, form)


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "dispatched"])
@pytest.mark.parametrize("form", offered())
@pytest.mark.parametrize("engine", ON_A_GPU)
def test_on_webgpu_the_graphs_are_pytorch_s(running, engine, form, captured, tiny, references):
    browser = running(engine)
    browser.reload(provider="webgpu", precision=form, capture=captured, kernels="fastest")
    assert browser.loaded["adapter"]["fallback"] and browser.loaded["captured"] == captured
    assert all(set(graph["nodes"]) == {"WebGpu"} for graph in browser.loaded["placed"].values())
    assert browser.name == f"{ENGINES[engine].label} {browser.version}" and browser.version[0].isdigit()
    assert not different(browser, tiny, references, form)
    if form == "fp32" and captured:
        settings = Settings(steps=1, strength=1.0, seed=3)
        got, _ = browser.inpaint(tiny.image, tiny.mask, settings)
        expected = inpaint(tiny.torch_backend, tiny.image, tiny.mask, settings)
        assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("form", [name for name, form in offered().items() if "wasm" in form.providers and name != "fp32"])
def test_webkit_has_pytorch_s_numbers_in_every_form_that_a_processor_runs(running, form, tiny, references):
    browser = running("webkit")
    browser.reload(precision=form)
    assert not different(browser, tiny, references, form)


@pytest.mark.parametrize("engine", OTHERS)
def test_on_the_processor_they_are_too_and_errors_reach_python(running, engine, tiny, references):
    browser = running(engine)
    browser.reload(provider="wasm", precision="fp32")
    assert browser.loaded["adapter"] is None and browser.loaded["threads"] > 1
    with pytest.raises(LabError, match='no graph "nothing"'):
        browser.run("nothing", {})
    assert not different(browser, tiny, references, "fp32")
    with pytest.raises(LabError, match="does not tell its processes"):
        browser.process_ids()
    with pytest.raises(LabError, match='no precision "fp64"'):
        browser.reload(precision="fp64")


def test_what_firefox_stores_is_there_on_the_next_visit(engine_here, bundle):
    engine_here("firefox", "wasm")
    first, second = weights_fetched(bundle, "fp32", engine="firefox")
    assert first > 0 and second == 0


def test_what_an_engine_cannot_do_is_told(engine_here, bundle, tmp_path):
    engine_here("webkit", "wasm")
    with pytest.raises(LabError, match="WebKit has no webgpu here"), Browser(bundle, "webgpu", engine="webkit"):
        pass
    with pytest.raises(LabError, match="keeps nothing"), Browser(bundle, "wasm", profile_folder=tmp_path, engine="webkit"):
        pass
    with pytest.raises(LabError, match="there is no engine 'opera'"):
        Browser(bundle, engine="opera")


@pytest.mark.parametrize("engine", OTHERS)
def test_an_address_that_does_not_answer_is_told_in_one_line(engine_here, engine):
    engine_here(engine, "wasm")
    with unused_port() as port, pytest.raises(LabError) as told:
        Browser(f"http://127.0.0.1:{port}/", "wasm", engine=engine).__enter__()
    assert re.fullmatch(REFUSED[engine], str(told.value))
