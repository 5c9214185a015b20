"""The shipped modules in a real Chromium: numbers, downloads, storage, and everything that can go wrong with them."""

import hashlib
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hub_server import unused_port
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page
from waiting import until

from moebius_lab import LabError
from moebius_lab.config import GRAPHS, RUNS, SMALL, STEP_UNGUIDED
from moebius_lab.evidence.benchmark.profiles import operator_times
from moebius_lab.files import file_sha256
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.loop import Settings, inpaint
from moebius_lab.page import browser, driving
from moebius_lab.page.browser import Browser
from moebius_lab.page.bundle import needs, read_manifest, write_bundle
from moebius_lab.page.driving import launch_options
from moebius_lab.page.engines import engine_of
from moebius_lab.page.modules import ENGINE
from moebius_lab.page.serve import Handler, Server
from moebius_lab.port.export import OUTPUT_NAMES, example_inputs, torch_graphs

OPEN = """async () => {
  const { page } = await (await fetch('manifest.json')).json();
  const { Engine } = await import(new URL(`${page}engine/engine.js`, location));
  globalThis.engine ??= await Engine.open(new URL('manifest.json', location));
}"""

LOAD = (
    f"async ({{provider, precision}}) => {{ await ({OPEN})();"
    + """
  globalThis.seen = [];
  const outcome = await engine.load({ provider, precision }, { onProgress: (progress) => seen.push(progress) }).then(
    (loaded) => ({ loaded }), ({ code, message }) => ({ code, message }));
  return { ...outcome, seen };
}"""
)

SETTINGS = """{ solver: 'ddim', strength: 1, guidance: 2, guidance_interval: [0, 1], seed: 1, noise_offset: 0.0357,
  init: 'image', coverage: 'whole', harmonize: false }"""

FILL = """async ({steps, stopAfter}) => {
  const side = 40, image = { width: side, height: side, data: new Uint8ClampedArray(4 * side * side).fill(90) };
  const mask = new Uint8Array(side * side).fill(255, 0, side * 10);
  const stop = new AbortController();
  let done = 0;
  const onProgress = ({ step }) => { done = step; if (step === stopAfter) stop.abort(); };
  const settings = { ...SETTINGS, steps };
  const outcome = await engine.inpaint({ image, mask, settings }, { onProgress, signal: stop.signal }).then(
    ({ image, timings }) => ({ changed: image.data.some((v, i) => i % 4 < 3 && v !== 90), timings }),
    ({ code, message }) => ({ code, message }));
  return { ...outcome, done };
}""".replace("SETTINGS", SETTINGS)

