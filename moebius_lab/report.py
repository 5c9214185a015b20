"""Executes the notebooks in order and makes the HTML report; finished ones are taken up, a failing cell ends the run."""

from __future__ import annotations

import hashlib
import html
import json
import re
import time
from pathlib import Path

import nbformat
import papermill
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from . import LabError

NOTEBOOKS = ("01_feasibility", "02_export", "03_parity", "04_webgpu_bundle", "05_benchmark")
WIDGET = "application/vnd.jupyter.widget-view+json"
SOURCE_FOLDER = Path(__file__).parents[1] / "notebooks"


class NotebookError(LabError):
    """A cell that failed: the message names notebook and cell and ends with the traceback."""


def run_notebooks(folder: str | Path, parameters: dict[str, object], names: tuple[str, ...] = NOTEBOOKS) -> Path:
    """Execute notebooks into `folder` and make its report.

    A notebook is not repeated while the notebook, the library, the parameters, the files that they name, and every
    notebook before it are what they were when it finished.

    Args:
        folder: gets notebooks/ (executed), report/ (HTML), results.json, and what the notebooks write.
        parameters: for every notebook; `output_dir` is added.
        names: notebooks in `SOURCE_FOLDER`, without the ending.

    Returns:
        The report's index page.

    Raises:
        NotebookError: a cell failed; what was made so far is kept, and the report shows it.
    """
    folder = Path(folder).resolve()
    executed = folder / "notebooks"
    executed.mkdir(parents=True, exist_ok=True)
    (folder / "report").mkdir(exist_ok=True)
    parameters = parameters | {"output_dir": str(folder)}
    signature = _digest(_library_files(), json.dumps(parameters, sort_keys=True), _named_files(parameters))
    bar = tqdm(names, desc="notebooks", unit="notebook")
    try:
        for name in bar:
            bar.set_postfix_str(name)
            source = SOURCE_FOLDER / f"{name}.ipynb"
            signature = _digest([source], signature)
            stamp = executed / f"{name}.json"
            if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8"))["signature"] == signature:
                tqdm.write(f"{name}: finished before, nothing it depends on has changed")
                continue
            stamp.unlink(missing_ok=True)
            start = time.perf_counter()
            _execute(source, executed / f"{name}.ipynb", parameters)
            facts = {"signature": signature, "seconds": round(time.perf_counter() - start, 1)}
            stamp.write_text(json.dumps(facts), encoding="utf-8")
    finally:
        bar.close()
        index = write_report(folder, names)
    return index


def _execute(source: Path, target: Path, parameters: dict[str, object]) -> None:
    accepted = papermill.inspect_notebook(str(source))
    chosen = {key: value for key, value in parameters.items() if key in accepted}
    try:
        papermill.execute_notebook(
            str(source), str(target), chosen, kernel_name="python3", cwd=str(source.parent), progress_bar=True
        )
    except PapermillExecutionError as error:
        lines = "\n".join(error.traceback) if isinstance(error.traceback, list) else str(error.traceback)
        raise NotebookError(f"{source.name}, cell {error.exec_count}: {error.ename}: {error.evalue}\n{lines}") from None


def write_report(folder: Path, names: tuple[str, ...]) -> Path:
    """Make report/NAME.html of every executed notebook, a contents page and results.json; returns the contents page.

    The pages need nothing from outside: no scripts, pictures inside. Where a notebook shows a widget, its still stands.
    """
    executed = {name: folder / "notebooks" / f"{name}.ipynb" for name in names}
    notebooks = {name: nbformat.read(path, as_version=4) for name, path in executed.items() if path.is_file()}
    titles = {name: _title(notebook, name) for name, notebook in notebooks.items()}
    entries, results = [], {}
    for name in names:
        result = folder / "results" / f"{name}.json"
        if result.is_file():
            results[name] = json.loads(result.read_text(encoding="utf-8"))
        if name not in notebooks:
            entries.append(f"<li>{name}: not run yet</li>")
            continue
        (folder / "report" / f"{name}.html").write_text(_page(notebooks[name], name, titles), encoding="utf-8")
        stamp = executed[name].with_suffix(".json")
        facts = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
        state = f"{facts['seconds']:.0f} s" if facts else "<b>stopped by an error</b>"
        answer = html.escape(_answer(notebooks[name]))
        entries.append(f'<li><a href="{name}.html">{html.escape(titles[name])}</a> <small>{state}</small><p>{answer}</p></li>')
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    pictures = sorted((folder / "pictures").glob("*.png"), key=lambda path: path.stat().st_mtime)  # as the notebooks tell
    shown = "\n".join(
        f'<figure><a href="../pictures/{p.name}"><img src="../pictures/{p.name}" alt="{html.escape(_words(p))}" loading="lazy">'
        f"</a><figcaption>{html.escape(_words(p))}</figcaption></figure>"
        for p in pictures
    )
    index = folder / "report" / "index.html"
    index.write_text(_INDEX.format(entries="\n".join(entries), pictures=shown), encoding="utf-8")
    return index


