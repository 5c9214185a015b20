"""How far the canvas is behind the pointer, in a real JupyterLab: `PYTHONPATH=tests/notebook python tests/support/measure_painting.py [Hz] [seconds]`.

A 4000 x 3000 picture is painted at a steady rate. A hook in the page reads the canvas back after every redraw and notes
when the pixel under each pointer position has become part of the mask; the lag is that moment less the event's own time
stamp. A measurement, no test: what it reports depends on what else the machine does.
"""

import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright
from test_jupyterlab import LARGE

from moebius_lab.notebook.lab import jupyterlab, write_notebook
from moebius_lab.page.engines import find

SPEED = 1440  # px a second, on the canvas
ROW = 24  # px between two lines of the path, more than the brush is wide

PROBE = """canvas => {
  const probe = (window.probe = { waiting: [], lags: [], seen: 0, redraws: 0 });
  canvas.addEventListener('mousemove', (event) => {
    probe.seen += 1;
    if (event.buttons) probe.waiting.push([event.timeStamp, event.offsetX, event.offsetY]);
  }, true);
  const draw = CanvasRenderingContext2D.prototype.drawImage;
  CanvasRenderingContext2D.prototype.drawImage = function (...given) {
    draw.apply(this, given);
    if (this.canvas !== canvas) return;
    probe.redraws += 1;
    while (probe.waiting.length) {
      const [time, x, y] = probe.waiting[0];
      if (this.getImageData(Math.round(x), Math.round(y), 1, 1).data[0] < 120) break;
      probe.lags.push(performance.now() - time);
      probe.waiting.shift();
    }
  };
}"""


def path(width: float, height: float, step: float, count: int) -> list[tuple[float, float]]:
    """Points of a line that sweeps the canvas row by row and never crosses itself."""
    points, x, y, way = [], 20.0, 20.0, 1
    while len(points) < count and y < height - 20:
        points.append((x, y))
        x += way * step
        if not 20 <= x <= width - 20:
            x, y, way = x - way * step, y + ROW, -way
    return points


async def paint(url: str, hertz: float, seconds: float) -> dict:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1300, "height": 1000})
        await page.goto(f"{url}/lab/tree/large.ipynb?reset", wait_until="domcontentloaded")
        await page.wait_for_selector('.jp-StatusBar-TextItem:has-text("| Idle")', timeout=120_000)
        await page.click(".jp-Cell >> nth=0")
        await page.keyboard.press("Shift+Enter")
        canvas = page.locator(".jp-OutputArea canvas")
        await canvas.wait_for(timeout=120_000)
        box = await canvas.bounding_box()
        await page.wait_for_timeout(2000)
        await canvas.evaluate(PROBE)
        devtools = await page.context.new_cdp_session(page)

        async def mouse(kind: str, point: tuple[float, float], down: bool = True) -> None:
            where = {"x": box["x"] + point[0], "y": box["y"] + point[1]}
            click = {"button": "left", "clickCount": int(kind != "mouseMoved")} if down else {}
            await devtools.send("Input.dispatchMouseEvent", {"type": kind, "buttons": int(down)} | where | click)

        points = path(box["width"], box["height"], SPEED / hertz, int(hertz * seconds))
        await mouse("mouseMoved", points[0], down=False)
        await mouse("mousePressed", points[0])
        loop, moves = asyncio.get_running_loop(), []
        start = loop.time()
        for i, point in enumerate(points[1:], 1):
            await asyncio.sleep(max(0, start + i / hertz - loop.time()))
            moves.append(asyncio.create_task(mouse("mouseMoved", point)))  # at the pointer's pace, not at the page's
        took = loop.time() - start
        await asyncio.gather(*moves)
        await mouse("mouseReleased", points[-1])
        await page.wait_for_timeout(3000)
        probe = await page.evaluate("probe")
        await browser.close()
        return probe | {"sent": len(moves), "hertz": len(moves) / took}


def main(hertz: float = 60, seconds: float = 10) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_notebook(Path(folder) / "large.ipynb", LARGE)
        with jupyterlab(Path(folder)) as url:
            probe = asyncio.run(paint(url, hertz, seconds))
    lags = sorted(probe["lags"])
    print(f"{probe['sent']} moves at {probe['hertz']:.0f} Hz; the page saw {probe['seen']}, redrew {probe['redraws']} times")
    print(
        f"lag, ms: median {statistics.median(lags):.0f}, 99 of 100 below {lags[int(0.99 * len(lags))]:.0f}, max {lags[-1]:.0f}"
    )
    print(f"never drawn: {len(probe['waiting'])}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
