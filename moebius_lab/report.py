"""Executes the notebooks in order and makes the HTML report; finished ones are taken up, a failing cell ends the run."""

from __future__ import annotations

import hashlib
import html
import json
import time
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from . import LabError

NOTEBOOKS = ("01_feasibility", "02_export", "03_parity", "04_webgpu_bundle", "05_benchmark")
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
            if stamp.is_file() and json.loads(stamp.read_text())["signature"] == signature:
                tqdm.write(f"{name}: finished before, nothing it depends on has changed")
                continue
            stamp.unlink(missing_ok=True)
            start = time.perf_counter()
            _execute(source, executed / f"{name}.ipynb", parameters)
            stamp.write_text(json.dumps({"signature": signature, "seconds": round(time.perf_counter() - start, 1)}))
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
    """Make report/NAME.html of every executed notebook, an index page and results.json; returns the index page."""
    exporter = HTMLExporter(embed_images=True)
    entries, results = [], {}
    for name in names:
        path = folder / "notebooks" / f"{name}.ipynb"
        result = folder / "results" / f"{name}.json"
        if result.is_file():
            results[name] = json.loads(result.read_text())
        if not path.is_file():
            entries.append(f"<li>{name}: not run yet</li>")
            continue
        notebook = nbformat.read(path, as_version=4)
        body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
        (folder / "report" / f"{name}.html").write_text(body)
        stamp = path.with_suffix(".json")
        state = f"{json.loads(stamp.read_text())['seconds']:.0f} s" if stamp.is_file() else "<b>stopped by an error</b>"
        entries.append(f'<li><a href="{name}.html">{html.escape(_title(notebook, name))}</a> <small>{state}</small></li>')
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    pictures = sorted((folder / "pictures").glob("*.png"))
    shown = "\n".join(
        f'<figure><img src="../pictures/{p.name}" alt="{html.escape(p.stem)}" loading="lazy">'
        f"<figcaption>{html.escape(p.stem.replace('_', ' '))}</figcaption></figure>"
        for p in pictures
    )
    index = folder / "report" / "index.html"
    index.write_text(_INDEX.format(entries="\n".join(entries), pictures=shown))
    return index


_INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Moebius workbench: report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
li {{ margin: .3rem 0; }} small {{ color: #666; }}
figure {{ margin: 1.5rem 0; }} img {{ max-width: 100%; height: auto; }} figcaption {{ color: #666; font-size: .9rem; }}
</style>
<h1>Moebius workbench: report</h1>
<p>The notebooks as they were executed, in order. All numbers are in <a href="../results.json">results.json</a>.</p>
<ol>
{entries}
</ol>
<h2>Pictures</h2>
{pictures}
</html>
"""


def _title(notebook: nbformat.NotebookNode, name: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0][2:]
    return name


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