WASM = {"provider": "wasm", "precision": "fp32"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def bundle(small_bundle) -> Path:
    return small_bundle


@pytest.fixture(scope="module")
def captured(tiny_bundle):
    """TINY on the software adapter, its graphs captured. It takes ten seconds to make its programs: tests share it."""
    with Browser(tiny_bundle, "webgpu", adapter="software") as browser:
        yield browser


@pytest.fixture(scope="module")
def asked(tiny_bundle):
    """The same with ONNX Runtime itself, not captured at first: tests load what they compare."""
    with Browser(tiny_bundle, "webgpu", adapter="software", capture=False) as browser:
        yield browser


@pytest.fixture(scope="module")
def chromium(playwright):
    browser = playwright.chromium.launch(**launch_options("software"))
    yield browser
    browser.close()


@pytest.fixture
def tab(chromium: Chromium):
    """A page with a profile of its own."""
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(120_000)
    yield page
    context.close()


def visit(page: Page, server: Server) -> None:
    page.goto(server.url + "manifest.json")  # a page of this origin on which nothing runs by itself


def load(page: Page, server: Server, **choice: str) -> dict:
    visit(page, server)
    return page.evaluate(LOAD, WASM | choice)


def change_graph(folder: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Change one graph of a bundle, in fp32, and its manifest, which then has no recording of it; returns the new file."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["precisions"]["fp32"]["recording"]
    entry = manifest["precisions"]["fp32"]["graphs"][graph][0]
    model = onnx.load(folder / "weights" / entry["file"], load_external_data=False)
    change(model)
    path = folder / "weights" / f"{graph}-new.onnx"
    path.write_bytes(model.SerializeToString())
    entry |= {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def model_requests(server: Server) -> list[str]:
    return sorted(path.rsplit("/", 1)[1] for path in server.requests if path.endswith((".onnx", ".bin", ".wasm")))


# -- numbers -----------------------------------------------------------------------------------------------------------


def worst_differences(browser: Browser, bench) -> dict[str, float]:
    worst = {}
    modules = torch_graphs(bench.net, bench.vae)
    for run, inputs in example_inputs(bench.config).items():
        graph = RUNS[run]
        outputs = browser.run(graph, {name: x.numpy() for name, x in inputs.items()})
        with torch.inference_mode():
            expected = modules[graph](*inputs.values())
        expected = expected if isinstance(expected, tuple) else (expected,)
        pairs = zip(OUTPUT_NAMES[graph], expected, strict=True)
        worst |= {f"{run} {name}": float(np.abs(outputs[name] - y.numpy()).max()) for name, y in pairs}
    return worst


def levels_apart(browser: Browser, bench, image, mask, settings: Settings) -> int:
    got, timings = browser.inpaint(image, mask, settings)
    outside = feather(mask) == 0
    assert np.array_equal(got[outside], image[outside]) and (got != image).any()
    forms = {guidance == 1 for guidance in settings.guidances()}
    assert {timings["unguided"] > 0} == {True in forms} and {timings["guided"] > 0} == {False in forms}
    assert timings["step"] > 0 and timings["total"] > len(settings.schedule()) * timings["step"] / 2
    return int(np.abs(got.astype(int) - inpaint(bench.torch_backend, image, mask, settings)).max())


# the second step of three is guided: both forms follow each other both ways, on one state
SWITCHING = Settings("unipc", steps=3, strength=1.0, guidance_interval=(0.3, 0.6), seed=3, init="noise")


def check_numbers_and_memory(browser: Browser, bench, is_captured: bool) -> None:
    """Of every run of the graphs, and of what they need."""
    assert browser.loaded["adapter"]["fallback"] and "WebGPU on" in browser.evidence
    assert (", step captured" if is_captured else ", step not captured") in browser.evidence
    alive = needs(bench.stored("fp32").values(), bench.config)["activations"]
    workspace = browser.loaded["workspace"]  # which graphs share
    assert alive / 2 < workspace < 1.2 * alive if is_captured else workspace == 0
    placed = browser.loaded["placed"]
    assert set(placed) == set(GRAPHS) and all(set(graph["nodes"]) == {"WebGpu"} for graph in placed.values())
    worst = worst_differences(browser, bench)
    assert len(worst) == 7 and max(worst.values()) < 1e-4, worst


def test_captured_on_webgpu_a_network_is_pytorch_s(tiny, captured):
    check_numbers_and_memory(captured, tiny, is_captured=True)
    assert levels_apart(captured, tiny, tiny.image, tiny.mask, SWITCHING) <= 1
    from_the_picture = Settings(steps=1, strength=1.0, seed=3)  # which is the page's own arithmetic, however graphs are run
    assert levels_apart(captured, tiny, tiny.image, tiny.mask, from_the_picture) <= 1


def test_not_captured_on_webgpu_it_is_too(tiny, asked):
    check_numbers_and_memory(asked, tiny, is_captured=False)
    assert levels_apart(asked, tiny, tiny.image, tiny.mask, SWITCHING) <= 1


def test_with_kernels_of_our_own_it_is_too(tiny, asked, captured):
    """Captured in this browser; a recording gives the same: test_recording.py. The loop over them is the captured one's."""
    assert captured.loaded["kernels"]["replaced"] == 0  # what a software adapter could win is less than trying costs
    assert "software adapter" in captured.loaded["kernels"]["note"]
    asked.reload(capture=True, recorded=False, kernels="all")
    kernels = asked.loaded["kernels"]
    assert kernels["note"] == "", kernels  # every one gives what the runtime's commands give
    assert kernels["replaced"] > kernels["commands"] / 2, kernels
    assert f"kernels of our own for {kernels['replaced']} of {kernels['commands']} commands" in asked.evidence
    assert not asked.loaded["recorded"] and asked.loaded["workspace"] <= captured.loaded["workspace"]
    check_numbers_and_memory(asked, tiny, is_captured=True)


def test_a_captured_step_takes_new_inputs(tiny, captured):
    step = torch_graphs(tiny.net, tiny.vae)["step"]
    example = example_inputs(tiny.config)
    assert captured.loaded["captured"] and ", step captured" in captured.evidence
    for first in (example["step"], example[STEP_UNGUIDED]):
        second = {name: torch.flip(x, (-1,)) * 0.9 + 0.05 for name, x in first.items()}
        second |= {"timestep": torch.tensor([50.0]), "conditions": first["conditions"]}
        for inputs in (first, second):
            got = captured.run("step", {name: x.numpy() for name, x in inputs.items()})
            with torch.inference_mode():
                expected = step(*inputs.values())
            worst = [float(np.abs(got[name] - y.numpy()).max()) for name, y in zip(OUTPUT_NAMES["step"], expected)]
            assert max(worst) < 1e-4, worst


def test_commands_are_timed_beside_what_the_device_does_at_most(captured):
    found = captured.command_times()
    commands = {command["label"]: command for command in found["commands"]}
    assert commands["MatMul"]["count"] > 100 and all(command["milliseconds"] > 0 for command in commands.values())
    assert not any(command["ours"] for command in commands.values())
    limits = found["limits"]
    assert limits["gigabytes"] > 0 and 0 < max(tile["gflops"] for tile in limits["tiles"]) < limits["gflops"]
    with pytest.raises(LabError, match='no capture of "nothing"'):
        captured.command_times("nothing")


def test_steps_are_timed_as_their_inputs_say(tiny, captured):
    for feeds in (inputs for run, inputs in example_inputs(tiny.config).items() if RUNS[run] == "step"):
        assert len(captured.time_steps({name: x.numpy() for name, x in feeds.items()}, 2)) == 2


def test_a_step_with_a_node_on_the_processor_is_not_captured(tiny_bundle, captured, tmp_path):
    def add_mod(model: onnx.ModelProto) -> None:
        graph = model.graph
        for node in graph.node:
            node.input[:] = ["timestep.mod" if name == "timestep" else name for name in node.input]
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1e6]), "million"))
        graph.node.insert(0, onnx.helper.make_node("Mod", ["timestep", "million"], ["timestep.mod"], fmod=1))

    shutil.copytree(tiny_bundle, tmp_path / "page")
    change_graph(tmp_path / "page", "step", add_mod)
    with Browser(tmp_path / "page", "webgpu", adapter="software") as browser:
        assert not browser.loaded["captured"] and "step not captured" in browser.evidence
        nodes = browser.loaded["placed"]["step"]["nodes"]
        assert nodes["CPU"] >= 1 and nodes["WebGpu"] >= captured.loaded["placed"]["step"]["nodes"]["WebGpu"]


