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
from damage import damages, spoil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from moebius_lab import provenance
from moebius_lab.notebook import report
from moebius_lab.notebook.inpaint_panel import Inpaint
from moebius_lab.notebook.mask_painter import MaskPainter, jpeg
from moebius_lab.page.engines import ENGINES
from moebius_lab.page.links import broken_links


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
        shows(
            {"application/vnd.jupyter.widget-view+json": widgets[0]["application/vnd.jupyter.widget-view+json"]}, "0%| 0/3"
        ),
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
    (folder / "notebooks" / "a.json").write_text(
        json.dumps({"signature": "", "seconds": 3.4, "files": []}), encoding="utf-8"
    )
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
    outside = page.evaluate(
        "() => [...document.querySelectorAll('pre')].filter((e) => e.scrollWidth > e.parentElement.clientWidth + 1).length"
    )
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


# -- what a notebook is made from --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The package without its large files, and the notebooks, copied so that a test may edit them."""
    root, package = tmp_path_factory.mktemp("sources"), report.PACKAGE
    shutil.copytree(
        package, root / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.jpg", "heldout")
    )
    shutil.copytree(report.SOURCE_FOLDER, root / "notebooks")
    return root


@pytest.fixture
def signatures(sources, monkeypatch):
    """How the notebooks' digests are taken from those copies."""
    for module in (report, provenance):
        monkeypatch.setattr(module, "PACKAGE", sources / report.PACKAGE.name)
    monkeypatch.setattr(report, "SOURCE_FOLDER", sources / "notebooks")
    return lambda **parameters: report._signatures(parameters, report.NOTEBOOKS)


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in report.NOTEBOOKS if before[name] != after[name]]


@pytest.mark.parametrize(
    "name",
    [
        "notebook/figures.py",
        "notebook/browser_backend.js",
        "notebook/templates/notebook.css",
        "page/web/engine/engine.js",
        "page/web/interface/style.css",
        "page/web/index.html",
        "page/web/package-lock.json",
        "training/vae.py",
        "demo/README.md",
    ],
)
def test_an_edit_anywhere_in_the_package_dates_every_notebook(sources, signatures, name):
    """The page's modules and the widget's were left out: notebooks that run them kept what older ones had done."""
    before, path = signatures(), sources / report.PACKAGE.name / name
    content = path.read_bytes()
    path.write_bytes(content + b"\n")
    assert changed(before, signatures()) == list(report.NOTEBOOKS)
    path.write_bytes(content)
    assert changed(before, signatures()) == []


def test_a_notebook_dates_itself_and_those_after_it_and_a_file_that_it_reads_dates_it(sources, signatures):
    before, folder = signatures(), sources / "notebooks"
    path = folder / "03_parity.ipynb"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"# 3 ", b"# III "))
    assert changed(before, signatures()) == ["03_parity", "04_webgpu_bundle", "05_benchmark", "B_evaluation"]
    path.write_bytes(content)
    (folder / "results" / "another-machine.json").write_text("{}", encoding="utf-8")
    assert changed(before, signatures()) == ["05_benchmark", "B_evaluation"]
    (folder / "results" / "another-machine.json").unlink()
    (folder / "nothing-reads-this.json").write_text("{}", encoding="utf-8")
    assert changed(before, signatures()) == []


def test_parameters_and_the_files_that_they_name_date_notebooks(signatures, tmp_path):
    image, weights = tmp_path / "image.png", tmp_path / "weights"
    image.write_bytes(b"one")
    weights.mkdir()
    (weights / "vae.safetensors").write_bytes(b"one")
    parameters = {"network": "small", "weights": str(weights), "image": str(image)}
    before = signatures(**parameters)
    assert changed(before, signatures(**parameters)) == [] and changed(
        before, signatures(**parameters | {"precision": "int8"})
    )
    for path in (image, weights / "vae.safetensors"):
        path.write_bytes(b"another")
        after = signatures(**parameters)
        assert changed(before, after) == list(report.NOTEBOOKS)
        before = after


