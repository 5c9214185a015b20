"""What a person does on the page, in any engine: through the protocol that drives it, as `driving` opens it."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moebius_lab.page.driving import BidiTab, PlaywrightTab, Tab, WebDriverTab

A_HANG_IS_ONE_FAILURE = pytest.mark.timeout(300)  # and not ten minutes of each test
PAGE = "(await import(document.querySelector('script[type=module]').src))"
KEYS = {
    "Alt": "\ue00a", "ArrowDown": "\ue015", "ArrowRight": "\ue014", "ArrowUp": "\ue013", "Control": "\ue009",
    "Delete": "\ue017", "Enter": "\ue007", "Escape": "\ue00c", "Shift": "\ue008",
}  # fmt: skip
"""Of WebDriver's and BiDi's actions, by Playwright's names."""
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what WebDriver calls a reference to an element

# what a button gives to save comes back instead
SAVED = """async (button) => {
  const { click } = HTMLAnchorElement.prototype, { createObjectURL } = URL, made = new Map();
  URL.createObjectURL = (blob) => {
    const url = createObjectURL(blob);
    made.set(url, blob);
    return url;
  };
  const given = new Promise((done) => {
    HTMLAnchorElement.prototype.click = function () { done([this.download, made.get(this.href)]); };
  });
  document.querySelector(button).click();
  const [name, blob] = await given;
  const bytes = new Uint8Array(await blob.arrayBuffer());
  HTMLAnchorElement.prototype.click = click;
  URL.createObjectURL = createObjectURL;
  let text = '';
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return [name, btoa(text)];
}"""

# controls that are too small for a finger or have no name
POOR_CONTROLS = """() => [...document.querySelectorAll('button, select, summary, input, canvas[tabindex]')]
      .filter((node) => node.checkVisibility() && node.type !== 'file').map((node) => {
        const { width, height } = (node.closest('label') ?? node).getBoundingClientRect();
        const name = node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent;
        return width < 24 || height < 24 || !name.trim() ? `${node.outerHTML.slice(0, 90)} ${width} ${height}` : '';
      }).filter(Boolean)"""

# files let go of over the page
DROPPED = """(files) => {
  const data = new DataTransfer();
  for (const [name, text] of files)
    data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type: 'image/png' }));
  window.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
}"""

READY = "document.querySelectorAll('#samples img').length === 4 && !document.querySelector('#choice').disabled"
"""The page offers its samples and what it can run on."""

MASK = f"""async () => {{
  const {{ mask }} = {PAGE}.editor;
  let text = '';
  for (let i = 0; i < mask.data.length; i += 32768) text += String.fromCharCode(...mask.data.subarray(i, i + 32768));
  return [mask.height, mask.width, btoa(text)];
}}"""


def opened(tab: Tab, url: str) -> Hands:
    """Open the page, until it offers its samples and what it can run on."""
    tab.goto(url)
    hands = Hands(tab)
    hands.until(READY)
    return hands