def test_what_cannot_be_captured_is_not(tiny, tiny_bundle, tmp_path):
    def add_integer(model: onnx.ModelProto) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("number", onnx.TensorProto.INT32, [1]))
        model.graph.node.insert(0, onnx.helper.make_node("Cast", ["number"], ["number.float"], to=onnx.TensorProto.FLOAT))
        model.graph.output.append(onnx.helper.make_tensor_value_info("number.float", onnx.TensorProto.FLOAT, [1]))

    shutil.copytree(tiny_bundle, tmp_path / "page")
    change_graph(tmp_path / "page", "vae_encoder", add_integer)
    with Browser(tmp_path / "page", "webgpu", adapter="software") as browser:
        assert not browser.loaded["captured"] and browser.loaded["workspace"] == 0
        assert "step not captured" in browser.evidence and "its input number is int32" in browser.evidence
        feeds = example_inputs(tiny.config)["vae_decoder"]
        got = browser.run("vae_decoder", {name: x.numpy() for name, x in feeds.items()})["image"]
        with torch.inference_mode():
            assert np.abs(got - torch_graphs(tiny.net, tiny.vae)["vae_decoder"](*feeds.values()).numpy()).max() < 1e-4


def test_weights_of_16_and_8_bits_stay_so_in_memory(small, asked, captured, tmp_path):
    write_bundle(small, tmp_path, ("fp16-storage", "int8"))
    feeds = {name: x.numpy() for name, x in example_inputs(small.config)["step"].items()}
    stored = {
        form: Counter(n.op_type for n in onnx.load(small.stored(form)["step"]).graph.node)
        for form in ("fp16-storage", "int8")
    }
    for form, restored_by in (("fp16-storage", "Cast"), ("int8", "DequantizeLinear")):
        with Browser(tmp_path, "wasm", form) as browser:
            calls = {found.operator: found.calls for found in operator_times(browser.profile("step", feeds, 1), 1)}
        assert calls[restored_by] == stored[form][restored_by] > 40, form
    asked.reload(precision="fp16-storage", capture=False)
    assert "shader-f16" not in asked.loaded["features"]  # it cannot read 16 bits: they are widened once
    assert asked.loaded["placed"]["step"] == captured.loaded["placed"]["step"]  # nothing is left that widens


def test_demo_on_wasm_fills_the_hole_and_nothing_else(demo, tmp_path):
    write_bundle(demo, tmp_path / "page", ("fp16-storage",))
    with Browser(tmp_path / "page", "wasm", "fp16-storage") as browser:
        assert browser.loaded["adapter"] is None and "processor" in browser.evidence
        image, mask = demo.image[:300, :280], demo.mask[:300, :280]
        settings = Settings(steps=2, strength=1.0)
        got, _ = browser.inpaint(image, mask, settings)
        outside = feather(mask) == 0
        assert np.array_equal(got[outside], image[outside]) and (got[mask > 0] != image[mask > 0]).any()
        expected = inpaint(demo.onnx_backend, image, mask, settings)
        assert np.abs(got.astype(int) - expected).max() <= 1


# -- running -----------------------------------------------------------------------------------------------------------


def test_cancelling_reaches_a_worker_that_computes(bundle, tab):
    with Server(bundle) as server:
        assert load(tab, server)["loaded"]
        done = tab.evaluate(FILL, {"steps": 900, "stopAfter": 3})
        assert done["code"] == "cancelled" and 3 <= done["done"] < 900  # the worker goes on until it has heard the page
        assert tab.evaluate(FILL, {"steps": 2})["changed"]  # and the model goes on


def test_without_webgpu_the_page_says_so_and_runs_on_the_processor(bundle, playwright):
    with playwright.chromium.launch(**launch_options("none")) as browser, Server(bundle) as server:
        page = browser.new_page()
        got = load(page, server, provider="webgpu")
        assert got["code"] == "no-webgpu" and "wasm" in got["message"]
        found = page.evaluate("engine.detect()")
        assert not found["webgpu"]["available"] and found["webgpu"]["reason"]
        assert {choice["provider"] for choice in found["choices"]} == {"wasm"} and "seconds" in found["choices"][0]["note"]
        assert load(page, server)["loaded"]["provider"] == "wasm"


def test_a_lost_graphics_device_is_told_and_loading_again_works(tiny_bundle, chromium, tab):
    with Server(tiny_bundle) as server:
        assert load(tab, server, provider="webgpu")["loaded"]["provider"] == "webgpu"
        tab.evaluate(
            "void (globalThis.lost = new Promise((yes) => engine.addEventListener('lost', (e) => yes(e.detail.code))))"
        )
        chromium.new_browser_cdp_session().send("Browser.crashGpuProcess")
        told = tab.evaluate("Promise.race([lost, new Promise((done) => setTimeout(done, 60_000, 'nothing in a minute'))])")
        assert told == "device-lost"
        assert tab.evaluate(FILL, {"steps": 1})["code"] == "worker"
        assert load(tab, server, provider="webgpu")["loaded"]["adapter"]["vendor"] == "google"


def test_a_program_that_the_device_refuses_is_told(tiny_bundle, tab):
    with Server(tiny_bundle) as server:
        got = load(tab, server, provider="webgpu", precision="fp16")  # the software adapter has no 16-bit arithmetic
        assert got["code"] == "shader" and "choose fp32" in got["message"]
        choices = tab.evaluate("engine.detect()")["choices"]
        offered = [choice["precision"] for choice in choices if choice["provider"] == "webgpu"]
        assert offered == ["fp16-storage", "fp32"]


def test_too_little_memory_is_told(bundle, playwright):
    options = launch_options("software")
    options["args"].append("--js-flags=--wasm-max-mem-pages=400")  # 26 MB
    with playwright.chromium.launch(**options) as browser, Server(bundle) as server:
        got = load(browser.new_page(), server)
        assert got["code"] == "out-of-memory" and "under Runs on" in got["message"]


