"""The page in every engine, as a person meets it: what is painted, filled, undone, cancelled, kept and used without a network.

test_page.py has all of the page in Chromium.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hands import A_HANG_IS_ONE_FAILURE, PAGE, Hands, opened
from PIL import Image

from moebius_lab.config import DEFAULT_PRESET, PRECISIONS
from moebius_lab.evidence.benchmark import devices, results
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.loop import inpaint, preset
from moebius_lab.inpainting.photographs import demo_photographs
from moebius_lab.page.bundle import write_bundle
from moebius_lab.page.driving import session_of
from moebius_lab.page.engines import ENGINES, OTHERS
from moebius_lab.page.serve import Server
from moebius_lab.port.passes import tensor_types_and_shapes

pytestmark = [pytest.mark.slow, A_HANG_IS_ONE_FAILURE]


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("everywhere") / "bundle"
    write_bundle(demo, folder, ("fp16-storage",))
    return folder


@pytest.fixture
def tab(first_tab):
    """At the end nothing may have gone uncaught in its page."""
    yield first_tab
    assert not first_tab.errors


def photograph(path: Path, width: int, height: int, mode: str = "RGB") -> np.ndarray:
    """The demo's mountain as a PNG of this size, and its pixels; an alpha channel has all values."""
    photo, _ = demo_photographs()["mountain"]
    pixels = np.array(Image.open(photo).convert(mode).resize((width, height), Image.Resampling.BICUBIC))
    if mode == "RGBA":
        pixels[:, : width // 6, 3] = np.random.default_rng(0).integers(0, 256, (height, width // 6))
    Image.fromarray(pixels).save(path, compress_level=1)
    return pixels


def start(hands: Hands, steps: int) -> None:
    hands.write("#steps", steps)
    hands.click("#run")


def filled(hands: Hands) -> np.ndarray:
    hands.until("!document.querySelector('#run').disabled && !document.querySelector('#keep').disabled")
    return hands.saved()


@pytest.mark.parametrize("first_tab", ENGINES, indirect=True)
def test_a_hole_is_filled_undone_cancelled_kept_and_filled_again_without_a_network(tab, demo, folder, tmp_path):
    original = photograph(tmp_path / "photo.png", 320, 240)
    with Server(folder) as server:
        hands = opened(tab, server.url)
        assert hands.read("crossOriginIsolated")
        hands.open_picture(tmp_path / "photo.png", 320, 240)
        hands.drag((100, 80), (150, 110), (170, 150))
        mask = hands.saved("#export-mask")
        assert 1000 < (mask == 255).sum() < 5000

        start(hands, steps=2)
        hands.says("#prompt", "kept in this browser")
        hands.click("#prompt-yes")
        result = filled(hands)
        untouched = feather(mask) == 0
        assert (result[untouched] == original[untouched]).all() and (result[mask == 255] != original[mask == 255]).any()
        expected = inpaint(demo.onnx_backend, original, mask, preset(DEFAULT_PRESET, steps=2))
        assert np.abs(result.astype(int) - expected).max() <= 1

        hands.click("#keep")
        assert (hands.saved() == result).all() and not hands.saved("#export-mask").any()
        hands.press("Control", "z")
        assert (hands.saved() == original).all() and (hands.saved("#export-mask") == mask).all()

        start(hands, steps=200)
        hands.says("#run-text", " step ")
        hands.click("#cancel")
        hands.says("#run-text", "Cancelled. The mask is as it was.", 30)
        assert (hands.saved("#export-mask") == mask).all()

        assert hands.read("document.querySelectorAll('#stored li').length") == 2
        hands.until("navigator.serviceWorker.controller && (await caches.keys()).length > 1")
        server.requests.clear()
    hands = opened(tab, server.url)  # nobody answers there now
    hands.open_picture(tmp_path / "photo.png", 320, 240)
    hands.drag((100, 80), (150, 110), (170, 150))
    start(hands, steps=2)
    hands.says("#prompt", "nothing is downloaded")
    hands.click("#prompt-yes")
    assert (filled(hands) != original).any()


@pytest.mark.parametrize("first_tab", OTHERS, indirect=True)  # test_page.py has it in that one
def test_a_large_photograph_with_transparency(tab, folder, tmp_path):
    original = photograph(tmp_path / "large.png", 3000, 2000, "RGBA")
    with Server(folder) as server:
        hands = opened(tab, server.url)
        hands.open_picture(tmp_path / "large.png", 3000, 2000)
        hands.drag((1500, 900), (1570, 950))
        mask = hands.saved("#export-mask")
        start(hands, steps=2)
        hands.click("#prompt-yes")
        result = filled(hands)
        untouched = feather(mask) == 0
        assert result.shape == original.shape and (result[..., 3] == original[..., 3]).all()
        if hands.read(
            "document.querySelector('.notice[data-subject=colours]') !== null"
        ):  # the page says that it rounds colours
            assert hands.read("!new OffscreenCanvas(1, 1).getContext('webgl2')")
            untouched &= original[..., 3] == 255
        assert (result[untouched] == original[untouched]).all() and (result[mask == 255] != original[mask == 255]).any()


@pytest.mark.parametrize("first_tab", ENGINES, indirect=True)
def test_a_browser_measures_itself_into_a_file_that_results_take(tab, tiny_bundle, tmp_path):
    with Server(tiny_bundle) as server:
        hands = opened(tab, server.url)
        hands.click("#measure")
        hands.says("#prompt", "kept in this browser")
        hands.click("#prompt-yes")
        hands.says("dialog[open]", "This browser, measured")
        (tmp_path / "measured.json").write_bytes(hands.given("dialog[open] .primary"))
        hands.click("dialog[open] button:not(.primary)")
        hands.until("!document.querySelector('dialog[open]')")
        assert server.url not in (tmp_path / "measured.json").read_text(encoding="utf-8")
    data = devices.check(tmp_path / "measured.json")
    assert (data["network"], data["evidence"][0]["form"]) == ("tiny", "fp16-storage") and not data["machine"]["cards"]
    [line] = devices.devices([data]).to_dict("records")
    assert line["largest difference"] < 0.02 and line["least dB"] > PRECISIONS["fp16-storage"].least_psnr
    filed = devices.add(tmp_path / "measured.json", tmp_path / "results")
    assert results.read(filed) == data and devices.add(tmp_path / "measured.json", tmp_path / "results") == filed


def padded_in_16_bits(folder: Path) -> None:
    """Give the fp16 step of a bundle a Pad of a 16-bit tensor, and a Slice that undoes it: naga refuses the runtime's program for it."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    [file, *_] = manifest["precisions"]["fp16"]["graphs"]["step"]
    model = onnx.load(folder / "weights" / file["file"], load_external_data=False)
    shapes = tensor_types_and_shapes(model)
    at, name = next(
        (i + 1, name)
        for i, node in enumerate(model.graph.node)
        for name in node.output
        if name in shapes
        and shapes[name][0] == onnx.TensorProto.FLOAT16
        and len(shapes[name][1]) == 4
        and node.op_type == "Conv"
    )
    for node in model.graph.node[at:]:
        node.input[:] = ["cut" if source == name else source for source in node.input]
    numbers = {"by": [0, 0, 0, 1, 0, 0, 0, 0], "from": [1], "to": [2**31 - 1], "axis": [3]}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.int64), key) for key, value in numbers.items()
    )
    model.graph.node.insert(at, onnx.helper.make_node("Pad", [name, "by"], ["padded"]))
    model.graph.node.insert(at + 1, onnx.helper.make_node("Slice", ["padded", "from", "to", "axis"], ["cut"]))
    body = model.SerializeToString()
    (folder / "weights" / file["file"]).write_bytes(body)
    file |= {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


LOST = "Object.assign(new Error('The graphics device was lost.'), { code: 'device-lost' })"


def offers(hands: Hands) -> list[str]:
    """What the buttons of a message offer, without what it takes to download."""
    return hands.read(
        "[...document.querySelectorAll('.notice button')].map((button) => button.textContent.replace(/ \\(.*/, ''))"
    )


def test_a_precision_that_the_device_refuses_is_told_replaced_and_remembered(engine_here, tiny, tmp_path):
    """As Firefox refused fp16 before its graphs were without a 16-bit Pad."""
    engine_here("firefox", "webgpu")
    folder = tmp_path / "page"
    write_bundle(tiny, folder, ("fp16-storage", "fp16", "fp32", "int8"))
    padded_in_16_bits(folder)
    session = session_of(ENGINES["firefox"], "webgpu", "software")
    try:
        with Server(folder) as server:
            hands = opened(session.new_tab(), server.url)
            on_gpu = "[...document.querySelector('#choice').options].map((option) => option.text.split(' · ').slice(0, 2).join(' '))"
            assert hands.read(on_gpu)[:3] == ["WebGPU fp16-storage", "WebGPU fp16", "WebGPU fp32"]
            hands.write("#choice", 1)
            hands.click("#load")
            hands.says(".notice[data-subject=model]", "refused a program of the model")
            assert offers(hands) == [
                "Try again",
                "Use fp16-storage",
                "Use the processor",
                "Close",
            ]
            hands.click(".notice button:nth-of-type(2)")
            hands.says("#load-text", "Ready")
            hands.says("#load-text", "fp16-storage")
            hands.read(f"{PAGE}.model.engine.dispatchEvent(new CustomEvent('lost', {{ detail: {LOST} }}))")
            hands.says(".notice[data-subject=model]", "was lost")
            assert offers(hands) == ["Try again", "Use int8", "Use the processor", "Close"]
            hands = opened(session.new_tab(), server.url)
            ways = hands.read(on_gpu)
            assert ways[:2] == ["WebGPU fp32", "WebGPU int8"] and ways[-2:] == ["WebGPU fp16-storage", "WebGPU fp16"]
            hands.write("#choice", len(ways) - 1)
            hands.says("#choice-note", "It did not work here before.")
    finally:
        session.close()
