"""The page in a real Chromium: painting, running a network, results, errors, keys, touch, layout."""

import base64
import io
import re
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect

from moebius_lab.config import PRESETS
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.photographs import demo_photographs
from moebius_lab.notebook.workbench import Workbench
from moebius_lab.page.bundle import WEB, page_files, write_bundle
from moebius_lab.page.serve import Handler, Server

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}

WATCH = """
  [window.shifts, window.moved] = [[], []];
  new PerformanceObserver((list) => {
    for (const { value, sources } of list.getEntries()) {
      window.shifts.push(value);
      for (const { node, previousRect: a, currentRect: b } of sources)
        window.moved.push([node?.id || node?.outerHTML || node?.textContent, [a.x, a.y, a.width, a.height], [b.x, b.y, b.width, b.height]]);
    }
  }).observe({ type: 'layout-shift', buffered: true });
"""


@pytest.fixture(scope="module")
def site(tiny, tmp_path_factory):
    """A page of TINY, which is only a passenger in most tests here."""
    yield from served(tiny, tmp_path_factory)


@pytest.fixture(scope="module")
def demo_site(demo, tmp_path_factory):
    """A page of the demo network, for tests of what its fills look like."""
    yield from served(demo, tmp_path_factory)


def served(bench: Workbench, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page") / "bundle"
    write_bundle(bench, folder, ("fp16-storage",))
    with Server(folder) as server:
        yield server


@pytest.fixture
def visit(site, chromium):
    yield from visits(site, chromium)


@pytest.fixture
def visit_demo(demo_site, chromium):
    yield from visits(demo_site, chromium)


def visits(site: Server, chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page in a fresh profile; at the end no error may have reached the console and no request left the site."""
    contexts, troubles = [], []

    def open_page(ready: bool = True, init: str = "", routes: dict | None = None, **options) -> Page:
        context = chromium.new_context(**{"viewport": DESKTOP, "accept_downloads": True} | options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        context.add_init_script(WATCH + init)
        page = context.new_page()
        for pattern, handler in (routes or {}).items():
            page.route(pattern, handler)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: troubles.append(request.url) if not own(request.url, site.url) else None)
        page.goto(site.url)
        if ready:
            expect(page.locator("#samples img")).to_have_count(4)
        return page

    open_page.troubles = troubles
    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def own(url: str, site: str) -> bool:
    return url.startswith((site, "data:", f"blob:{site}"))


# -- what a person does ------------------------------------------------------------------------------------------------


def photograph(width: int = 320, height: int = 240, mode: str = "RGB") -> Image.Image:
    photo, _ = demo_photographs()["mountain"]
    return Image.open(photo).convert(mode).resize((width, height), Image.Resampling.BICUBIC)


def upload(image: Image.Image, name: str = "photo.png") -> dict:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


def load_picture(page: Page, image: Image.Image, name: str = "photo.png") -> None:
    page.set_input_files("#picture-file", upload(image, name))
    expect(page.locator("#facts")).to_contain_text(f"{image.width} × {image.height} px")
    settle(page)


def settle(page: Page) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def on_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a point of the picture (px) is in the window."""
    view = page.evaluate("async () => (await import(document.querySelector('script[type=module]').src)).editor.view")
    box = page.locator("#mask").bounding_box()
    return box["x"] + view["x"] + x * view["scale"], box["y"] + view["y"] + y * view["scale"]


def drag(page: Page, *points: tuple[float, float], button: str = "left") -> None:
    (start, *rest) = [on_screen(page, *point) for point in points]
    page.mouse.move(*start)
    page.mouse.down(button=button)
    for point in rest:
        page.mouse.move(*point, steps=6)
    page.mouse.up(button=button)


def choose(page: Page, tool: str) -> None:
    page.locator(f"[name=tool][value={tool}]").check(force=True)


def brush(page: Page, size: float) -> None:
    page.evaluate(
        "async (size) => (await import(document.querySelector('script[type=module]').src)).editor.resizeBrush(size)", size
    )


def downloaded(page: Page, button: str) -> np.ndarray:
    with page.expect_download() as download:
        page.click(button)
    return np.asarray(Image.open(download.value.path()))


def mask_of(page: Page) -> np.ndarray:
    values = page.evaluate("""async () => {
      const { mask } = (await import(document.querySelector('script[type=module]').src)).editor;
      let text = '';
      for (let i = 0; i < mask.data.length; i += 32768) text += String.fromCharCode(...mask.data.subarray(i, i + 32768));
      return [mask.height, mask.width, btoa(text)];
    }""")
    return np.frombuffer(base64.b64decode(values[2]), np.uint8).reshape(values[:2])


def fill(page: Page, steps: int = 2, variants: int = 1, first: bool = True) -> None:
    """Run the model to its end."""
    start(page, steps, variants, first)
    expect(page.locator("#run")).to_be_enabled(timeout=240_000)
    expect(page.locator("#keep")).to_be_enabled()


def more_settings(page: Page) -> None:
    page.evaluate("document.getElementById('more').open = true")


def start(page: Page, steps: int, variants: int = 1, first: bool = True) -> None:
    more_settings(page)
    page.fill("#steps", str(steps))
    page.fill("#variants", str(variants))
    page.click("#run")
    if first:
        page.click("#prompt-yes")


def listen(page: Page) -> None:
    """Keep what the page says of its runs from here on, however shortly, in `told`."""
    page.evaluate("""() => {
      window.told = [];
      const text = document.getElementById('run-text');
      new MutationObserver(() => window.told.push(text.textContent)).observe(text, { childList: true, characterData: true, subtree: true });
    }""")


def untouched(mask: np.ndarray) -> np.ndarray:
    """bool (H, W): where the feathered mask has no weight."""
    return feather(mask) == 0


def disc_line(shape: tuple[int, int], x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """bool: the pixels whose centres are at most `radius` from a segment."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    length = np.hypot(x1 - x0, y1 - y0)
    share = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length**2, 0, 1)
    return np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0)) <= radius


# -- the model ---------------------------------------------------------------------------------------------------------


def test_a_stroke_is_filled_and_everything_else_stays(visit):
    page = visit()
    original = np.asarray(photograph())
    load_picture(page, Image.fromarray(original))
    drag(page, (100, 80), (150, 110), (170, 150))
    mask = mask_of(page)
    assert 1000 < (mask == 255).sum() < 5000 and set(np.unique(mask)) == {0, 255}

    page.select_option("#preset", "fastest")
    page.fill("#variants", "2")
    page.click("#run")
    expect(page.locator("#prompt")).to_contain_text(re.compile(r"\d+\.\d MB will be downloaded.*kept in this browser"))
    expect(page.locator("#prompt-warning")).to_contain_text("processor, which is slow")
    listen(page)
    page.click("#prompt-yes")
    expect(page.locator("#run")).to_be_enabled(timeout=240_000)
    told = page.evaluate("told")
    assert any(
        re.search(rf"Variant 1 of 2 · step \d of {PRESETS['fastest'].steps} · \d+ ms a step", text) for text in told
    ), told
    expect(page.locator("#results input")).to_have_count(2)
    expect(page.locator("#results label").nth(0)).to_contain_text("seed 0")
    expect(page.locator("#load-text")).to_contain_text("processor (wasm)")
    page.click("#model summary")
    expect(page.locator("#evidence")).to_contain_text("nodes")

    first = downloaded(page, "#save")
    page.locator("#results input").nth(1).check(force=True)
    second = downloaded(page, "#save")
    assert (first != second).any()
    for result in (first, second):
        assert (result[untouched(mask)] == original[untouched(mask)]).all()
        assert np.abs(result[mask == 255].astype(int) - original[mask == 255]).mean() > 2

    page.locator("#split").fill("0.5")
    expect(page.locator("#before")).to_be_visible()
    drag(page, (300, 100), (20, 100))
    assert float(page.locator("#split").input_value()) < 0.1
    page.click("#keep")
    assert (downloaded(page, "#save") == second).all() and not mask_of(page).any()
    page.keyboard.press("Control+z")
    assert (downloaded(page, "#save") == original).all() and (mask_of(page) == mask).all()
    expect(page.locator("#results input")).to_have_count(2)
    page.keyboard.press("Control+Shift+z")
    assert (downloaded(page, "#save") == second).all()

    page.click("#storage summary")
    expect(page.locator("#stored li")).to_have_count(2)
    page.click("#clear-all")
    expect(page.locator("#stored li")).to_have_count(0)
    assert sum(page.evaluate("shifts")) < 0.01


def test_a_wire_and_a_speck_are_gone_and_the_cost_is_told_before(visit_demo):
    page = visit_demo()
    y, x = np.mgrid[:300, :600]
    sky = np.stack([60 + y // 4, 110 + x // 12, 200 - y // 4], -1).astype(np.uint8)
    mask = np.zeros((300, 600), np.uint8)
    mask[40:200, 97:100] = mask[150:153, 500:503] = 255  # columns that no cell's corner lies in
    photo = np.where(mask[..., None] > 0, np.uint8(10), sky)
    load_picture(page, Image.fromarray(photo))
    page.set_input_files("#mask-file", upload(Image.fromarray(mask), "mask.png"))
    expect(page.locator("#facts")).to_contain_text("hole 0.3 %")
    listen(page)
    fill(page, steps=3)
    assert "2 windows of 256 px · 3 steps each" in page.evaluate("told")
    expect(page.locator("#coverage")).to_have_value("whole")
    whole = downloaded(page, "#save")
    assert (whole[untouched(mask)] == photo[untouched(mask)]).all()
    page.click("#edit")
    page.select_option("#coverage", "as-released")
    fill(page, steps=3, first=False)
    released = downloaded(page, "#save")
    error = [np.abs(result[mask > 0].astype(int) - sky[mask > 0]).mean() for result in (photo, whole, released)]
    assert error[1] < 0.25 * error[0] and error[2] > 0.5 * error[0], error
    page.click("#defaults")
    expect(page.locator("#coverage")).to_have_value("whole")


def test_a_preset_sets_everything_says_what_it_costs_and_is_kept(visit_demo):
    """Of the demo network: on a quick machine all that TINY takes is shown as one second."""
    page = visit_demo()
    chosen = page.locator("#preset option:checked")
    assert page.locator("#preset option").all_inner_texts() == [*(entry.label for entry in PRESETS.values()), "Custom"]
    expect(chosen).to_have_text("Fast")
    expect(page.locator("#preset-note")).to_have_text(PRESETS["fast"].note)
    expect(page.locator("#cost")).to_contain_text("after a first step")
    more_settings(page)
    for name, entry in PRESETS.items():
        page.select_option("#preset", name)
        fields = {"solver": entry.solver, "steps": entry.steps, "strength": entry.strength, "guidance": entry.guidance}
        fields |= {"guided-from": entry.guidance_interval[0], "guided-to": entry.guidance_interval[1], "init": entry.init}
        for field, value in fields.items():
            found = page.locator(f"#{field}").input_value()
            assert found == value if isinstance(value, str) else float(found) == value, (name, field)
    page.fill("#guidance", "3")
    expect(chosen).to_have_text("Custom")
    page.fill("#guidance", "2")
    expect(chosen).to_have_text("As released")

    page.reload()
    expect(chosen).to_have_text("As released")
    more_settings(page)
    page.fill("#steps", "3")
    page.reload()
    expect(chosen).to_have_text("Custom")
    expect(page.locator("#steps")).to_have_value("3")
    for kept in ('{"preset": "gone"}', '{"solver": "euler", "steps": 4}', '{"steps": "many"}', "[", "null"):
        page.evaluate("(kept) => localStorage.setItem('settings', kept)", kept)
        page.reload()
        expect(chosen).to_have_text("Fast")

    load_picture(page, photograph())
    drag(page, (60, 60), (90, 60))
    page.select_option("#preset", "fastest")
    page.click("#run")
    page.click("#prompt-yes")
    cost = page.locator("#cost")
    expect(cost).to_have_text(
        re.compile(
            r"On this device, for each window: Fast about \d+ s; Fastest about \d+ s; As released about \d+ (s|min)\."
        ),
        timeout=240_000,
    )
    expect(page.locator("#keep")).to_be_enabled(timeout=240_000)
    told = re.findall(r"about (\d+) (s|min)", cost.inner_text())
    fast, fastest, released = (int(n) * {"s": 1, "min": 60}[unit] for n, unit in told)
    assert fastest <= fast < released


def running(visit) -> tuple[Page, np.ndarray]:
    """A page on which a run is under way that takes minutes, and the mask that was painted for it."""
    page = visit()
    load_picture(page, photograph())
    drag(page, (60, 60), (90, 60))
    mask = mask_of(page)
    start(page, steps=200, variants=8)
    expect(page.locator("#run-text")).to_contain_text(re.compile(r"step \d+ of"), timeout=120_000)
    return page, mask


def test_cancel_stops_within_a_step_and_the_mask_stays(visit):
    page, mask = running(visit)
    page.click("#cancel")
    expect(page.locator("#run-text")).to_have_text("Cancelled. The mask is as it was.")
    expect(page.locator("#run")).to_be_focused()
    assert (mask_of(page) == mask).all()
    start(page, steps=200, variants=8, first=False)
    expect(page.locator("#run-text")).to_contain_text(re.compile(r"step \d+ of"))
    page.keyboard.press("Escape")
    expect(page.locator("#run-text")).to_have_text("Cancelled. The mask is as it was.")


def test_a_large_photograph_with_transparency(visit):
    page = visit()
    original = np.array(photograph(3000, 2000, "RGBA"))
    original[:, :500, 3] = np.random.default_rng(0).integers(0, 256, (2000, 500))
    load_picture(page, Image.fromarray(original))
    brush(page, 80)
    drag(page, (1500, 900), (1570, 950))
    fill(page)
    mask = mask_of(page)
    result = downloaded(page, "#save")
    assert result.shape == original.shape and (result[..., 3] == original[..., 3]).all()
    assert (result[untouched(mask)] == original[untouched(mask)]).all() and (
        result[mask == 255] != original[mask == 255]
    ).any()


def test_a_failed_download_says_why_and_goes_on(visit):
    page = visit()
    load_picture(page, photograph())
    drag(page, (60, 60), (90, 60))
    page.context.route("**/weights/vae_decoder*.bin", lambda route: route.fulfill(status=404, body="gone"))
    start(page, steps=2)
    alert = page.locator(".notice[role=alert]")
    expect(alert).to_be_visible(timeout=120_000)
    assert (mask_of(page) > 0).any()
    page.context.unroute("**/weights/vae_decoder*.bin")
    alert.get_by_role("button", name="Try again").click()
    expect(page.locator("#load-text")).to_contain_text("Ready", timeout=120_000)
    visit.troubles[:] = [text for text in visit.troubles if "404" not in text]


def test_a_download_pauses_and_resumes(visit):
    page = visit()
    slow = "**/weights/step*.bin"
    page.context.route(slow, lambda route: None)
    page.click("#load")
    expect(page.locator("#load-text")).to_contain_text(re.compile(r"\d+\.\d MB of \d+\.\d MB"))
    page.click("#load-cancel")
    expect(page.locator("#load-text")).to_contain_text("Stopped. What has arrived is kept")
    expect(page.locator("#load")).to_have_text(re.compile(r"Resume \(\d+\.\d MB\)"))
    page.context.unroute(slow)
    page.click("#load")
    expect(page.locator("#load-text")).to_contain_text("Ready", timeout=120_000)
    expect(page.locator("#load")).to_have_text("Loaded")


def test_a_start_can_be_cancelled(visit):
    page = visit()
    page.evaluate("""() => {
      const [text, cancel] = ['load-text', 'load-cancel'].map((id) => document.getElementById(id));
      new MutationObserver((_, watching) => {
        if (!text.textContent.includes('Starting the model')) return;
        watching.disconnect();
        window.named = cancel.textContent;
        cancel.click(); // before the model is there, which a quick machine has in no time
      }).observe(text, { childList: true, characterData: true, subtree: true });
    }""")
    page.click("#load")
    expect(page.locator("#load-text")).to_contain_text("Stopped.")
    assert page.evaluate("named") == "Cancel"
    page.get_by_role("button", name="Start the model").click()
    expect(page.locator("#load-text")).to_contain_text("Ready", timeout=120_000)


@pytest.mark.parametrize("which", (0, 1), ids=("model", "helper"))
def test_a_worker_that_dies_is_reported_and_starts_again(visit, which):
    page, mask = running(visit)
    page.evaluate(
        """async (which) => {
          const { model } = await import(document.querySelector('script[type=module]').src);
          model.engine.workers[which].dispatchEvent(new ErrorEvent('error', { message: 'gone' }));
        }""",
        which,
    )
    alert = page.locator(".notice[role=alert]")
    expect(alert).to_contain_text("worker stopped (gone)")
    expect(page.locator("#run")).to_be_enabled()
    assert (mask_of(page) == mask).all()
    page.fill("#steps", "2")
    page.fill("#variants", "1")
    alert.get_by_role("button", name="Try again").click()
    page.click("#prompt-yes")
    expect(page.locator("#keep")).to_be_enabled(timeout=120_000)


LATE = """const [get, late] = [window.fetch, new Promise((done) => (window.answer = done))];
window.fetch = async (...asked) => {
  if (String(asked[0]).includes('manifest.json')) await late;
  return get(...asked);
};"""


def test_cancelled_while_the_manifest_is_not_here_nothing_is_asked_or_loaded(visit):
    page = visit(ready=False, init=LATE)
    page.evaluate("document.getElementById('measure').click()")
    page.click("#cancel")
    expect(page.locator("#cancel")).to_be_hidden()
    page.evaluate("answer()")
    expect(page.locator("#samples img")).to_have_count(4)
    settle(page)
    assert not page.evaluate("document.getElementById('prompt').open")
    expect(page.locator("#load")).to_be_enabled()


def test_what_failed_is_what_ran_and_not_what_is_chosen_by_then(visit):
    page = visit(init=ADAPTER % 2**27)
    ran = page.locator("#choice option", has_text="Processor").first
    page.select_option("#choice", ran.get_attribute("value"))
    page.click("#load")
    expect(page.locator("#load")).to_have_text("Loaded", timeout=120_000)
    page.select_option("#choice", index=0)
    seen = page.evaluate("""async () => {
      const { model } = await import(document.querySelector('script[type=module]').src);
      const error = Object.assign(new Error('The device is gone.'), { code: 'device-lost' });
      model.engine.dispatchEvent(new CustomEvent('lost', { detail: error }));
      return model.detected.choices.map((choice) => [choice.provider, model.engine.seen.of(choice)]);
    }""")
    assert ["wasm", "failed"] in seen and ["webgpu", "failed"] not in seen and len(seen) > 1


def test_what_failed_is_known_at_the_next_visit_though_no_device_was_to_be_had_after_it(visit):
    page = visit(init=ADAPTER % 2**27)
    model = "(await import(document.querySelector('script[type=module]').src)).model"
    verdicts = (
        f"async () => {model}.detected.choices.filter(({{ provider }}) => provider === 'webgpu').map(({{ seen }}) => seen)"
    )
    assert set(page.evaluate(verdicts)) == {""}
    page.evaluate(f"""async () => {{
      const {{ engine, detected }} = {model};
      const failed = detected.choices.filter(({{ provider }}) => provider === 'webgpu');
      navigator.gpu.requestAdapter = async () => null;
      await engine.detect();
      for (const choice of failed) engine.seen.note(choice, 'failed');
    }}""")
    page.reload()
    expect(page.locator("#choice")).to_be_enabled()
    assert set(page.evaluate(verdicts)) == {"failed"}


def test_without_webgpu_the_page_says_so_and_how_slow_it_is(visit):
    page = visit(init="Object.defineProperty(Navigator.prototype, 'gpu', { value: undefined });")
    expect(page.locator("#choice-note")).to_contain_text("This browser has no WebGPU.")
    expect(page.locator("#choice-note")).to_contain_text("Runs on the processor")
    assert all(text.startswith("Processor") for text in page.locator("#choice option").all_inner_texts())


ADAPTER = """Object.defineProperty(Navigator.prototype, 'gpu', { value: { requestAdapter: async () => ({
  limits: { maxStorageBufferBindingSize: %d, maxBufferSize: 2 ** 28, maxStorageBuffersPerShaderStage: 8, maxComputeWorkgroupStorageSize: 16384, maxComputeInvocationsPerWorkgroup: 256 },
  features: new Set(), info: { vendor: 'somebody', architecture: '', description: '', isFallbackAdapter: false },
}) } });"""


def test_what_a_device_lacks_is_told_before_anything_is_downloaded(visit, site):
    before = len(site.requests)
    page = visit(init=ADAPTER % 1_000_000)
    lacks = re.compile(r"fp16-storage needs maxStorageBufferBindingSize of \d+ MB \(it has 1 MB\)")
    expect(page.locator("#choice-note")).to_contain_text(lacks)
    expect(page.locator("#withheld")).to_contain_text(lacks)
    assert all(text.startswith("Processor") for text in page.locator("#choice option").all_inner_texts())
    page = visit(init=ADAPTER % 2**27)  # WebGPU's default
    assert page.locator("#choice option").first.inner_text().startswith("WebGPU · fp16-storage")
    expect(page.locator("#withheld")).to_be_empty()
    assert not any("/weights/" in path for path in site.requests[before:])


def test_memory_that_a_device_may_not_have_is_told_before_anything_is_downloaded(visit):
    page = visit(init="Object.defineProperty(Navigator.prototype, 'deviceMemory', { value: 0.005 });")
    words = re.compile(r"It takes about [\d.]+ MB of memory, which may be more than this device can give")
    expect(page.locator("#choice-note")).to_contain_text(words)
    load_picture(page, photograph())
    drag(page, (60, 60), (90, 60))
    page.click("#run")
    expect(page.locator("#prompt-warning")).to_contain_text(words)
    page.click("#prompt button[value=no]")


# -- the mask ----------------------------------------------------------------------------------------------------------


def test_a_stroke_covers_what_the_brush_passed(visit):
    page = visit()
    load_picture(page, photograph())
    brush(page, 20)
    drag(page, (40, 50), (200, 120))
    exact = disc_line((240, 320), 40, 50, 200, 120, 10)
    drawn = mask_of(page) == 255
    assert (drawn != exact).sum() < 0.03 * exact.sum()


def test_tools_undo_and_redo(visit):
    page = visit()
    load_picture(page, photograph())
    states = [mask_of(page)]

    def step(act) -> np.ndarray:
        act()
        states.append(mask_of(page))
        return states[-1] == 255

    choose(page, "rectangle")
    box = step(lambda: drag(page, (50, 40), (150, 140)))
    assert abs(box.sum() - 100 * 100) < 250 and box[60:120, 70:130].all() and not box[:35].any()
    page.locator("[name=shape][value=remove]").check()
    assert not step(lambda: drag(page, (80, 80), (100, 100)))[83:97, 83:97].any()
    page.locator("[name=shape][value=add]").check()
    choose(page, "lasso")
    outline = [(200, 50), (280, 60), (240, 140)]
    lasso = step(lambda: drag(page, *outline, outline[0]))
    triangle = Image.new("1", (320, 240))
    ImageDraw.Draw(triangle).polygon(outline, fill=1)
    assert (lasso[:, 190:] != np.asarray(triangle)[:, 190:]).sum() < 300
    choose(page, "eraser")
    assert not step(lambda: drag(page, (230, 80), (250, 80)))[78:82, 232:248].any()
    choose(page, "brush")
    assert not step(lambda: drag(page, (60, 120), (70, 130), button="right"))[120:130, 61:69].all()
    before = states[-1]
    assert (step(lambda: page.click("#invert")) == (before == 0)).all()
    assert not step(lambda: page.click("#clear")).any()

    for state in states[-2::-1]:
        page.keyboard.press("Control+z")
        assert (mask_of(page) == state).all()
    expect(page.locator("#undo")).to_be_disabled()
    for state in states[1:]:
        page.keyboard.press("Control+y")
        assert (mask_of(page) == state).all()
    expect(page.locator("#redo")).to_be_disabled()


def test_sizes_by_slider_keys_and_wheel_and_zoom(visit):
    page = visit()
    load_picture(page, photograph())
    size = lambda: int(page.inner_text("#size-text").split()[0])  # noqa: E731
    zoom = lambda: int(page.inner_text("#zoom-text").split()[0])  # noqa: E731
    brush(page, 20)
    page.locator("#mask").focus()
    page.keyboard.press("]")
    assert size() == 24
    page.keyboard.press("[")
    assert size() == 20
    page.mouse.move(*on_screen(page, 160, 120))
    page.mouse.wheel(0, -100)
    page.wait_for_function("() => parseInt(document.querySelector('#size-text').textContent) > 20")
    page.locator("#size").fill("0")
    assert size() == 1
    fitted = zoom()
    under = on_screen(page, 160, 120)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    page.wait_for_function("(was) => parseInt(document.querySelector('#zoom-text').textContent) > was", arg=fitted)
    assert np.allclose(on_screen(page, 160, 120), under, atol=1)
    page.keyboard.down("Space")
    drag(page, (160, 120), (120, 100))
    page.keyboard.up("Space")
    assert not np.allclose(on_screen(page, 160, 120), under, atol=20) and not mask_of(page).any()
    page.click("#fit")
    assert zoom() == fitted
    page.keyboard.press("1")
    assert zoom() == 100


def test_touch_paints_and_two_fingers_zoom(visit):
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    load_picture(page, photograph())
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    a, b = on_screen(page, 80, 100), on_screen(page, 200, 130)
    touch("touchStart", a)
    touch("touchMove", tuple(np.add(a, b) / 2))
    touch("touchMove", b)
    touch("touchEnd")
    painted = mask_of(page)
    assert painted[115, 140] == 255 and painted[100, 80] == 255 and painted[130, 199] == 255
    before = page.inner_text("#zoom-text")
    middle = np.add(a, b) / 2
    touch("touchStart", tuple(middle - 20))
    touch("touchStart", tuple(middle - 20), tuple(middle + 20))
    touch("touchMove", tuple(middle - 60), tuple(middle + 60))
    touch("touchEnd")
    settle(page)
    assert page.inner_text("#zoom-text") != before and (mask_of(page) == painted).all()
    session.send("Input.dispatchMouseEvent", pen("mousePressed", 300, 400) | {"buttons": 1, "button": "left"})


def pen(kind: str, x: float, y: float) -> dict:
    return {"type": kind, "x": x, "y": y, "pointerType": "pen", "clickCount": 1}


def test_a_pen_paints(visit):
    page = visit()
    load_picture(page, photograph())
    session = page.context.new_cdp_session(page)
    places = [on_screen(page, *point) for point in ((50, 50), (90, 60), (130, 60))]
    pressed = {"button": "left", "buttons": 1, "force": 0.5}
    session.send("Input.dispatchMouseEvent", pen("mousePressed", *places[0]) | pressed)
    for place in places[1:]:
        session.send("Input.dispatchMouseEvent", pen("mouseMoved", *place) | pressed)
    session.send("Input.dispatchMouseEvent", pen("mouseReleased", *places[-1]) | {"button": "left", "buttons": 0})
    assert (mask_of(page)[60, 95:130] == 255).all()


def test_masks_go_out_and_come_back(visit):
    page = visit()
    load_picture(page, photograph())
    drag(page, (60, 60), (120, 100))
    mask = mask_of(page)
    assert (downloaded(page, "#export-mask") == mask).all()
    page.click("#clear")
    page.set_input_files("#mask-file", upload(Image.fromarray(mask), "m.png"))
    expect(page.locator("#status")).to_have_text("The mask was imported.")
    assert (mask_of(page) == mask).all()

    small = Image.fromarray(mask).resize((160, 120), Image.Resampling.NEAREST)
    page.set_input_files("#mask-file", upload(small, "small.png"))
    notice = page.locator(".notice")
    expect(notice).to_contain_text("“small.png” is 160 × 120 pixels, the picture 320 × 240.")
    notice.get_by_role("button", name="Stretch it").click()
    assert (mask_of(page) == np.asarray(small).repeat(2, 0).repeat(2, 1)).all()
    page.set_input_files("#mask-file", upload(Image.new("L", (320, 240), 100), "grey.png"))
    expect(notice).to_contain_text("has no white")


# -- opening and keeping -----------------------------------------------------------------------------------------------


def facts(photo: Image.Image, hole: np.ndarray) -> str:
    """What the page says of a picture with its mask."""
    return f"{photo.width} × {photo.height} px · hole {100 * hole.mean():.1f} %"


def test_a_picture_with_its_mask_is_opened_while_the_model_runs(visit):
    page, _ = running(visit)
    photo, mask = map(Image.open, list(demo_photographs().values())[1])
    page.evaluate("document.querySelectorAll('#samples button')[1].click()")
    hole = np.asarray(mask.convert("L")) >= 128
    expect(page.locator("#facts")).to_contain_text(facts(photo, hole))
    assert np.array_equal(mask_of(page) >= 128, hole)
    expect(page.locator("#run")).to_be_enabled(timeout=120_000)


# What takes longer than opening the picture that has just arrived.
DECODE = """async (url) => {
    for (let i = 0; i < 10; i++) {
        await createImageBitmap(await (await fetch(url)).blob());
        await new Promise(requestAnimationFrame);
    }
}"""


def test_of_two_samples_the_one_that_was_wanted_last_is_opened(visit):
    page = visit()
    photo, mask = map(Image.open, list(demo_photographs().values())[1])
    held, samples = [], page.locator("#samples button")
    first, second = (samples.nth(i).locator("img").get_attribute("src") for i in (0, 1))
    page.route(f"**/{first}", lambda route: held.append(route), times=1)
    with page.expect_request(f"**/{first}"):
        samples.first.click()
    samples.nth(1).click()
    wanted = facts(photo, np.asarray(mask.convert("L")) >= 128)
    expect(page.locator("#facts")).to_contain_text(wanted)
    with page.expect_response(f"**/{first}") as answer:
        held[0].continue_()
    answer.value.finished()
    page.evaluate(DECODE, first)
    expect(page.locator("#facts")).to_contain_text(wanted)
    expect(page.locator(".notice")).to_have_count(0)

    page.route(f"**/{second}", lambda route: route.fulfill(status=500))
    load_picture(page, photograph())
    page.evaluate("document.querySelectorAll('#samples button')[1].click()")
    notice = page.locator(".notice", has_text=f"The server did not hand over {second} (500).")
    expect(notice).to_be_visible()
    assert visit.troubles.pop().startswith("Failed to load")
    page.unroute(f"**/{second}")
    notice.get_by_role("button", name="Try again").click()
    expect(page.locator("#facts")).to_contain_text(wanted)


def test_a_picture_is_saved_as_it_was_when_that_was_asked_for(visit):
    page = visit()
    load_picture(page, photograph())
    drag(page, (60, 60), (90, 60))
    fill(page)
    page.click("#keep")
    kept = downloaded(page, "#save")
    with page.expect_download() as download:
        page.evaluate("for (const id of ['save', 'undo']) document.getElementById(id).click()")
    assert (np.asarray(Image.open(download.value.path())) == kept).all()
    expect(page.locator("#status")).to_contain_text("Saved as")
    assert (downloaded(page, "#save") == np.asarray(photograph())).all()


def test_samples_drop_and_paste(visit):
    page = visit()
    photo, mask = map(Image.open, list(demo_photographs().values())[1])
    page.click("#samples button >> nth=1")
    expect(page.locator("#facts")).to_contain_text(facts(photo, np.asarray(mask.convert("L")) >= 128))
    expect(page.locator("#start")).to_be_hidden()
    for kind, width in (("drop", 200), ("paste", 100)):
        give(page, kind, given=photograph(width, 90))
        expect(page.locator("#facts")).to_contain_text(f"{width} × 90 px")
    load_picture(page, photograph())
    page.locator("#mask").focus()
    drag(page, (60, 60), (120, 100))
    mask = mask_of(page)
    load_picture(page, photograph(64, 48), "next.png")
    page.get_by_role("button", name="Bring it back").click()
    assert (mask_of(page) == mask).all()


def test_a_reload_restores_picture_and_mask(visit):
    page = visit()
    original = photograph()
    load_picture(page, original)
    drag(page, (60, 60), (120, 100))
    mask = mask_of(page)
    is_kept(page)
    page.reload()
    expect(page.locator("#status")).to_have_text("Your last picture and mask are back.")
    is_kept(page)
    assert (mask_of(page) == mask).all() and (downloaded(page, "#save") == np.asarray(original)).all()
    page.click("#storage summary")
    page.click("#forget")
    is_kept(page, "forgotten")
    drag(page, (60, 120), (120, 140))
    settle(page)
    is_kept(page, "forgotten")
    assert not saved_slots(page)
    page.reload()
    expect(page.locator("#samples img")).to_have_count(4)
    expect(page.locator("#start")).to_be_visible()


def is_kept(page: Page, state: str = "saved") -> None:
    """Wait until the page says so of what is on the screen."""
    expect(page.locator("#autosave-text")).to_have_attribute("data-state", state)


SLOTS = """(more) => new Promise((done) => {
  indexedDB.open('moebius-painting', 1).onsuccess = ({ target: { result: db } }) => {
    const store = db.transaction('painting', 'readwrite').objectStore('painting');
    for (const [key, value] of more) store.put(value, key);
    store.getAllKeys().onsuccess = (event) => done([...event.target.result]);
  };
})"""


def saved_slots(page: Page, *more: tuple[str, dict]) -> list[str]:
    """The keys of all that is saved, after some `more` has been put beside it."""
    return page.evaluate(SLOTS, list(more))


def test_each_tab_keeps_its_own_picture_and_mask(visit):
    first = visit()
    load_picture(first, photograph(), "first.png")
    drag(first, (60, 60), (120, 100))
    second = first.context.new_page()
    second.goto(first.url)
    expect(second.locator("#choice")).to_be_enabled()
    expect(second.locator("#start")).to_be_visible()  # what another tab has open is not taken over
    load_picture(second, photograph(200, 100), "second.png")
    drag(second, (20, 20), (60, 60))
    masks = {page: mask_of(page) for page in (first, second)}
    for page in (second, first):
        is_kept(page)
        page.reload()
        expect(page.locator("#status")).to_have_text("Your last picture and mask are back.")
        assert np.array_equal(mask_of(page), masks[page])

    with first.context.expect_page() as opened:
        first.evaluate("void window.open(location.href)")  # as a duplicate is made: with a copy of the tab's storage
    third = opened.value
    expect(third.locator("#status")).to_have_text("Your last picture and mask are back.")
    assert np.array_equal(mask_of(third), masks[first])
    third.click("#clear")
    is_kept(third)
    first.reload()
    expect(first.locator("#status")).to_have_text("Your last picture and mask are back.")
    assert np.array_equal(mask_of(first), masks[first])

    second.close()
    fourth = first.context.new_page()
    fourth.goto(first.url)
    expect(fourth.locator("#status")).to_have_text("Your last picture and mask are back.")
    assert np.array_equal(mask_of(fourth), masks[second])


def test_of_closed_tabs_only_the_last_are_kept(visit):
    page = visit()
    load_picture(page, photograph())
    is_kept(page)
    now = page.evaluate("Date.now()")
    hours = {f"closed{i}": now - i * 3_600_000 for i in range(12)} | {"month": now - 31 * 86_400_000}
    saved_slots(page, *[(f"mask {name}", {"id": name, "saved": at}) for name, at in hours.items()])
    page.reload()
    expect(page.locator("#status")).to_have_text("Your last picture and mask are back.")
    kept = {key.split()[1] for key in saved_slots(page)}
    assert kept >= {f"closed{i}" for i in range(8)} and len(kept) == 9  # with this tab's own


def test_blocked_storage_breaks_nothing(visit):
    page = visit(init="IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };")
    load_picture(page, photograph())
    drag(page, (60, 60), (120, 100))
    expect(page.locator("#autosave-text")).to_contain_text("Everything else works", use_inner_text=False)
    assert mask_of(page).any()


def test_a_picture_that_was_refused_is_not_called_saved(visit):
    page = visit()
    load_picture(page, photograph())
    is_kept(page)
    page.evaluate("""() => {
      const put = IDBObjectStore.prototype.put;
      IDBObjectStore.prototype.put = function (value, key) {
        if (key.startsWith('picture')) throw new DOMException('full', 'QuotaExceededError');
        return put.call(this, value, key);
      };
    }""")
    load_picture(page, photograph(200, 100), "large.png")
    is_kept(page, "refused")
    drag(page, (20, 20), (60, 60))
    settle(page)
    is_kept(page, "refused")


GIVE = """async ([kind, all]) => {
  const files = new DataTransfer();
  for (const [name, bytes] of all) files.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }));
  const options = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === 'drop' ? new DragEvent('drop', { ...options, dataTransfer: files })
    : new ClipboardEvent('paste', { ...options, clipboardData: files }));
}"""


def give(page: Page, kind: str, **images: Image.Image) -> None:
    """Drop or paste pictures."""
    page.evaluate(GIVE, [kind, [[f"{name}.png", list(upload(image)["buffer"])] for name, image in images.items()]])


def test_what_a_file_is_is_not_guessed_from_its_name(visit):
    page = visit()
    load_picture(page, photograph())
    drag(page, (60, 60), (120, 100))
    for name, size in (("damask_chair.png", (300, 200)), ("carnival masks.png", (320, 240))):
        load_picture(page, photograph(*size), name)
        expect(page.locator("#facts")).to_contain_text("hole none")
        expect(page.locator(".notice.bad")).to_have_count(0)
        give(page, "drop", **{name.removesuffix(".png"): photograph(100, 80)})
        expect(page.locator("#facts")).to_contain_text("100 × 80 px")

    load_picture(page, photograph())
    shape = np.zeros((240, 320), np.uint8)
    shape[50:90, 60:160] = 255
    for kind in ("drop", "paste"):
        give(page, kind, hole=Image.fromarray(shape))
        question = page.locator(".notice[data-subject=file]")
        expect(question).to_contain_text("“hole.png” is black and white")
        question.get_by_role("button", name="Use it as the mask").click()
        expect(page.locator("#facts")).to_contain_text("hole 5.2 %")
        assert (mask_of(page) == shape).all()
        page.click("#clear")
    give(page, "drop", hole=Image.fromarray(shape))
    question.get_by_role("button", name="Open it as a picture").click()
    expect(page.locator("#status")).to_contain_text("hole.png is open")

    give(page, "drop", other=Image.fromarray(shape[:100]), photo=photograph(320, 100))
    expect(page.locator("#facts")).to_contain_text("320 × 100 px")
    question.get_by_role("button", name="Use it as the mask").click()
    expect(page.locator("#facts")).to_contain_text("hole 12.5 %")
    assert (mask_of(page) == shape[:100]).all()
    give(page, "drop", one=photograph(50, 40), two=photograph(60, 40), three=photograph(70, 40))
    expect(page.locator("#facts")).to_contain_text("50 × 40 px")
    expect(question).to_contain_text("3 files were dropped")


# -- errors ------------------------------------------------------------------------------------------------------------


def test_unusable_files_are_explained_and_lose_nothing(visit):
    page = visit()
    load_picture(page, photograph())
    drag(page, (60, 60), (120, 100))
    mask = mask_of(page)
    whole = upload(photograph(600, 400))["buffer"]
    too_large = upload(Image.new("1", (10_100, 10_000)))["buffer"]
    cases = {
        "notes.txt": (b"hello, this is no picture at all, only text", "is not a picture that this browser can read"),
        "empty.png": (b"", "is an empty file"),
        "cut.png": (whole[:40], "is damaged or cut short"),
        "huge.png": (too_large, "has 101 megapixels (10100 × 10000); at most 100 can be used"),
    }
    for name, (content, words) in cases.items():
        page.set_input_files("#picture-file", {"name": name, "mimeType": "image/png", "buffer": content})
        notice = page.locator(".notice[role=alert]")
        expect(notice).to_contain_text(f"“{name}” {words}")
        notice.get_by_role("button", name="Close").click()
        assert (mask_of(page) == mask).all()


BLANK = """const { getImageData } = OffscreenCanvasRenderingContext2D.prototype;
OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...box) {
  const pixels = getImageData.apply(this, box);
  if (this.canvas.width * this.canvas.height > 2 ** 24) pixels.data.fill(0);
  return pixels;
};"""


def test_where_a_large_canvas_stays_blank_a_large_picture_is_refused_and_nothing_is_lost(visit):
    """Safari of iOS draws nothing on more than 2^24 pixels, and throws nothing."""
    page = visit(init=BLANK)
    load_picture(page, photograph())
    drag(page, (60, 60), (120, 100))
    mask = mask_of(page)
    page.set_input_files("#picture-file", upload(Image.new("RGB", (5000, 3400)), "large.png"))
    notice = page.locator(".notice[role=alert]")
    words = "“large.png” has 17 megapixels (5000 × 3400); at most 16 can be used in this browser. Save it smaller, and open that."
    expect(notice).to_contain_text(words)
    page.locator("#extend summary").click()
    page.fill("#extend-left", "20000")
    page.fill("#extend-top", "700")
    page.click("#extend-apply")
    words = "The picture was not extended: this browser shows at most 16 megapixels. Choose fewer pixels."
    expect(notice.filter(has_text=words)).to_be_visible()
    expect(page.locator("#facts")).to_contain_text("320 × 240 px")
    assert (mask_of(page) == mask).all()


def test_an_empty_and_a_full_mask_are_explained(visit):
    page = visit()
    load_picture(page, photograph())
    page.click("#run")
    notice = page.locator(".notice[role=alert]")
    expect(notice).to_contain_text("Nothing is painted yet")
    page.click("#invert")
    expect(notice).to_have_count(0)
    page.click("#run")
    expect(notice).to_contain_text("covers the whole picture")
    notice.get_by_role("button", name="Invert the mask").click()
    assert not mask_of(page).any()
    drag(page, (60, 60), (120, 100))
    page.select_option("#preset", "")
    page.fill("#steps", "0")
    page.click("#run")
    assert page.evaluate("document.activeElement.id") == "steps" and page.locator("#prompt").is_hidden()
    for field, value, words in (
        ("#steps", "1", "dpm++2m needs at least 2 steps, and 1 would run"),
        ("#guided-from", "1", "Guidance must run from a share of 0 or more to a later one of at most 1, not from 1 to 1."),
        ("#guided-from", "0.95", f"No step of {PRESETS['fast'].steps} begins between 0.95 and 1 of the run"),
    ):
        page.select_option("#preset", "fast")
        page.fill(field, value)
        page.click("#run")
        expect(notice).to_contain_text(words)
    assert page.locator("#prompt").is_hidden()
    page.select_option("#preset", "fast")
    expect(notice).to_have_count(0)


@pytest.mark.parametrize(
    "answer, words",
    [
        ({"status": 404, "body": "no"}, "answered 404"),
        ({"status": 200, "body": '{"format": 99}'}, "form 99"),
        ({"status": 200, "body": "<html>"}, "is not a manifest"),
    ],
)
def test_a_bad_manifest_is_explained_and_painting_works(visit, answer, words):
    page = visit(ready=False, routes={"**/manifest.json*": lambda route: route.fulfill(**answer)})
    notice = page.locator(".notice[role=alert]")
    expect(notice).to_contain_text(words)
    load_picture(page, photograph())
    drag(page, (60, 60), (120, 100))
    assert mask_of(page).any()
    page.unroute("**/manifest.json*")
    notice.get_by_role("button", name="Try again").click()
    expect(page.locator("#choice")).to_be_enabled()
    visit.troubles[:] = [text for text in visit.troubles if "404" not in text]


# -- access ------------------------------------------------------------------------------------------------------------


def test_the_focus_passes_on_when_what_has_it_hides_or_is_disabled(visit):
    """To the nearest control that can be used, and only from the one that went."""
    page = visit(init="window.focused = []; addEventListener('focusin', ({ target }) => focused.push(target));")

    def press(control: str, then: str, for_good: bool = True) -> None:
        page.locator(control).focus()
        page.evaluate("focused.length = 0")
        page.keyboard.press("Enter")
        if for_good:
            expect(page.locator(then)).to_be_focused()
        else:  # until a download or a run is over, which may be at once
            page.wait_for_function("(then) => focused.some((control) => control.matches(then))", arg=then)

    with page.expect_file_chooser() as chooser:
        page.locator("#start-open").focus()
        page.keyboard.press("Enter")
    chooser.value.set_files([upload(photograph())])
    expect(page.locator("#mask")).to_be_focused()
    press("#run", "#run")
    press(".notice button", "#mask")  # Close, and the notice goes
    drag(page, (60, 60), (90, 60))
    press("#undo", "#redo")
    press("#redo", "#undo")

    slow = "**/weights/step*.bin"
    page.context.route(slow, lambda route: None)
    press("#load", "#load-cancel")
    expect(page.locator("#load-text")).to_contain_text(re.compile(r"\d+\.\d MB of \d+\.\d MB"))
    press("#load-cancel", "#load")
    page.context.unroute(slow)
    press("#load", "#load-cancel", for_good=False)
    expect(page.locator("#load")).to_have_text("Loaded", timeout=120_000)
    expect(page.locator("#choice")).to_be_focused()

    more_settings(page)
    page.fill("#steps", "200")
    press("#run", "#cancel")
    press("#cancel", "#run")
    page.fill("#steps", "2")
    press("#run", "#cancel", for_good=False)
    page.locator("#seed").focus()
    expect(page.locator("#keep")).to_be_enabled(timeout=240_000)
    expect(page.locator("#seed")).to_be_focused()
    press("#edit", "[name=result]")
    page.keyboard.press("Space")
    press("#keep", "#run")

    page.locator("#storage summary").click()
    expect(page.locator("#clear-all")).to_be_enabled()
    press("#clear-all", "#storage summary")
    page.locator("#extend summary").click()
    page.fill("#extend-left", "32")
    press("#extend-apply", "#extend-reset")


def test_everything_works_from_the_keyboard(visit):
    page = visit()
    page.on("filechooser", lambda chooser: None)  # Playwright begins to catch choosers without waiting until it does:
    page.evaluate("0")  # this comes after it
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Control+o")
    chooser.value.set_files([upload(photograph())])
    expect(page.locator("#facts")).to_contain_text("320 × 240")
    brush(page, 16)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "mask":
            break
    assert page.evaluate("document.activeElement.id") == "mask"
    page.keyboard.press("Enter")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#status")).to_have_text("Painting, at 200, 120")
    page.keyboard.press("Enter")
    expected = disc_line((240, 320), 160, 120, 200, 120, 8)
    assert ((mask_of(page) == 255) == expected).all()

    page.locator("#mask").focus()
    page.keyboard.press("r")
    page.keyboard.press("Enter")
    for key in ("ArrowLeft", "ArrowUp"):
        for _ in range(5):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert (mask_of(page)[101:119, 181:199] == 255).all()
    page.keyboard.press("Delete")
    assert not mask_of(page).any()
    page.locator("#mask").focus()
    page.keyboard.press("l")
    corners = []
    for keys in (["Shift+ArrowLeft"] * 3, ["Shift+ArrowUp"] * 2, []):
        page.keyboard.press("Enter")
        corners.append(tuple(map(int, re.search(r"at (\d+), (\d+)", page.inner_text("#status")).groups())))
        for key in keys:
            page.keyboard.press(key)
    assert corners == [(180, 100), (132, 100), (132, 68)]  # from where the rectangle ended
    assert not mask_of(page).any()  # an outline that is not closed paints nothing
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Outline closed.")
    triangle = Image.new("1", (320, 240))
    ImageDraw.Draw(triangle).polygon(corners, fill=1)
    painted = mask_of(page) == 255
    assert (painted != np.asarray(triangle)).sum() < 60 and painted.sum() > 700  # of 768, the outline's own pixels aside
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Drawing given up.")
    assert ((mask_of(page) == 255) == painted).all()
    page.keyboard.press("?")
    expect(page.locator("#help-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#prompt")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#run")).to_be_enabled()
    page.keyboard.press("Delete")
    assert not mask_of(page).any()


def test_controls_have_names_and_sizes(visit):
    for options in (
        {},
        {"viewport": PHONE, "has_touch": True, "is_mobile": True},
        {"viewport": {"width": 768, "height": 1024}},
    ):
        page = visit(**options)
        load_picture(page, photograph())
        page.click("#storage summary")
        poor = page.evaluate("""() => [...document.querySelectorAll('button, select, summary, input, canvas[tabindex]')]
          .filter((node) => node.checkVisibility() && node.type !== 'file').map((node) => {
            const target = node.closest('label') ?? node;
            const { width, height } = target.getBoundingClientRect();
            const name = node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent;
            return width < 24 || height < 24 || !name.trim() ? `${node.outerHTML.slice(0, 90)} ${width} ${height}` : '';
          }).filter(Boolean)""")
        assert not poor
        wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        cut = page.evaluate("""() => [...document.querySelectorAll('button, h1, #size-text, #zoom-text')]
          .filter((node) => node.checkVisibility() && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 2)
          .map((node) => node.id || node.textContent)""")
        assert wide <= 0 and not cut


def luminance(colour: str) -> float:
    digits = colour * 2 if len(colour) == 3 else colour
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_have_contrast():
    light, dark = re.findall(r":root \{(.*?)\}", (WEB / "interface" / "style.css").read_text(encoding="utf-8"), re.DOTALL)
    for block in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): #(\w+)", block))
        pairs = [
            ("text", "panel"),
            ("text", "ground"),
            ("text", "field"),
            ("text", "stage"),
            ("soft", "panel"),
            ("soft", "stage"),
        ]
        pairs += [("on-accent", "accent"), ("warn", "warn-soft"), ("bad", "panel"), ("text", "accent-soft")]
        for ink, paper in pairs:
            a, b = sorted((luminance(colours[ink]), luminance(colours[paper])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, paper)


BLOCKING = """() => {
  const entries = performance.getEntriesByType('resource').filter((entry) => entry.renderBlockingStatus === 'blocking');
  return [...performance.getEntriesByType('navigation'), ...entries].map(({ name, encodedBodySize }) => [name, encodedBodySize]);
}"""


def test_first_paint_waits_for_little_and_nothing_shifts(visit, record_property):
    """How soon it comes is the machine's and the network's affair; what it waits for is the page's."""
    for options in (
        {},
        {"viewport": PHONE, "is_mobile": True},
        {"color_scheme": "dark", "viewport": {"width": 1920, "height": 1080}},
    ):
        page = visit(**options)
        page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
        settle(page)
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        record_property("first_paint_ms", paint)
        print(f"first paint after {paint:.0f} ms")
        waited = {url.rsplit("/", 1)[1]: size for url, size in page.evaluate(BLOCKING)}
        print(waited)
        assert set(waited) == {"", "style.css"} and 0 < min(waited.values()) and sum(waited.values()) < 13_000
        assert page.evaluate("shifts") == [], page.evaluate("moved")