def test_bad_input_comes_back_as_a_sentence(bundle, tab):
    with Server(bundle) as server:
        assert load(tab, server)["loaded"]
        assert tab.evaluate(FILL, {"steps": 0})["code"] == "bad-input"
        got = tab.evaluate(LOAD, {"provider": "wasm", "precision": "fp8"})
        assert got["code"] == "bad-input" and "fp8" in got["message"]


# -- downloads ---------------------------------------------------------------------------------------------------------


class Slow(Handler):
    """Sends weights slowly."""

    def copyfile(self, source, outputfile) -> None:
        while piece := source.read(1 << 18):
            time.sleep(0.02)
            outputfile.write(piece)


class Stuck(Handler):
    """Sends `left` files whole, and then of each file its first half, until `killed` ends the connection."""

    def copyfile(self, source, outputfile) -> None:
        with Stuck.lock:
            Stuck.left -= 1
            whole = Stuck.left >= 0
        content = source.read()
        outputfile.write(content if whole else content[: len(content) // 2])
        if not whole:
            outputfile.flush()
            Stuck.killed.wait(600)
            self.connection.close()
            raise ConnectionAbortedError


@pytest.fixture
def stuck():
    """`Stuck`, after three files."""
    Stuck.left, Stuck.lock, Stuck.killed = 3, threading.Lock(), threading.Event()
    yield Stuck
    Stuck.killed.set()


STORED = """async () => {
  for (const end = performance.now() + 60_000; (await engine.stored()).length < 3; ) {
    if (performance.now() > end) throw new Error('three files were not stored in a minute');
    await new Promise((done) => setTimeout(done, 50));
  }
}"""


def test_a_broken_download_goes_on_where_it_broke(bundle, tab, stuck):
    with Server(bundle, handler=stuck) as server:
        visit(tab, server)
        tab.evaluate(f"(choice) => {{ globalThis.first = ({LOAD})(choice); }}", WASM)
        tab.wait_for_function("() => globalThis.engine")
        tab.evaluate(STORED)
        stuck.killed.set()
        broken = tab.evaluate("first")
        assert broken["code"] == "network" and "try again" in broken["message"]
        kept = {entry["url"].rsplit("/", 1)[1] for entry in tab.evaluate("engine.stored()")}
        assert len(kept) == 3

        stuck.left = 1000
        server.requests.clear()
        got = tab.evaluate(LOAD, WASM)
        assert got["loaded"]["storage"] == "cache"
        fetched = model_requests(server)
        assert fetched and not kept & set(fetched) and len(kept) + len(fetched) == 7
        last = got["seen"][-1]
        assert last["phase"] == "session" and last["doneBytes"] == last["totalBytes"] and last["cachedBytes"] > 0


def test_a_download_can_be_stopped_and_keeps_what_it_has(bundle, tab, stuck):
    with Server(bundle, handler=stuck) as server:
        visit(tab, server)
        tab.evaluate(
            f"""async (choice) => {{
          await ({OPEN})();
          globalThis.stop = new AbortController();
          globalThis.loading = engine.load(choice, {{ signal: stop.signal }}).then(() => '', ({{ code }}) => code);
          await ({STORED})();
        }}""",
            WASM,
        )
        until(lambda: len(model_requests(server)) == 7)  # one under way would count as the next load's
        code = tab.evaluate("stop.abort(), loading")
        assert code == "cancelled"
        kept = tab.evaluate("engine.stored()")
        stuck.left = 1000
        server.requests.clear()
        assert len(kept) == 3 and tab.evaluate(LOAD, WASM)["loaded"]
        assert len(model_requests(server)) == 7 - len(kept)


def test_progress_never_runs_backwards_and_names_rate_and_time(bundle, tab):
    with Server(bundle, handler=Slow) as server:
        seen = load(tab, server)["seen"]
        done = [progress["doneBytes"] for progress in seen]
        assert done == sorted(done) and len(done) > 5 and done[-1] == seen[-1]["totalBytes"]
        middle = seen[len(seen) // 2]
        assert middle["phase"] == "download" and middle["rate"] > 0 and 0 < middle["secondsLeft"] < 60
        assert len(model_requests(server)) == len(set(model_requests(server))) == 7


def test_a_second_visit_fetches_no_byte_of_the_model(bundle, tab):
    with Server(bundle) as server:
        assert load(tab, server)["loaded"]
        server.requests.clear()
        again = load(tab, server)
        assert again["loaded"]["storage"] == "cache" and not model_requests(server)
        assert {progress["phase"] for progress in again["seen"]} == {"verify", "session"}
        choice = tab.evaluate("engine.detect()")["choices"]
        assert [c["cachedBytes"] == c["bytes"] for c in choice if c["provider"] == "wasm" and c["precision"] == "fp32"] == [
            True
        ]


def test_a_new_version_fetches_only_what_it_changed(bundle, tab, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(bundle, folder)
    with Server(folder) as server:
        assert load(tab, server)["loaded"]
        path = change_graph(folder, "vae_decoder", lambda model: setattr(model, "doc_string", "another version"))
        server.requests.clear()
        assert load(tab, server)["loaded"]
        assert model_requests(server) == [path.name]
        stored = tab.evaluate("engine.stored()")
        assert len(stored) == 8 and sum(not entry["current"] for entry in stored) == 1
        tab.evaluate("engine.clearStored({ onlyOld: true })")
        assert len(tab.evaluate("engine.stored()")) == 7
        tab.evaluate("engine.clearStored()")
        assert tab.evaluate("engine.stored()") == []


def test_weights_on_another_origin_that_redirects_and_a_page_under_a_path(bundle, tab, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(bundle, folder)
    shutil.move(folder / "weights", tmp_path / "weights")

    class Redirecting(Handler):
        def do_GET(self) -> None:
            if self.path.startswith("/stable/"):
                self.requests.append(self.path)
                self.send_response(HTTPStatus.FOUND)
                self.send_header("Location", f"/signed-{time.monotonic_ns()}/" + self.path.removeprefix("/stable/"))
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                super().do_GET()

        def translate_path(self, path: str) -> str:
            return super().translate_path("/" + path.split("/", 2)[2])

    with Server(tmp_path / "weights", open_to_all=True, isolated=False, handler=Redirecting) as host:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["weights_base"] = host.url + "stable/"
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        with Server(folder, prefix="/some/project/") as server:
            assert server.url.endswith("/some/project/")
            assert load(tab, server)["loaded"]["storage"] == "cache"
            assert len(model_requests(server)) == 1 and len(host.requests) == 12  # the runtime; six files, twice each
            host.requests.clear()
            assert load(tab, server)["loaded"] and not host.requests
            assert tab.evaluate(FILL, {"steps": 2})["changed"]


def test_files_that_are_missing_or_wrong_are_named(bundle, tab, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    graph, weights = manifest["precisions"]["fp32"]["graphs"]["vae_decoder"]
    with Server(folder) as server:
        path = folder / "weights" / weights["file"]
        good = path.read_bytes()
        path.unlink()
        got = load(tab, server)
        assert got["code"] == "not-found" and weights["file"] in got["message"]
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        got = load(tab, server)
        assert got["code"] == "corrupt" and weights["file"] in got["message"]
        assert any("damaged" in progress.get("message", "") for progress in got["seen"])
        for wrong in (good + b"more", good[:100], b"<html>not here</html>"):
            path.write_bytes(wrong)
            assert load(tab, server)["code"] == "corrupt"
        path.write_bytes(good)
        assert load(tab, server)["loaded"]


def test_manifests_that_cannot_be_used_are_told(bundle, tab, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(bundle, folder)
    path = folder / "manifest.json"
    opened = "import(location).then(({Engine}) => Engine.open(new URL('../../manifest.json', location)))"
    failure = opened + ".then(() => null, ({code, message}) => [code, message])"
    with Server(folder) as server:
        tab.goto(server.url + json.loads(path.read_text(encoding="utf-8"))["page"] + "engine/engine.js")
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"format": 99}), encoding="utf-8")
        assert tab.evaluate(failure)[0] == "manifest-version"
        path.write_text("<html>", encoding="utf-8")
        assert tab.evaluate(failure)[0] == "manifest"
        path.unlink()
        code, message = tab.evaluate(failure)
        assert code == "manifest" and "404" in message


# -- storage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", (None, -1, 0), ids=("another byte", "one byte short", "empty"))
def test_a_damaged_entry_is_noticed_and_fetched_again(bundle, tab, left):
    with Server(bundle) as server:
        assert load(tab, server)["loaded"]
        damaged = tab.evaluate(
            """async (left) => {
              const cache = await caches.open((await caches.keys())[0]);
              const [request] = (await cache.keys()).reverse(), old = await cache.match(request);
              const bytes = new Uint8Array(await old.arrayBuffer());
              bytes[1000] ^= left === null ? 255 : 0;
              await cache.put(request, new Response(bytes.slice(0, left ?? undefined), { headers: old.headers }));
              return old.headers.get('x-source');
            }""",
            left,
        )
        server.requests.clear()
        got = load(tab, server)
        assert got["loaded"]["storage"] == "cache" and model_requests(server) == [damaged.rsplit("/", 1)[1]]
        assert any("damaged" in progress.get("message", "") for progress in got["seen"])


def test_files_are_hashed_in_a_worker_of_their_own(tiny_bundle, tab, tmp_path):
    """Chromium hashes in the thread that asks, and the model's has programs to make and weights to hand over meanwhile."""
    folder = tmp_path / "page"
    shutil.copytree(tiny_bundle, folder)
    engine = folder / read_manifest(folder)["page"] / ENGINE
    code = (engine / "worker.js").read_text(encoding="utf-8")
    busy = "crypto.subtle.digest = () => Promise.reject(new Error('this thread is busy'));"
    (engine / "worker.js").write_text(code + busy, encoding="utf-8")
    with Server(folder) as server:
        for phase in ("download", "session"):
            got = load(tab, server)
            assert got["loaded"]["storage"] == "cache" and got["seen"][-1]["phase"] == "session"
            assert phase in {progress["phase"] for progress in got["seen"]}
        assert set(Counter(model_requests(server)).values()) == {1}
        (engine / "helper.js").unlink()
        assert load(tab, server)["code"] == "unreadable"  # the model's worker would have to do it


def test_where_the_helper_does_not_start_the_model_does_and_is_not_called_lost(tiny_bundle, tab, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(tiny_bundle, folder)
    (folder / read_manifest(folder)["page"] / ENGINE / "helper.js").unlink()
    with Server(folder) as server:
        visit(tab, server)
        tab.evaluate(OPEN)
        tab.evaluate("void (globalThis.lost = 0, engine.addEventListener('lost', () => lost++))")
        assert tab.evaluate(LOAD, WASM)["loaded"] and tab.evaluate(FILL, {"steps": 1})["changed"]
        assert tab.evaluate("lost") == 0


def test_a_second_load_ends_the_first_and_not_itself(tiny_bundle, tab):
    with Server(tiny_bundle) as server:
        visit(tab, server)
        tab.evaluate(OPEN)
        codes = tab.evaluate(
            """(choice) => Promise.all([1, 2].map(() =>
              engine.load(choice).then(({ precision }) => precision, ({ code }) => code)))""",
            WASM,
        )
        assert codes == ["cancelled", "fp32"] and tab.evaluate(FILL, {"steps": 1})["changed"]


AT_ONCE = """async () => {
  const side = 40, mask = new Uint8Array(side * side).fill(255, 0, side * 10);
  const settings = { ...SETTINGS, steps: 3 };
  let order = [];
  const fill = async (value) => {
    const image = { width: side, height: side, data: new Uint8ClampedArray(4 * side * side).fill(value) };
    return String((await engine.inpaint({ image, mask, settings }, { onProgress: () => order.push(value) })).image.data);
  };
  const alone = [await fill(40), await fill(220)];
  const one_by_one = order;
  order = [];
  const together = await Promise.all([fill(40), fill(220)]);
  return { differ: alone[0] !== alone[1], same: String(together) === String(alone), order, one_by_one };
}""".replace("SETTINGS", SETTINGS)


def test_pictures_that_are_asked_for_at_once_are_filled_one_after_another(tiny_bundle, tab):
    """Captured, a picture's state is on the device, where there is room for one."""
    with Server(tiny_bundle) as server:
        assert load(tab, server)["loaded"]
        got = tab.evaluate(AT_ONCE)
    assert got["differ"] and got["same"] and got["order"] == got["one_by_one"] == sorted(got["order"])


HELP = """async (page) => {
  const { examined } = await import(new URL(`${page}engine/model_cache.js`, location));
  const { port1: helper, port2 } = new MessageChannel();
  new Worker(new URL(`${page}engine/helper.js`, location), { type: 'module' }).postMessage(null, [port2]);
  const given = [0, 1, 2, 3].map((size) => new ArrayBuffer(size));
  const asked = given.map((bytes) => examined(bytes, bytes.byteLength < 3, [], helper));
  const left = given.map(({ byteLength }) => byteLength);
  const found = await Promise.all(asked);
  const answer = new MessageChannel();
  helper.postMessage(['no bytes', true, []], [answer.port2]);
  const { data: fails } = await new Promise((done) => (answer.port1.onmessage = done));
  const again = await examined(new ArrayBuffer(1), true, [], helper);
  const told = [fails instanceof Error, again.hash === found[1].hash];
  return { left, found: found.map(({ hash, bytes }) => [bytes.byteLength, hash]), told };
}"""


def test_the_helper_gives_back_what_it_was_handed_and_goes_on_after_an_error(tiny_bundle, tab):
    with Server(tiny_bundle) as server:
        tab.goto(server.url + "manifest.json")
        seen = tab.evaluate(HELP, read_manifest(tiny_bundle)["page"])
    hashes = [hashlib.sha256(bytes(size)).hexdigest() for size in range(3)]
    assert seen == {"left": [0] * 4, "found": [list(pair) for pair in enumerate([*hashes, ""])], "told": [True, True]}


def test_a_store_that_cannot_be_read_is_passed_over(tiny_bundle, tab):
    with Server(tiny_bundle) as server:
        assert load(tab, server)["loaded"]
        choices = len(tab.evaluate("engine.detect()")["choices"])
        tab.evaluate("""() => {
          for (const name of ['keys', 'match']) Cache.prototype[name] = () => Promise.reject(new Error('cannot be read'));
        }""")
        found = tab.evaluate("engine.detect()")["choices"]
        assert len(found) == choices and not any(choice["cachedBytes"] for choice in found)
        server.requests.clear()
        tab.evaluate("""async () => {
          const { ModelCache } = await import(engine.workerUrls[0].href.replace('worker.js', 'model_cache.js'));
          const file = engine.manifest.runtime.builds.wasm.wasm;
          const item = { graph: 'runtime', precision: '', file, url: new URL(file.file, engine.url) };
          await (await new ModelCache(engine.url, engine.manifest).provide([item], () => {}, new AbortController().signal)).whole;
        }""")
        assert [Path(name).suffix for name in model_requests(server)] == [".wasm"]


CHANGES = {  # of all that is stored, after it was checked and before it is read
    "emptied": "await store.put(request, new Response(''))",
    "cut short": "await store.put(request, new Response((await (await store.match(request)).blob()).slice(0, -1)))",
    "gone": "await store.delete(request)",
}
STORE = "const store = await caches.open(new ModelCache(page, manifest).name);"
BETWEEN = "    await whole;\n"
EMPTY = "Blob.prototype.arrayBuffer = async () => new ArrayBuffer(0);"
EMPTY_ONCE = """const [read, sizes] = [Blob.prototype.arrayBuffer, new Set()];
  Blob.prototype.arrayBuffer = function () {
    return sizes.has(this.size) ? read.call(this) : (sizes.add(this.size), Promise.resolve(new ArrayBuffer(0)));
  };"""


@pytest.fixture
def workers(tiny_bundle, tmp_path):
    """A page, and `serve(*between)`: its next workers do these things, each after its files were checked and before one is read."""
    folder = tmp_path / "page"
    shutil.copytree(tiny_bundle, folder)
    path = folder / read_manifest(folder)["page"] / ENGINE / "worker.js"
    code = path.read_text(encoding="utf-8")
    assert code.count(BETWEEN) == 1
    next_ones: list[str] = []

    class Changed(Handler):
        answers = True  # requests for files of the model

        def do_GET(self) -> None:
            if self.path.endswith("/worker.js"):
                path.write_text(code.replace(BETWEEN, BETWEEN + next_ones.pop(0)), encoding="utf-8")
            if Changed.answers or not self.path.endswith((".onnx", ".bin", ".wasm")):
                return super().do_GET()
            self.close_connection = True

    def serve(*between: str) -> None:
        assert not next_ones
        next_ones.extend(between)

    with Server(folder, handler=Changed) as server:
        server.refuse = lambda: setattr(Changed, "answers", False)
        yield server, serve


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_it_was_checked_is_fetched_again(workers, tab, change):
    server, serve = workers
    serve(f"{STORE} for (const request of await store.keys()) {CHANGES[change]};", "")
    got = load(tab, server)
    assert got["loaded"]["storage"] == "cache" and set(Counter(model_requests(server)).values()) == {2}
    assert any("damaged" in progress.get("message", "") for progress in got["seen"])
    server.requests.clear()
    assert load(tab, server)["loaded"] and not model_requests(server)


def test_a_file_that_is_read_wrong_is_read_again_and_then_in_another_worker(workers, tab):
    """Once in a worker, always in the first worker, always in both; the network is there at first only."""
    server, serve = workers
    serve(EMPTY_ONCE, EMPTY, "", EMPTY, EMPTY)
    assert load(tab, server)["loaded"] and set(Counter(model_requests(server)).values()) == {1}
    server.refuse()
    assert load(tab, server)["loaded"]
    got = load(tab, server)
    assert got["code"] == "unreadable" and "cannot be read" in got["message"] and "Reload the page" in got["message"]


@pytest.mark.parametrize(
    "thrown", ['Error("Can\'t create a session")', "WebAssembly.RuntimeError('memory access out of bounds')"]
)
def test_a_runtime_that_fails_to_start_is_started_once_more(workers, tab, thrown):
    """WebKit, once in hundreds of starts: a trap, or a graph that the runtime has lost."""
    server, serve = workers
    fails = f"throw new {thrown};"
    serve(fails, "", fails, fails)
    assert load(tab, server)["loaded"]
    assert load(tab, server)["code"] in ("worker", "out-of-memory")
    serve()  # all were asked for


def test_a_full_quota_runs_from_memory_and_says_so(bundle, tab):
    with Server(bundle) as server:
        visit(tab, server)
        devtools = tab.context.new_cdp_session(tab)
        devtools.send("Storage.overrideQuotaForOrigin", {"origin": server.url.rstrip("/"), "quotaSize": 5_000_000})
        got = tab.evaluate(LOAD, WASM)
        assert got["loaded"]["storage"] == "memory" and "no more room" in got["seen"][-1]["message"]
        assert tab.evaluate(FILL, {"steps": 2})["changed"]


def test_blocked_storage_runs_from_memory_and_says_so(bundle, playwright, tmp_path):
    settings = tmp_path / "profile" / "Default" / "Preferences"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"profile": {"default_content_setting_values": {"cookies": 2}}}), encoding="utf-8")
    options = launch_options("software")
    with playwright.chromium.launch_persistent_context(tmp_path / "profile", **options) as context, Server(bundle) as server:
        page = context.new_page()
        got = load(page, server)
        assert got["loaded"]["storage"] == "memory" and "fetched again next time" in got["seen"][-1]["message"]
        assert page.evaluate("engine.stored()") == [] and page.evaluate(FILL, {"steps": 2})["changed"]


def test_a_second_visit_works_without_a_network(bundle, tab):
    with Server(bundle, prefix="/project/") as server:
        assert load(tab, server)["loaded"]
        tab.evaluate("""navigator.serviceWorker.register(new URL('service_worker.js', location)).then(
          () => navigator.serviceWorker.ready)""")
    tab.goto(server.url)
    assert tab.evaluate("document.title") and tab.evaluate("crossOriginIsolated")
    got = load(tab, server)
    assert got["loaded"]["provider"] == "wasm" and got["loaded"]["threads"] > 1
    assert tab.evaluate(FILL, {"steps": 2})["changed"]


# -- the driver itself -------------------------------------------------------------------------------------------------


def test_the_page_s_own_words_reach_python(bundle, monkeypatch):
    with pytest.raises(LabError, match='no precision "fp64"'), Browser(bundle, "wasm", "fp64"):
        pass
    step = {name: x.numpy() for name, x in example_inputs(SMALL)["step"].items()}
    with Browser(bundle, "wasm") as driven:
        with pytest.raises(LabError, match='no graph "nothing"'):
            driven.run("nothing", {})
        with monkeypatch.context() as patch, pytest.raises(LabError, match="did not finish in time. Close other programs"):
            patch.setattr(browser, "TIMEOUT", 0.001)
            driven.run("step", step)
        assert driven.run("step", step)["next_state"].shape == (3, 4, 16, 16)  # and the model goes on
        with monkeypatch.context() as patch, pytest.raises(LabError, match="did not finish in time"):
            patch.setattr(browser, "LOADING", 0.001)
            patch.setattr(browser, "LOADED", 1e12)
            driven.reload()
        driven.reload()
        assert driven.run("step", step)["next_state"].shape == (3, 4, 16, 16)
    with pytest.raises(LabError, match="adapter 'amd' is unknown"), Browser(bundle, adapter="amd"):
        pass
    with pytest.raises(LabError, match="not a complete bundle"):
        Browser(bundle / "weights")


def test_a_browser_in_which_a_model_never_becomes_ready_is_started_once_more(tiny_bundle, monkeypatch):
    """Of a published page too: how long it may take is told by the size of its weights."""
    over = threading.Event()

    class Hanging(Handler):
        def do_GET(self) -> None:
            if "/weights/" not in self.path or browser.LOADING > 5:
                return super().do_GET()
            browser.LOADING = 600  # the next browser has all the time it needs, and gets what it asks for
            over.wait(600)
            self.close_connection = True

    monkeypatch.setattr(browser, "LOADING", 5)
    with Server(tiny_bundle, handler=Hanging) as server:
        with Browser(server.url, "wasm") as driven:
            over.set()
            assert "wasm" in driven.evidence
        assert sum(path.endswith("/index.html") or path == "/" for path in server.requests) >= 2


def less_patient(bundle: Path, to: Path) -> tuple[Path, Path]:
    """A copy of a bundle whose page waits four seconds for what does not begin, and the folder of its engine."""
    folder = shutil.copytree(bundle, to / "page")
    engine = folder / read_manifest(folder)["page"] / ENGINE
    text, patience = (engine / "engine.js").read_text(encoding="utf-8"), "const STUCK = 10_000;"
    assert text.count(patience) == 1
    (engine / "engine.js").write_text(text.replace(patience, "const STUCK = 4_000;"), encoding="utf-8")
    return folder, engine


@pytest.mark.parametrize(
    "instead",
    ["Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); super(url, options);", "super('idle.js', options);"],
    ids=["never made", "never speaks"],
)
def test_a_thread_that_the_browser_never_starts_is_not_waited_for(tiny_bundle, tab, tmp_path, instead):
    """Firefox has been seen never to come back from a worker's `new Worker`. Here it does not in the first model's worker, nor in two of the second.

    A thread that is made and never says that it began, as ONNX Runtime's do, is waited for no longer.
    """
    folder, engine = less_patient(tiny_bundle, tmp_path)
    code, call = (engine / "worker.js").read_text(encoding="utf-8"), "super(url, options);"
    (engine / "idle.js").touch()
    assert code.count(call) == 1
    hanging = code.replace(call, instead)
    served = iter([hanging, code, hanging, hanging])

    class Hanging(Handler):
        def do_GET(self) -> None:
            if self.path.endswith("/worker.js"):
                (engine / "worker.js").write_text(next(served), encoding="utf-8")
            super().do_GET()

    with Server(folder, handler=Hanging) as server:
        assert load(tab, server)["loaded"]["threads"] > 1
        again = load(tab, server)
        assert again["code"] == "stuck" and "did not start a thread of the model. Reload the page" in again["message"]
    assert next(served, None) is None


def test_a_helper_that_never_begins_is_not_waited_for(tiny_bundle, tab, tmp_path):
    folder, engine = less_patient(tiny_bundle, tmp_path)
    (engine / "helper.js").write_text("", encoding="utf-8")
    with Server(folder) as server:
        assert load(tab, server)["loaded"]["threads"] > 1


def test_the_driver_is_no_file_of_a_bundle(bundle):
    """So that a page that an earlier version published can be driven."""
    assert browser.DRIVER.name not in {path.name for path in bundle.rglob("*")}


@pytest.mark.slow
def test_a_page_from_before_the_engine_had_a_folder_can_be_driven(tiny_bundle, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(tiny_bundle, folder)
    page = folder / read_manifest(folder)["page"]
    for module in sorted((page / ENGINE).iterdir()):
        module.rename(page / module.name)
    precache = folder / "precache.js"
    precache.write_text(precache.read_text(encoding="utf-8").replace(f"/{ENGINE}", "/"), encoding="utf-8")
    with Browser(folder, "wasm") as driven:
        assert "wasm" in driven.evidence
    precache.write_text(precache.read_text(encoding="utf-8").replace("/engine.js", "/other.js"), encoding="utf-8")
    with pytest.raises(LabError, match="lists no engine of its version"), Browser(folder, "wasm"):
        pass


def test_a_page_that_is_not_there_is_told_in_one_line(tmp_path):
    with unused_port() as port, pytest.raises(LabError, match="ERR_CONNECTION_REFUSED"):
        browser.Browser(f"http://127.0.0.1:{port}/", "wasm", profile_folder=tmp_path).__enter__()


def test_variables_that_name_nvidia_s_files_are_left_as_they_are_set(monkeypatch, tmp_path):
    found = tmp_path / "icd.json"
    found.touch()
    monkeypatch.setitem(driving.NVIDIA_FILES, "VK_DRIVER_FILES", (str(tmp_path / "none"), str(found)))
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    assert driving.launch_options("nvidia")["env"]["VK_DRIVER_FILES"] == str(found)
    monkeypatch.setenv("VK_DRIVER_FILES", "/elsewhere.json")
    assert driving.launch_options("nvidia")["env"]["VK_DRIVER_FILES"] == "/elsewhere.json"


@pytest.mark.parametrize(("visible", "index"), [("1", 1), ("1,0", 1), ("", 0), ("GPU-1234", 0)])
def test_the_card_that_is_measured_is_the_first_visible(monkeypatch, visible, index):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert browser.card_index() == index


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="a process's environment is read from /proc")
def test_who_visits_for_the_first_time_has_no_programs_of_the_driver_either():
    """NVIDIA's keeps those of all browsers of a user, so that a second first visit would be as fast as a later one."""

    def visit() -> Path:
        session = driving.session_of(engine_of("chromium"), "webgpu", "nvidia")  # which starts without a card as well
        try:
            [process] = (process for process, kind in session.process_ids().items() if kind == "browser")
            variables = Path(f"/proc/{process}/environ").read_text(encoding="utf-8").split("\0")
            [place] = (Path(text.partition("=")[2]) for text in variables if text.startswith("__GL_SHADER_DISK_CACHE_PATH="))
            assert place.is_dir()
        finally:
            session.close()
        return place

    with ThreadPoolExecutor(1) as thread:  # Playwright runs once in a thread, and the fixtures have it in this one
        places = [thread.submit(visit).result() for _ in range(2)]
    assert len(set(places)) == 2 and not any(place.exists() for place in places)
