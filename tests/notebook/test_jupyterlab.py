"""Painting and running in a real JupyterLab, driven in Chromium as a reader would."""

import base64
import io
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from waiting import until

from moebius_lab import LabError
from moebius_lab.notebook.lab import FAILED, jupyterlab, run_all, write_notebook
from moebius_lab.notebook.mask_painter import MaskPainter
from moebius_lab.notebook.report import SOURCE_FOLDER
from moebius_lab.notebook.widgets import GONE
from moebius_lab.page.driving import launch_options
from moebius_lab.page.engines import find

LARGE = """import numpy as np
from moebius_lab.notebook.mask_painter import MaskPainter

painter = MaskPainter(np.full((3000, 4000, 3), 90, np.uint8))
painter.size = 90
painter"""

IN_THE_PAGE = """import asyncio
from moebius_lab.notebook.browser_backend import BrowserRunner
from moebius_lab.inpainting.loop import Settings, inpaint
from moebius_lab.notebook.workbench import prepare

bench = prepare("tiny", "deterministic", {image!r}, {mask!r}, {output!r})
runner = BrowserRunner({bundle!r}, bench.config, "webgpu")
runner
# %%
print(await runner.connect(60), "| headless:", runner.headless)
# %%
settings = Settings(steps=2)
filled = await asyncio.to_thread(inpaint, runner, bench.image, bench.mask, settings)
expected = inpaint(bench.torch_backend, bench.image, bench.mask, settings)
print("levels:", abs(filled.astype(int) - expected).max(), "| changed:", (filled != bench.image).any())
# %%
runner.run("step", {{}})"""

PAINTER_AND_PANEL = """import numpy as np
from moebius_lab.notebook.inpaint_panel import Inpaint
from moebius_lab.notebook.mask_painter import MaskPainter

painter = MaskPainter(np.full((60, 80, 3), 90, np.uint8))
display(painter, Inpaint(painter, {"none": None}))"""

A_RUNNER = """
# %%
from moebius_lab.notebook.browser_backend import BrowserRunner
from moebius_lab.config import SMALL

BrowserRunner({bundle!r}, SMALL)"""

LISTEN = """() => {
  window.said = [];
  new MutationObserver(() => said.push(...[...document.querySelectorAll('[role=status]')].map((at) => at.textContent)))
    .observe(document.body, { childList: true, characterData: true, subtree: true });
}"""

FILLED = """(step) => {
  const first = said.findIndex((text) => text.includes(step));
  return first >= 0 && said.slice(first).some((text) => text.includes('filled in'));
}"""
"""Whether the page has shown a step and then the end: the end of the notebook's own run stands there before this one begins."""

WORDS = """() => [...document.querySelectorAll('.jp-OutputArea .moebius-widget')].map((at) => getComputedStyle(at, '::before').content)"""

A_MEASUREMENT = """output = bench.folder / "measurements.json"
data = await run_beside(bench, output, ("onnxruntime-cpu",), ("fp32",), ("step",), 3, runner=runner)"""
THE_READER_S_PART = {
    "03_parity": [
        "03-01",
        "03-02",
        "03-references",
        "rows, evidence, missing = [], {}, {}",
        "03-06",
        "03-runner",
        "03-runner-rows",
    ],
    "04_webgpu_bundle": ["04-01", "04-02", "from moebius_lab.page.engines import NoBrowser\nmissing = {}", "04-fill"],
    "05_benchmark": ["05-01", "05-02", "05-03", "05-runner", "05-connect", A_MEASUREMENT, "05-07"],
}
"""Of each notebook the cells, by their ids, that lead to the reader's own browser and show what it did."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory, picture_files):
    """A JupyterLab server of its own, with a copy of notebook 01 on TINY; yields its folder and address."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(SOURCE_FOLDER / "01_feasibility.ipynb", 4)
    [cell] = [cell for cell in notebook.cells if cell.metadata.get("tags") == ["parameters"]]
    cell.source += parameters_for(folder, picture_files)
    nbformat.write(notebook, folder / "01.ipynb")
    write_notebook(folder / "large.ipynb", LARGE)
    with jupyterlab(folder) as url:
        yield folder, url