class Hands:
    """A person at a tab in which the page is open."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    def again(self) -> None:
        """Load the page anew, as a reload does, until it can be used."""
        url = self.read("location.href")
        self.tab.goto(url)
        self.until(READY)

    def read(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        return self.tab.evaluate(f"async () => {expression}")

    def until(self, condition: str, seconds: float = 120.0) -> None:
        """Wait until an expression of JavaScript holds in the page."""
        end = time.monotonic() + seconds
        while not self.read(f"!!({condition})"):
            assert time.monotonic() < end, f"{condition}: not in {seconds:.0f} s; {self.read('document.body.innerText')}"
            time.sleep(0.1)

    def says(self, element: str, words: str, seconds: float = 120.0) -> None:
        """Wait until an element's text has these words."""
        self.until(f"document.querySelector({json.dumps(element)})?.textContent.includes({json.dumps(words)})", seconds)

    def click(self, element: str) -> None:
        self.read(f"document.querySelector({json.dumps(element)}).click()")

    def check(self, element: str, on: bool = True) -> None:
        """Set a check box, or choose a radio button."""
        self.read(
            f"((box) => box.checked === {json.dumps(on)} || box.click())(document.querySelector({json.dumps(element)}))"
        )

    def value(self, element: str) -> str:
        return self.read(f"document.querySelector({json.dumps(element)}).value")

    def unfold(self, panel: str) -> None:
        """Open a panel that is loaded when it is first opened."""
        self.read(f"void (document.getElementById({json.dumps(panel)}).open = true)")
        self.until(f"document.querySelector('#{panel} :is(button, select)') !== null")

    def write(self, element: str, value: object) -> None:
        """Put a value into a field, which hears of it as of typing."""
        self.tab.evaluate(
            """([element, value]) => {
          const field = document.querySelector(element);
          field.value = value;
          for (const name of ['input', 'change']) field.dispatchEvent(new Event(name, { bubbles: true }));
        }""",
            [element, str(value)],
        )

    def open_picture(self, path: Path, width: int, height: int) -> None:
        """Open a picture file, until it is on the screen in its size (px)."""
        self.choose_file("#picture-file", path)
        self.says("#status", f"{path.name} is open: {width} by {height} pixels")
        self.says("#facts", f"{width} × {height} px")
        self.read("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def choose_file(self, element: str, *paths: Path) -> None:
        """Choose files of this machine, one or more, in a field for files."""
        match self.tab:
            case PlaywrightTab():
                self.tab.page.set_input_files(element, paths)
            case BidiTab(session=session, context=context):
                locator = {"type": "css", "value": element}
                [node] = session.send("browsingContext.locateNodes", context=context, locator=locator)["nodes"]
                shared = {"sharedId": node["sharedId"]}
                session.send("input.setFiles", context=context, element=shared, files=[str(path) for path in paths])
            case WebDriverTab():
                found = self.tab.send("POST", "/element", using="css selector", value=element)
                self.tab.send("POST", f"/element/{found[ELEMENT]}/value", text="\n".join(map(str, paths)))

    def drop(self, files: dict[str, bytes]) -> None:
        """Drop files on the page, PNG by their names."""
        self.tab.evaluate(DROPPED, [[name, base64.b64encode(content).decode()] for name, content in files.items()])

    def on_screen(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        """Where points of the picture (px) are in the window."""
        view, box = self.read(f"[{PAGE}.editor.view, document.querySelector('#mask').getBoundingClientRect()]")
        return [(box["x"] + view["x"] + x * view["scale"], box["y"] + view["y"] + y * view["scale"]) for x, y in points]

    def drag(self, *points: tuple[float, float]) -> None:
        """Draw with the mouse from one point of the picture (px) to the next."""
        self.pull(*self.on_screen(*points))

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse over the middle of a pixel of the picture."""
        [at] = self.on_screen((x + 0.5, y + 0.5))
        self._move(at)

    def click_at(self, x: float, y: float) -> None:
        """Click on the middle of a pixel of the picture."""
        self.pull(*self.on_screen((x + 0.5, y + 0.5)))

    def pull(self, start: tuple[float, float], *rest: tuple[float, float]) -> None:
        """Press the mouse at one point of the window (CSS px), and move it over others, if any, before letting go."""
        if isinstance(self.tab, PlaywrightTab):
            mouse = self.tab.page.mouse
            mouse.move(*start)
            mouse.down()
            for point in rest:
                mouse.move(*point, steps=6)
            mouse.up()
            return
        moves = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 60} for x, y in (start, *rest)]
        button = {"button": 0}
        self._mouse([moves[0], {"type": "pointerDown"} | button, *moves[1:], {"type": "pointerUp"} | button])

    def _move(self, to: tuple[float, float]) -> None:
        if isinstance(self.tab, PlaywrightTab):
            self.tab.page.mouse.move(*to)
        else:
            self._mouse([{"type": "pointerMove", "x": round(to[0]), "y": round(to[1]), "duration": 0}])

    def _mouse(self, actions: list[dict]) -> None:
        self._act({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions})

    def press(self, *keys: str) -> None:
        """Press keys one after another, and let go of them in the opposite order."""
        if isinstance(self.tab, PlaywrightTab):
            self.tab.page.keyboard.press("+".join(keys))
            return
        values = [KEYS.get(key, key) for key in keys]
        downs = [{"type": "keyDown", "value": value} for value in values]
        self._act(
            {"type": "key", "id": "keys", "actions": downs + [{"type": "keyUp", "value": v} for v in reversed(values)]}
        )

    def _act(self, source: dict) -> None:
        match self.tab:
            case BidiTab(session=session, context=context):
                session.send("input.performActions", context=context, actions=[source])
            case WebDriverTab():
                self.tab.send("POST", "/actions", actions=[source])

    def file(self, button: str) -> tuple[str, bytes]:
        """Name and content of the file that a button of the page gives to save."""
        name, content = self.tab.evaluate(SAVED, button)
        return name, base64.b64decode(content)

    def given(self, button: str) -> bytes:
        """The content of the file that a button of the page gives to save."""
        return self.file(button)[1]

    def saved(self, button: str = "#save") -> np.ndarray:
        """The picture that a button of the page gives to save."""
        return np.asarray(Image.open(io.BytesIO(self.given(button))))

    def poor_controls(self) -> list[str]:
        """Controls in sight that are too small for a finger or have no name."""
        return self.tab.evaluate(POOR_CONTROLS)

    def mask(self) -> np.ndarray:
        """The mask as it is on the page, uint8 (height, width)."""
        height, width, values = self.tab.evaluate(MASK)
        return np.frombuffer(base64.b64decode(values), np.uint8).reshape(height, width)