class InTwo(Handler):
    """Sends the page's document in two parts, as a slow line does: the second begins in what is in the middle of the page."""

    def do_GET(self) -> None:
        if self.path == "/":
            del self.headers["Accept-Encoding"]
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        content = source.read()
        half = content.index(b'<p><button id="start-open"') if self.path == "/" else len(content)
        outputfile.write(content[:half])
        outputfile.flush()
        if half < len(content):
            time.sleep(0.5)
        outputfile.write(content[half:])


@pytest.fixture
def visit_in_two(tiny_bundle, chromium):
    with Server(tiny_bundle, handler=InTwo) as server:
        yield from visits(server, chromium)


def test_a_page_that_arrives_in_parts_is_shown_whole(visit_in_two):
    """What lies in the middle would move when the rest comes."""
    page = visit_in_two()
    page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
    settle(page)
    assert page.evaluate("shifts") == [], page.evaluate("moved")


def test_what_leaves_the_page():
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (WEB / "index.html").read_text(encoding="utf-8"))[1]
    assert (
        "default-src 'none'" in policy
        and "unsafe-inline" not in policy
        and "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
    )
    for name, file in page_files().items():
        hosts = set(re.findall(r"https?://([\w.-]+)", file.read_text(encoding="utf-8")))
        assert hosts <= {"www.w3.org", "127.0.0.1", "localhost"}, (name, hosts)


TOLD = """const { postMessage } = Worker.prototype; window.told = [];
Worker.prototype.postMessage = function (message, ...more) {
  if (message?.args?.manifestUrl) window.told.push(message.args.kernels ?? '');
  return postMessage.call(this, message, ...more);
};"""


@pytest.mark.parametrize(("query", "kernels"), [("?kernels=matrix+exact", "matrix exact"), ("?kernels=all", ""), ("", "")])
def test_the_address_can_ask_for_experimental_kernels_and_for_no_others(visit, site, query, kernels):
    page = visit(init=TOLD)
    page.goto(site.url + query)
    page.locator("#load").click()
    expect(page.locator("#load-text")).to_contain_text("Ready", timeout=120_000)
    assert page.evaluate("told") == [kernels]