def _page(notebook: nbformat.NotebookNode, name: str, titles: dict[str, str]) -> str:
    """One executed notebook as a page, with links to its parts and to its neighbours."""
    stills(notebook)
    names = list(titles)
    here = names.index(name)
    links = ['<a href="index.html">Contents</a>']
    if here > 0:
        links.insert(0, f'<a rel="prev" href="{names[here - 1]}.html">&larr; {html.escape(titles[names[here - 1]])}</a>')
    if here + 1 < len(names):
        links.append(f'<a rel="next" href="{names[here + 1]}.html">{html.escape(titles[names[here + 1]])} &rarr;</a>')
    parts = [
        line[3:] for cell in notebook.cells if cell.cell_type == "markdown"
        for line in cell.source.splitlines() if line.startswith("## ")
    ]  # fmt: skip
    # the ids are nbconvert's: the heading with its spaces as hyphens
    items = "".join(f'<li><a href="#{html.escape(part.replace(" ", "-"))}">{html.escape(part)}</a></li>' for part in parts)
    resources = {
        "metadata": {"name": titles[name]},
        "links": f"<nav>{' '.join(links)}</nav>",
        "parts": f"<details><summary>On this page</summary><ul>{items}</ul></details>",
        "style": _STYLE,
    }
    exporter = HTMLExporter(
        embed_images=True, template_file="report.html.j2", extra_loaders=[DictLoader({"report.html.j2": _PAGE})]
    )
    page = exporter.from_notebook_node(notebook, resources=resources)[0]
    return re.sub(r'<a href="(\w+)\.ipynb">(.*?)</a>', lambda link: _link(*link.groups(), titles), page)


def _link(name: str, words: str, titles: dict[str, str]) -> str:
    """A notebook's link to another one, on a page: to that one's page, or the words alone where the report has none."""
    return f'<a href="{name}.html">{words}</a>' if name in titles else words


def stills(notebook: nbformat.NotebookNode) -> None:
    """Take widgets and frames out of an executed notebook, in place: the picture that came with each one stays.

    A widget without a picture, such as a progress bar, leaves nothing: its text would be of the moment when it was made.
    Charts are marked `unconfined`, so that a phone shows them large enough to read.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _is_widget_alone(output)]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop(WIDGET, None)
            if "<iframe" in str(data.get("text/html", "")):  # its server ended with the kernel
                del data["text/html"]
            if str(data.get("text/plain", "")).startswith("<Figure"):
                output.metadata.setdefault("image/png", {})["unconfined"] = True


def _is_widget_alone(output: nbformat.NotebookNode) -> bool:
    data = output.get("data", {})
    return WIDGET in data and not any(kind.startswith("image/") for kind in data)


_PAGE = """{% extends 'index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>{{ resources.style }}</style>{% endblock %}
{% block body_header %}{{ super() }}{{ resources.links }}{{ resources.parts }}{% endblock %}
{% block body_footer %}{{ resources.links }}{{ super() }}{% endblock %}
"""

_STYLE = """
body.jp-Notebook { padding: 1rem; }
main { max-width: 62rem; margin: 0 auto; }
nav, details { font: 1rem/1.6 system-ui, sans-serif; }
nav { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; justify-content: space-between; padding: .75rem 0; }
nav a, details a { color: #1a5fa8; text-underline-offset: .2em; }
summary { cursor: pointer; padding: .4rem 0; }
.jp-RenderedImage, .jp-RenderedHTMLCommon, .jp-InputArea-editor, .highlight { overflow-x: auto; }
.jp-RenderedImage img { height: auto; }
.jp-RenderedHTMLCommon table { font-size: .85rem; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th { padding: .25rem .35rem; }
@media (max-width: 48rem) {
  body.jp-Notebook { padding: .5rem; }
  .jp-InputPrompt, .jp-OutputPrompt { display: none; }
  .jp-RenderedImage img.unconfined { max-width: none; width: 44rem; }
  .jp-RenderedHTMLCommon { font-size: 1rem; }
}
"""

_INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Moebius workbench: report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }}
a {{ color: #1a5fa8; text-underline-offset: .2em; }} ol {{ padding: 0; list-style: none; }}
li {{ margin: .8rem 0; }} li p {{ margin: .2rem 0; }} small, figcaption {{ color: #5a5a5a; }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; }} img {{ max-width: 100%; height: auto; }} figcaption {{ font-size: .9rem; }}
</style>
<h1>Moebius workbench: report</h1>
<p>The notebooks as they were executed, in order. All numbers are in <a href="../results.json">results.json</a>.</p>
<ol>
{entries}
</ol>
<h2>Pictures</h2>
<div class="pictures">
{pictures}
</div>
</html>
"""


def _title(notebook: nbformat.NotebookNode, name: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0][2:]
    return name


def _answer(notebook: nbformat.NotebookNode) -> str:
    """The paragraph that a notebook opens with as its answer, as plain text; empty if it has none."""
    found = re.search(r"\*\*Answer found here\.\*\*\s*(.+?)(?:\n\n|$)", notebook.cells[0].source, re.DOTALL)
    text = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", found[1]) if found else ""
    return re.sub(r"[*`]", "", text).replace("\n", " ")


def _words(picture: Path) -> str:
    return picture.stem.replace("_", " ")


def _library_files() -> list[Path]:
    package = Path(__file__).parent
    return sorted([*package.glob("*.py"), *(package / "demo").rglob("*.*")])


def _named_files(parameters: dict[str, object]) -> str:
    """Digest of the files that parameters name: picture, mask, and a folder of weights."""
    files: list[Path] = []
    for key in ("image", "mask", "weights"):
        path = Path(str(parameters.get(key) or ""))
        if str(path) != "." and path.is_file():
            files.append(path)
        elif str(path) != "." and path.is_dir():
            files += sorted(path.glob("*.safetensors"))
    return _digest(files)


def _digest(files: list[Path], *texts: str) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()