def parameters_for(folder, picture_files) -> str:
    """Lines for a notebook's parameters: TINY, the test's picture, a folder under `folder`."""
    parameters = {"network": "tiny", "weights": "deterministic", "output_dir": str(folder / "build")}
    parameters |= dict(zip(("image", "mask"), map(str, picture_files)))
    return "".join(f"\n{name} = {value!r}" for name, value in parameters.items())


@pytest.fixture(scope="module")
def page(lab, playwright):
    browser = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(60_000)
    yield page
    browser.close()


RECORD = """canvas => {
  const note = (event) => {
    const box = canvas.getBoundingClientRect();
    if (event.buttons) seen.push([event.clientX - box.left, event.clientY - box.top].map((at) => at * canvas.width / box.width));
  };
  window.seen = [];
  for (const kind of ['mousedown', 'mousemove']) canvas.addEventListener(kind, note, true);
}"""


def drag(page: Page, points: list[tuple[float, float]], hertz: float = 0) -> list[tuple[float, float]]:
    """Press at the first of `points` (px of the canvas), move through the others, release.

    Returns:
        Where the page saw the pointer (px of the canvas): it rounds, and merges what comes faster than it can draw.
    """
    canvas = page.locator(".jp-OutputArea canvas")
    if not page.evaluate("() => Boolean(window.seen)"):
        canvas.evaluate(RECORD)
    page.evaluate("seen.length = 0")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + points[0][0], box["y"] + points[0][1])
    page.mouse.down()
    start = time.perf_counter()
    for i, (x, y) in enumerate(points[1:]):
        page.mouse.move(box["x"] + x, box["y"] + y)
        time.sleep(max(0, start + i / hertz - time.perf_counter()) if hertz else 0)
    page.mouse.up()
    return page.evaluate("seen")


def bring_canvas_to_rest(page: Page) -> None:
    """Scroll to the canvas until it stays in view: JupyterLab makes the cells of a long notebook as they are scrolled to."""
    canvas = page.locator(".jp-OutputArea canvas")
    boxes = [None]

    def rests() -> bool:
        canvas.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        boxes.append(canvas.bounding_box())
        before, now = boxes[-2:]
        return bool(now) and now == before and 0 <= now["y"] and now["y"] + now["height"] <= page.viewport_size["height"]

    until(rests)


def button(page: Page, name: str):
    return page.locator(f'.jp-OutputArea button:has-text("{name}")')


def kernel_mask(page: Page, folder) -> np.ndarray:
    """The mask in the kernel, through the widget's own Save button."""
    path = folder / "mask.png"
    path.unlink(missing_ok=True)
    button(page, "Save mask to").click()
    until(path.is_file)  # the words of an earlier Save may stand there still
    expect(page.locator('[role="status"]:has-text("saved to")')).to_be_visible()
    return np.asarray(Image.open(path))


def is_whole_with_widgets(notebook: Path) -> bool:
    text = notebook.read_text(encoding="utf-8")
    return "widget-view" in text and text.endswith("}\n")  # the server writes into the file as it stands


def canvas_pixels(page: Page) -> np.ndarray:
    """uint8 (h, w, 4): what the canvas shows."""
    url = page.locator(".jp-OutputArea canvas").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def shows(seen: np.ndarray, painter: MaskPainter) -> bool:
    """Whether pixels of the canvas have the painter's picture, within what JPEG changes, with its mask and no other in red."""
    size = seen.shape[1::-1]
    hole = np.asarray(Image.fromarray(painter.mask).resize(size, Image.Resampling.BOX))
    still = np.asarray(painter.picture(size[0]).resize(size, Image.Resampling.BOX)).astype(int)
    apart = np.abs(seen[:, :, :3] - still).max(axis=2)
    return (apart < 60)[(hole < 60) | (hole > 160)].mean() > 0.999