@pytest.mark.parametrize("name", ENGINES)
def test_a_browser_that_is_installed_later_or_anew_dates_notebooks(name, signatures, tmp_path, monkeypatch):
    """After a run without a browser that says how to get one, the next run found every notebook finished."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "none"))
    monkeypatch.delenv(ENGINES[name].named_by, raising=False)
    without = signatures()
    assert not any(str(tmp_path) in said for said in report.machine_offers()["browsers"][name].values())
    seen = [without]
    for version in ("156", "157"):
        for program in (ENGINES[name].programs[0], "Xvfb"):
            (tmp_path / program).write_text(f"#!/bin/sh\necho A browser {version}\n", encoding="utf-8")
            (tmp_path / program).chmod(0o755)
        assert report.machine_offers()["browsers"][name]["wasm"].endswith(f"A browser {version}")
        seen.append(signatures())
        assert changed(seen[-2], seen[-1]) == list(report.NOTEBOOKS)
    (tmp_path / ENGINES[name].programs[0]).unlink()
    (tmp_path / "Xvfb").unlink()
    assert signatures() == without


def test_another_version_of_a_library_dates_notebooks(signatures, monkeypatch):
    before, version = signatures(), provenance.version
    for library in ("torch", "matplotlib", "playwright"):
        monkeypatch.setattr(provenance, "version", lambda name, library=library: "0" if name == library else version(name))
        assert changed(before, signatures()) == list(report.NOTEBOOKS)


# -- what a notebook left ----------------------------------------------------------------------------------------------

CELL = """
import json, pathlib
from PIL import Image
for name in ("results", "pictures"):
    pathlib.Path(output_dir, name).mkdir(exist_ok=True)
pathlib.Path(output_dir, "results", "a.json").write_text(json.dumps({"numbers": list(range(1000))}), encoding="utf-8")
Image.effect_noise((64, 64), 50).save(pathlib.Path(output_dir, "pictures", "noise.png"))
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A folder in which one small notebook was executed, and the folder of that notebook."""
    root = tmp_path_factory.mktemp("left")
    (root / "notebooks").mkdir()
    parameters = new_code_cell('output_dir = ""', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[new_markdown_cell("# A"), parameters, new_code_cell(CELL)], metadata=kernel)
    nbformat.write(notebook, root / "notebooks" / "a.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "SOURCE_FOLDER", root / "notebooks")
        report.run_notebooks(root / "run", {}, ("a",))
    return root


KEPT = ("notebooks/a.json", "notebooks/a.ipynb", "results/a.json", "pictures/noise.png")


def test_the_stamp_names_all_that_a_notebook_left(left):
    stamp = json.loads((left / "run" / KEPT[0]).read_text(encoding="utf-8"))
    assert {file["name"] for file in stamp["files"]} == set(KEPT[1:])
    assert report._is_finished(left / "run", "a", stamp["signature"]) and not report._is_finished(left / "run", "a", "other")


@damages
@pytest.mark.parametrize("name", KEPT)
def test_a_notebook_whose_files_are_damaged_is_run_again_and_the_report_is_written_meanwhile(
    left, tmp_path, capsys, name, damage
):
    signature = json.loads((left / "run" / KEPT[0]).read_text(encoding="utf-8"))["signature"]
    folder = shutil.copytree(left / "run", tmp_path / "run")
    spoil(folder / name, damage)
    assert not report._is_finished(folder, "a", signature)
    [line] = capsys.readouterr().err.splitlines()
    assert name in line and "again" in line
    index = report.write_report(folder, ("a",), {"a": signature})
    assert (
        "a" in index.read_text(encoding="utf-8")
        and json.loads((folder / "results.json").read_text(encoding="utf-8")) is not None
    )


def test_a_damaged_notebook_is_made_whole_by_the_next_run(left, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(left / "run", tmp_path / "run")
    monkeypatch.setattr(report, "SOURCE_FOLDER", left / "notebooks")
    for name in KEPT:
        (folder / name).write_bytes(b"")
    report.run_notebooks(folder, {}, ("a",))
    stamp = json.loads((folder / KEPT[0]).read_text(encoding="utf-8"))
    assert report._is_finished(folder, "a", stamp["signature"])
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["a"]["numbers"][-1] == 999


def test_a_notebook_from_before_a_change_is_marked_and_its_results_are_left_out(left, tmp_path):
    """A run that stops early showed what followed as if it belonged to it."""
    folder = shutil.copytree(left / "run", tmp_path / "run")
    index = report.write_report(folder, ("a",), {"a": "of the code as it is now"})
    assert "from before the last change, not run again" in index.read_text(encoding="utf-8")
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == {}
