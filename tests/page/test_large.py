"""A photograph of 24 megapixels, in a real Chromium, whose own driver alone can say how long a task took; and its panels on a phone."""

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from hands import POOR_CONTROLS
from playwright.sync_api import Page, expect
from test_page import PHONE, drag, load_picture, mask_of, on_screen, photograph, settle, visits

from moebius_lab.page.serve import Server

PACE = """() => {
  const bytes = (window.passedOver ??= new Uint8Array(24e6).map((_, i) => i));
  const times = Array.from({ length: 3 }, () => {
    const began = performance.now();
    let sum = 0;
    for (let i = 0; i < bytes.length; i++) sum += bytes[i] >= 128 ? 1 : 0;
    return sum ? performance.now() - began : 0;
  });
  return times.sort((a, b) => a - b)[1];
}"""


def longest_task(trace: bytes) -> float:
    """Milliseconds of the processor that the longest task of a page's own thread took; what it waited for others is not in it."""
    events = json.loads(trace)["traceEvents"]
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [event for event in events if event["name"].endswith("RunTask") and (event["pid"], event["tid"]) in mains]
    assert len(tasks) > 20
    return max(event.get("tdur", 0) for event in tasks) / 1000


@pytest.fixture(scope="module")
def site(tiny_bundle):
    with Server(tiny_bundle) as server:
        yield server


@pytest.fixture
def visit(site, chromium):
    yield from visits(site, chromium)


def panel(page: Page, name: str) -> None:
    page.locator(f"#{name} > summary").click()
    expect(page.locator(f"#{name} :is(button, select)").first).to_be_attached()


def click(page: Page, x: float, y: float, times: int = 1) -> None:
    page.mouse.click(*on_screen(page, x + 0.5, y + 0.5), click_count=times)


def fill(page: Page) -> None:
    page.select_option("#preset", "fastest")
    page.click("#run")
    page.click("#prompt-yes")
    expect(page.locator("#run")).to_be_enabled(timeout=240_000)
    expect(page.locator("#keep")).to_be_enabled()


def test_a_photograph_of_24_megapixels_is_worked_on_without_a_stall(visit, chromium):
    """No task of the page's own thread may be long: the threads that compute are others."""
    page, stalls, paces = visit(), {}, {}
    large = photograph(6000, 4000)
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)

    def measure(name: str, act: Callable[[], None], says: str) -> None:
        page.evaluate("document.getElementById('status').textContent = ''")
        before = page.evaluate(PACE)
        chromium.start_tracing(page=page, categories=["toplevel", "disabled-by-default-devtools.timeline"])
        act()
        expect(page.locator("#status")).to_contain_text(says)
        page.wait_for_timeout(500)  # what it set going, the saving first of all, has begun
        stalls[name] = longest_task(chromium.stop_tracing())
        paces[name] = max(before, page.evaluate(PACE))  # other tests take some of the machine's pace, and give it back

    def stroke() -> None:
        page.keyboard.press("b")
        drag(page, (1000, 800), (2000, 1500), (2500, 1200))
        page.evaluate("document.getElementById('status').textContent = 'drawn'")

    def save() -> None:
        with page.expect_download():
            page.click("#save")

    def compare() -> None:
        panel(page, "compare")
        page.click("#compare-both")

    picture = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
    measure("open", lambda: page.set_input_files("#picture-file", picture), "is open: 6000 by 4000")
    panel(page, "select")
    page.keyboard.press("w")
    measure("wand", lambda: click(page, 3000, 3400), "pixels are selected")
    measure("grow", lambda: page.click("#refine-grow"), "pixels are selected")
    selected = facts(page)
    measure("clear", lambda: page.click("#clear"), "")
    assert "hole none" in facts(page)
    measure("undo", lambda: page.keyboard.press("Control+z"), "Undone: clear")
    expect(page.locator("#facts")).to_have_text(selected)
    measure("redo", lambda: page.keyboard.press("Control+Shift+z"), "Redone: clear")
    expect(page.locator("#facts")).to_contain_text("hole none")
    measure("invert", lambda: page.click("#invert"), "")
    measure("undo inverting", lambda: page.keyboard.press("Control+z"), "Undone: invert")
    measure("stroke", stroke, "drawn")
    measure("fill", lambda: fill(page), "Filled.")
    measure("compare", compare, "Left: the picture.")
    measure("save", save, "Saved as")
    measure("keep", lambda: page.click("#keep"), "The result is the picture now.")
    measure("undo keeping", lambda: page.keyboard.press("Control+z"), "Undone: result kept")
    panel(page, "extend")
    page.select_option("#extend-ratio", "16:10")
    measure("extend", lambda: page.click("#extend-apply"), "The picture is larger")
    measure("undo extending", lambda: page.keyboard.press("Control+z"), "Undone: extended")
    found = {name: f"{ms:.0f} ms, a pass over 24 million bytes {paces[name]:.0f}" for name, ms in stalls.items()}
    assert all(stalls.values()), found
    assert not [name for name, ms in stalls.items() if ms > 200 * max(1, paces[name] / 25)], (
        found
    )  # on a machine that takes 25 ms


def facts(page: Page) -> str:
    return page.locator("#facts").inner_text()


def test_panels_fit_and_have_names_on_a_desk_and_on_a_phone(visit):
    for options in ({}, {"viewport": PHONE, "has_touch": True, "is_mobile": True}):
        page = visit(**options)
        load_picture(page, photograph())
        for name in ("select", "extend", "compare", "saving"):
            panel(page, name)
        settle(page)
        assert not page.evaluate(POOR_CONTROLS)
        assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
        cut = page.evaluate("""() => [...document.querySelectorAll('aside button, aside label')]
          .filter((node) => node.checkVisibility() && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 2)
          .map((node) => node.id || node.textContent)""")
        assert not cut
        if options:
            page.locator("[name=tool][value=wand]").check(force=True)
            page.touchscreen.tap(*on_screen(page, 160, 200))
            expect(page.locator("#status")).to_contain_text("pixels are selected")
            before = mask_of(page)
            assert before.any()
            (x, y), session = on_screen(page, 40, 40), page.context.new_cdp_session(page)
            fingers = [{"x": x, "y": y, "id": 0}, {"x": x + 60, "y": y + 60, "id": 1}]
            for kind, points in (("Start", fingers[:1]), ("Start", fingers), ("End", fingers[:1]), ("End", [])):
                session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
            page.wait_for_timeout(500)
            assert np.array_equal(mask_of(page), before)  # two fingers zoom: nothing is selected