def settled_pixels(page: Page, wanted: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The canvas' pixels once they are `wanted` and have stopped changing."""
    pixels = [canvas_pixels(page)]

    def at_rest() -> bool:
        page.wait_for_timeout(500)
        pixels.append(canvas_pixels(page))
        return wanted(pixels[-1]) and np.array_equal(*pixels[-2:])

    until(at_rest)
    return pixels[-1]


def test_a_reader_paints_runs_and_finds_the_mask_again_after_a_reload(lab, page, picture_files):
    folder, url = lab
    run_all(page, url, "01.ipynb")
    expect(button(page, "Redo")).to_be_enabled()  # the notebook's own stroke, undone
    bring_canvas_to_rest(page)
    as_in_python = MaskPainter(*picture_files)
    where = as_in_python._view.to_picture
    seen = drag(page, [(40, 60), (60, 70), (200, 90), (300, 60)])
    as_in_python.stroke(map(where, seen))
    np.testing.assert_array_equal(kernel_mask(page, folder), as_in_python.mask)

    button(page, "Eraser").click()
    seen = drag(page, [(200, 40), (200, 200)])
    as_in_python.erase(map(where, seen))
    np.testing.assert_array_equal(kernel_mask(page, folder), as_in_python.mask)
    button(page, "Undo").click()
    as_in_python.undo()
    np.testing.assert_array_equal(kernel_mask(page, folder), as_in_python.mask)

    steps = page.locator('.jp-OutputArea .widget-text:has-text("Steps") input')
    steps.fill("3")
    steps.press("Enter")
    page.evaluate(LISTEN)
    button(page, "Fill the hole").click()
    page.wait_for_function(FILLED, arg="step 2 of 2", timeout=120_000)
    result = page.locator(".jp-OutputArea img.widget-image")
    expect(result).to_be_visible()
    assert result.evaluate("image => image.naturalWidth") == as_in_python.image.shape[1]
    expect(page.locator('.jp-OutputArea:has-text("before | after")').first).to_be_visible()

    page.mouse.move(5, 5)
    before = settled_pixels(page, lambda seen: shows(seen, as_in_python))
    page.click('.lm-MenuBar-itemLabel:text-is("File")')  # the canvas keeps keys to itself while it has the focus
    notebook = folder / "01.ipynb"
    saved_before = notebook.stat().st_mtime_ns  # by JupyterLab itself, perhaps
    page.click('.lm-Menu-itemLabel:text-is("Save Notebook")')
    until(lambda: notebook.stat().st_mtime_ns > saved_before and is_whole_with_widgets(notebook))
    page.reload(wait_until="domcontentloaded")
    page.locator(".jp-OutputArea canvas").scroll_into_view_if_needed()
    settled_pixels(page, lambda seen: seen.shape == before.shape and (seen != before).mean() < 0.001)
    np.testing.assert_array_equal(kernel_mask(page, folder), as_in_python.mask)


def test_errors_are_shown_in_the_widget(lab, page):
    folder, url = lab
    write_notebook(folder / "errors.ipynb", PAINTER_AND_PANEL)
    run_all(page, url, "errors.ipynb")
    button(page, "Fill the hole").click()
    expect(page.locator('[role="alert"]:has-text("the mask is empty")')).to_be_visible()
    name = page.locator('.jp-OutputArea input[placeholder="where the notebook runs"]')
    name.fill("nowhere/mask.png")
    name.press("Enter")
    button(page, "Save mask to").click()
    expect(page.locator('[role="alert"]:has-text("there is no such folder; make it first")')).to_be_visible()


def test_a_cell_that_fails_is_told_at_once(lab, page):
    folder, url = lab
    write_notebook(folder / "fails.ipynb", "1 + 1\n# %%\nopen('no such picture')\n# %%\n2 + 2")
    with pytest.raises(LabError, match="no such picture"):
        run_all(page, url, "fails.ipynb")


def test_fast_strokes_on_a_large_picture_all_arrive_and_are_drawn(lab, page):
    """Two seconds at 60 Hz, by mouse, then one finger: what was painted is what the canvas shows."""
    folder, url = lab
    run_all(page, url, "large.ipynb")
    canvas = page.locator(".jp-OutputArea canvas")
    expect(canvas).to_be_visible()
    path = [(20 + 22 * (i % 30), 40 + 100 * (i // 30) + i % 7) for i in range(120)]
    seen = drag(page, path, hertz=60)
    assert len(seen) > 30
    painter = MaskPainter(np.full((3000, 4000, 3), 90, np.uint8))
    painter.stroke(map(painter._view.to_picture, seen), size=90)
    np.testing.assert_array_equal(kernel_mask(page, folder), painter.mask)

    box, where = canvas.bounding_box(), painter._view.to_picture
    touch = page.context.new_cdp_session(page)
    for kind, points in (("touchStart", [(100, 480)]), ("touchMove", [(400, 500)]), ("touchEnd", [])):
        fingers = [{"x": box["x"] + x, "y": box["y"] + y} for x, y in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    painter.stroke([where((100, 480)), where((400, 500))], size=90)
    np.testing.assert_array_equal(kernel_mask(page, folder), painter.mask)

    settled_pixels(page, lambda seen: shows(seen, painter))


def test_the_page_that_shows_the_notebook_runs_the_model_on_its_own_webgpu(lab, playwright, tiny_bundle, picture_files):
    folder, url = lab
    image, mask = map(str, picture_files)
    code = IN_THE_PAGE.format(image=image, mask=mask, output=str(folder / "build"), bundle=str(tiny_bundle))
    write_notebook(folder / "runner.ipynb", code)
    browser = playwright.chromium.launch(**launch_options("software"))
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(300_000)
    run_all(page, url, "runner.ipynb")
    said = " ".join(page.locator(".jp-OutputArea-output").all_inner_texts())
    browser.close()
    assert "WebGPU on" in said and "headless: False" in said
    levels = re.search(r"levels: (\d+) \| changed: True", said)
    assert levels and int(levels[1]) <= 1, said
    assert "LabError" in said and "await asyncio.to_thread" in said


def test_widgets_say_when_their_kernel_was_restarted(lab, page, small_bundle):
    folder, url = lab
    write_notebook(folder / "restarted.ipynb", PAINTER_AND_PANEL + A_RUNNER.format(bundle=str(small_bundle)))
    run_all(page, url, "restarted.ipynb")
    expect(page.locator(".jp-OutputArea .moebius-widget")).to_have_count(2)
    expect(page.locator(".jp-OutputArea .moebius-runner")).to_contain_text("not loaded")
    assert page.evaluate(WORDS) == ["none"] * 2
    page.click('.lm-MenuBar-itemLabel:text-is("Kernel")')
    page.click('.lm-Menu-item[data-command="kernelmenu:restart"]')
    page.click(".jp-Dialog .jp-mod-accept")
    page.wait_for_function(f"() => ({WORDS})().every((words) => words.includes({GONE!r}))")
    expect(page.locator(".jp-OutputArea .moebius-runner")).to_have_text(GONE)
    page.wait_for_selector(
        '.jp-StatusBar-TextItem:has-text("| Idle")'
    )  # a kernel that is only starting delays the server's end


@pytest.mark.parametrize("name", THE_READER_S_PART)
def test_notebooks_3_to_5_run_in_the_page_that_shows_them(lab, page, tiny, picture_files, name):
    folder, url = lab
    shutil.copytree(tiny.folder / "onnx", folder / "build" / "onnx", dirs_exist_ok=True)
    sources = {cell.id: cell.source for cell in nbformat.read(SOURCE_FOLDER / f"{name}.ipynb", 4).cells}
    given, *rest = [sources.get(cell, cell) for cell in THE_READER_S_PART[name]]
    given += parameters_for(folder, picture_files)
    write_notebook(folder / f"{name}.ipynb", "\n# %%\n".join([given, *rest]))
    run_all(page, url, f"{name}.ipynb")
    said = " ".join(page.locator(".jp-OutputArea-output").all_inner_texts())
    assert "this browser, processor (wasm)" in said and "headless Chromium" not in said, said
    assert not page.locator(FAILED).count(), said
