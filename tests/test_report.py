"""The report as a page in a browser, phone and desktop, with the network cut off."""

import base64
import json
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from moebius_lab import report
from moebius_lab.inpaint_panel import Inpaint
from moebius_lab.links import broken_links
from moebius_lab.mask_painter import MaskPainter, jpeg


def shows(data: dict, plain: str) -> nbformat.NotebookNode:
    return new_code_cell("shown", outputs=[new_output("display_data", data | {"text/plain": plain})])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of two executed notebooks, with a widget, a wide figure and a picture."""
    painter = MaskPainter(np.full((40, 60, 3), 90, np.uint8))
    panel = Inpaint(painter, {"none": lambda: None})
    widgets = [w._repr_mimebundle_() for w in (painter, panel)]
    for data in widgets:
        data["image/jpeg"] = base64.b64encode(data["image/jpeg"]).decode()
    wide = base64.b64encode(jpeg(painter.picture().resize((1100, 400)))).decode()
    cells = [
        new_markdown_cell(
            "# 1 · First <one>\n\n**Question.** Does it?\n\n**Answer found here.** It *does*, see\n[here](b.ipynb), not [there](z.ipynb)."
        ),
        *[shows(data, "MaskPainter()") for data in widgets],
        shows({"application/vnd.jupyter.widget-view+json": widgets[0]["application/vnd.jupyter.widget-view+json"]}, "0%| 0/3"),
        new_markdown_cell("## A part: with & signs\n\ntext"),
        shows({"image/png": wide}, "<Figure size 1100x400 with 1 Axes>"),
    ]
    cells.append(new_code_cell(f"long = [{', '.join(map(str, range(200)))}]  # {'x' * 300}"))
    cells.append(new_code_cell("print(...)", outputs=[new_output("stream", text="/" + "a folder/" * 60 + "x" * 300)]))
    first = new_notebook(cells=cells, metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}})
    folder = tmp_path_factory.mktemp("report")
    (folder / "notebooks").mkdir()
    (folder / "report").mkdir()
    nbformat.write(first, folder / "notebooks" / "a.ipynb")
    said = new_output("execute_result", {"text/markdown": "Of *this* run: [yes](a.html).", "text/plain": "Markdown"})
    opening = "# 2 · Second\n\n**Answer found here.** It is made from this run, and stands\nat the end.\n\n*Runs alone.*"
    for name, outputs in (("b", [said]), ("d", [])):
        cells = [new_markdown_cell(opening), new_code_cell("Markdown(...)", outputs=outputs, metadata={"tags": ["answer"]})]
        nbformat.write(new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb")
    (folder / "notebooks" / "a.json").write_text(json.dumps({"signature": "", "seconds": 3.4, "files": []}), encoding="utf-8")
    report.write_report(folder, ("a", "b", "c", "d"))
    return folder / "report"


def test_every_link_leads_to_a_page(pages):
    assert broken_links(sorted(pages.glob("*.html"))) == []
    text = (pages / "a.html").read_text(encoding="utf-8")
    assert '<a href="b.html">here</a>' in text and "ipynb" not in text and "not there" in text


def test_the_contents_page_tells_what_was_asked_found_and_not_run(pages):
    text = (pages / "index.html").read_text(encoding="utf-8")
    assert "1 · First &lt;one&gt;</a> <small>3 s</small>" in text and "It does, see here, not there." in text
    assert "2 · Second</a> <small><b>stopped by an error" in text and "c: not run yet" in text


def test_an_answer_is_what_the_run_made_of_it_on_the_contents_page_and_on_the_notebook_s(pages):
    index, made, stopped = ((pages / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "b", "d"))
    assert "<p>Of this run: yes.</p>" in index and "<p>This run stopped before it had one.</p>" in index
    assert "Answer found here.</strong> Of <em>this</em> run" in made and "stands" not in made and "Runs alone" in made
    assert "Answer found here.</strong> This run stopped before it had one." in stopped


@pytest.mark.parametrize("width", [390, 1280])
def test_code_and_what_it_prints_stay_within_the_page(pages, chromium, width):
    page = chromium.new_page(viewport={"width": width, "height": 800})
    page.goto((pages / "a.html").as_uri())
    outside = page.evaluate("() => [...document.querySelectorAll('pre')].filter((e) => e.scrollWidth > e.parentElement.clientWidth + 1).length")
    assert page.locator("pre").count() >= 3 and outside == 0
    page.close()


def test_widgets_leave_their_stills_and_nothing_is_fetched(pages):
    text = (pages / "a.html").read_text(encoding="utf-8")
    assert "widget-view" not in text and "<script" not in text and "0/3" not in text
    assert len(re.findall(r"data:image/jpeg;base64", text)) == 2
    assert not re.findall(r'(?:src|href)="https?:', text)


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_screen_and_link_to_each_other(pages, chromium, width):
    page = chromium.new_page(viewport={"width": width, "height": 800})
    for name in ("index", "a", "b"):
        page.goto((pages / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for image in page.locator("img").all():
            assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    page.goto((pages / "index.html").as_uri())
    page.click("text=First")
    figure = page.locator("img.unconfined")
    assert figure.bounding_box()["width"] > 600  # a chart's labels stay readable; on a phone it scrolls by itself
    page.click("summary")
    page.click("details a")
    assert page.evaluate("document.querySelector(':target').textContent").startswith("A part: with & signs")
    page.click("a[rel=next] >> nth=0")
    page.click("a[rel=prev] >> nth=0")
    assert page.title() == "1 · First <one>"
    page.close()


def test_the_commit_hook_strips_outputs_and_widget_state_and_leaves_clean_notebooks_alone(tmp_path):
    config = yaml.safe_load((report.SOURCE_FOLDER.parent / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    [hook] = [hook for hook in config["repos"][0]["hooks"] if hook["id"] == "strip-notebooks"]
    clean = report.SOURCE_FOLDER / "01_feasibility.ipynb"
    assert re.search(hook["files"], f"notebooks/{clean.name}")
    notebook = nbformat.read(clean, 4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.execution_count, cell.outputs = 3, [new_output("stream", text="said")]
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    for name in ("ran.ipynb", "clean.ipynb"):
        shutil.copy(clean, tmp_path / name)
    nbformat.write(notebook, tmp_path / "ran.ipynb")
    command = hook["entry"].split()
    assert command[0] == ".venv/bin/python"
    subprocess.run([sys.executable, *command[1:], "ran.ipynb", "clean.ipynb"], cwd=tmp_path, check=True)
    for name in ("ran.ipynb", "clean.ipynb"):
        assert (tmp_path / name).read_bytes() == clean.read_bytes()
