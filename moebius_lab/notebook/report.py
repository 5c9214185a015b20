"""Executes the notebooks in order and makes the HTML report. Finished ones are reused; a failing cell ends the run."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path

import nbformat
import onnxruntime
import papermill
import torch
from IPython.core.inputtransformer2 import TransformerManager
from jinja2 import Environment, FileSystemLoader
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from .. import LabError
from ..config import DETERMINISTIC, MOEBIUS, NETWORKS, PARTS
from ..errors import first_line
from ..evidence.benchmark.run import machine
from ..files import (
    NUMBER,
    STORED_FILE,
    TEXT,
    changed_file,
    digest_of,
    file_sha256,
    kept_json,
    listed,
    record,
    say,
    write_json,
    write_whole,
)
from ..model.checkpoint import find_weights
from ..page.engines import ENGINES
from ..provenance import PACKAGE, facts_digest, libraries, package_files

NOTEBOOKS = ("01_feasibility", "02_export", "03_parity", "04_webgpu_bundle", "05_benchmark", "B_evaluation")
WIDGET = "application/vnd.jupyter.widget-view+json"
SOURCE_FOLDER = Path(__file__).parents[2] / "notebooks"
TEMPLATES = FileSystemLoader(Path(__file__).with_name("templates"))  # of the report's pages, with their style
KERNEL_OPTIONS = ["--log-level=CRITICAL"]  # a kernel's own messages, as when it stops, are not a notebook's output


FINISHED = record(signature=TEXT, seconds=NUMBER, files=listed(STORED_FILE))
"""What the stamp of a finished notebook holds, as a JSON Schema: what it was made from, and the files that it wrote."""


class NotebookError(LabError):
    """A cell that failed: the message names notebook and cell and ends with the traceback."""


def run_notebooks(folder: str | Path, parameters: dict[str, object], names: tuple[str, ...] = NOTEBOOKS) -> Path:
    """Execute notebooks into `folder` and make its report.

    A notebook is reused as long as the files that it wrote are intact and nothing that it was made from has changed: the
    notebook itself, files that its cells name, the package, libraries, the parameters and the files that they name, what the
    machine offers, and every notebook before it.

    Args:
        folder: gets notebooks/ (executed), report/ (HTML), results.json, and what the notebooks write.
        parameters: for every notebook; `output_dir` is added.
        names: notebooks in `SOURCE_FOLDER`, without the ending.

    Returns:
        The report's index page.

    Raises:
        NotebookError: a cell failed; what was made so far is kept and is in the report.
    """
    folder = Path(folder).resolve()
    executed = folder / "notebooks"
    executed.mkdir(parents=True, exist_ok=True)
    (folder / "report").mkdir(exist_ok=True)
    parameters = parameters | {"output_dir": str(folder)}
    signatures = _signatures(parameters, names)
    bar = tqdm(names, desc="notebooks", unit="notebook")
    try:
        for name in bar:
            bar.set_postfix_str(name)
            stamp = executed / f"{name}.json"
            if _is_finished(folder, name, signatures[name]):
                tqdm.write(f"{name}: finished before, nothing it depends on has changed")
                continue
            for outdated in (stamp, folder / "results" / f"{name}.json"):
                outdated.unlink(missing_ok=True)
            before, start = _products(folder), time.perf_counter()
            _execute(SOURCE_FOLDER / f"{name}.ipynb", executed / f"{name}.ipynb", parameters)
            seconds = round(time.perf_counter() - start, 1)
            made = {path for path, facts in _products(folder).items() if before.get(path) != facts}
            files = [_described(path, folder) for path in sorted(made | {executed / f"{name}.ipynb"})]
            write_json(stamp, {"signature": signatures[name], "seconds": seconds, "files": files})
    finally:
        bar.close()
        index = write_report(folder, names, signatures)
    return index


def require_notebooks() -> None:
    """Raise LabError if the notebooks are missing, as in a package installed without its repository."""
    if not SOURCE_FOLDER.is_dir():
        raise LabError(
            "`run` executes the notebooks, which are in the repository but not in the installed package; clone the repository and "
            "run it there"
        )


# -- what a notebook is made from --------------------------------------------------------------------------------------


def _signatures(parameters: dict[str, object], names: tuple[str, ...]) -> dict[str, str]:
    """For each notebook, the SHA-256 of everything its execution depends on, including the notebooks before it."""
    files = package_files()
    versions = libraries([path for path in files if path.suffix == ".py"], optional=True)
    signature = facts_digest(parameters, digest_of(files, PACKAGE), versions, machine_offers(), _named_files(parameters))
    signatures = {}
    for name in names:
        source = SOURCE_FOLDER / f"{name}.ipynb"
        read = [source, *_files_read(nbformat.read(source, as_version=4))]
        signatures[name] = signature = facts_digest(signature, digest_of(read, SOURCE_FOLDER))
    return signatures


def machine_offers() -> dict[str, object]:
    """What decides which parts of a notebook run here, and how fast: browsers, cards, providers, processor."""
    here = machine()
    return {
        "processor": [here["processor"], here["cores"]],
        "cards": here["cards"],
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "providers": onnxruntime.get_available_providers(),
        "browsers": {name: engine.here() for name, engine in ENGINES.items()},
    }


def _named_files(parameters: dict[str, object]) -> dict[str, list[str]]:
    """SHA-256 of the files that parameters name: picture, mask, and the files of weights."""
    weights, network = str(parameters.get("weights") or DETERMINISTIC), NETWORKS.get(str(parameters.get("network")), MOEBIUS)
    found = {"weights": [find_weights(weights, part, network) for part in PARTS] if weights != DETERMINISTIC else []}
    found |= {key: [parameters[key]] for key in ("image", "mask") if parameters.get(key)}
    return {key: [file_sha256(path) for path in paths if Path(path).is_file()] for key, paths in found.items()}


def _files_read(notebook: nbformat.NotebookNode) -> list[Path]:
    """The files next to the notebooks that a cell names, as in Path("results"); for a folder, the files in it."""
    found: set[Path] = set()
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        code = TransformerManager().transform_cell(cell.source)  # a magic is not Python
        try:
            tree = compile(code, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError:  # its execution will report it
            continue
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        for path in (
            SOURCE_FOLDER / word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*", word) and not word.startswith(".")
        ):
            found |= {path} if path.is_file() else {file for file in path.glob("*") if file.is_file()}
    return sorted(found)


def _is_finished(folder: Path, name: str, signature: str) -> bool:
    """Whether a notebook was executed from what `signature` identifies and its files are intact; reports damage."""
    kept = kept_json(folder / "notebooks" / f"{name}.json", FINISHED)
    if kept is None or kept["signature"] != signature:
        return False
    if words := changed_file(folder, kept["files"]):
        say(f"{words}; {name} is run again")
    return not words


def _products(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files that notebooks write, with facts that change when they are rewritten."""
    files = [path for kind in ("results", "pictures") for path in (folder / kind).glob("*")]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def _described(path: Path, folder: Path) -> dict[str, object]:
    return {"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


# -- running and showing -----------------------------------------------------------------------------------------------


def _execute(source: Path, target: Path, parameters: dict[str, object]) -> None:
    accepted = papermill.inspect_notebook(_literal(source))
    chosen = {key: value for key, value in parameters.items() if key in accepted}
    paths = _literal(source), _literal(target)
    try:
        papermill.execute_notebook(
            *paths, chosen, kernel_name="python3", cwd=str(source.parent), progress_bar=True, extra_arguments=KERNEL_OPTIONS
        )
    except DeadKernelError:
        raise NotebookError(
            f"{source.name}: its process ended in the middle of a cell, most likely because memory ran out; close other programs, "
            "or take a smaller network"
        ) from None
    except PapermillExecutionError as error:
        lines = "\n".join(error.traceback) if isinstance(error.traceback, list) else str(error.traceback)
        raise NotebookError(f"{source.name}, cell {error.exec_count}: {error.ename}: {error.evalue}\n{lines}") from None


def _literal(path: Path) -> str:
    """A notebook's path, escaped for papermill, which would fill parameters into braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def write_report(folder: Path, names: tuple[str, ...], signatures: dict[str, str] | None = None) -> Path:
    """Make report/NAME.html from every executed notebook, a contents page and results.json; returns the contents page.

    The pages are self-contained: no scripts, pictures embedded. A still replaces each widget.

    Args:
        folder: the one that the notebooks were executed into.
        names: the notebooks, in order.
        signatures: of what they would be made from now. A notebook made from something else is marked, and its results are
            left out. None to take them as they are.
    """
    executed = {name: folder / "notebooks" / f"{name}.ipynb" for name in names}
    read = {name: _read(path) for name, path in executed.items() if path.is_file()}
    notebooks = {name: notebook for name, notebook in read.items() if notebook}
    titles = {name: _title(notebook, name) for name, notebook in notebooks.items()}
    entries, results = [], {}
    for name in names:
        stamp = kept_json(executed[name].with_suffix(".json"), FINISHED)
        earlier = bool(stamp and signatures and stamp["signature"] != signatures[name])
        result = None if earlier else kept_json(folder / "results" / f"{name}.json", {"type": "object"})
        if result is not None:
            results[name] = result
        if name not in notebooks:
            entries.append({"name": name})
            continue
        write_whole(folder / "report" / f"{name}.html", _page(notebooks[name], name, titles))
        facts = {"title": titles[name], "answer": _plain(_answer(notebooks[name]))}
        entries.append(facts | {"name": name, "earlier": earlier, "seconds": stamp["seconds"] if stamp else None})
    write_json(folder / "results.json", results)
    pictures = sorted((folder / "pictures").glob("*.png"), key=lambda path: path.stat().st_mtime)  # as the notebooks tell
    contents = Environment(loader=TEMPLATES, autoescape=True, trim_blocks=True, keep_trailing_newline=True).get_template(
        "contents.html.j2"
    )
    index = folder / "report" / "index.html"
    write_whole(index, contents.render(entries=entries, pictures=[(path.name, _words(path)) for path in pictures]))
    return index


def _read(path: Path) -> nbformat.NotebookNode | None:
    """An executed notebook; None if it is damaged, which is reported."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # anything that reader, converter or validator may raise
        say(f"{path} is damaged ({first_line(error)}); the report is without it until it is run again")
        return None
    return notebook


def _page(notebook: nbformat.NotebookNode, name: str, titles: dict[str, str]) -> str:
    """One executed notebook as a page, with links to its parts and to its neighbours."""
    stills(notebook)
    opening = notebook.cells[0]
    opening.source = ANSWER.sub(lambda _: f"**Answer found here.** {_answer(notebook)}", opening.source, count=1)
    names = list(titles)
    here = names.index(name)
    neighbours = {"previous": names[:here][-1:], "next": names[here + 1 :][:1]}
    parts = [
        line[3:] for cell in notebook.cells if cell.cell_type == "markdown"
        for line in cell.source.splitlines() if line.startswith("## ")
    ]  # fmt: skip
    resources = {"metadata": {"name": titles[name]}, "parts": parts}
    resources |= {place: (found[0], titles[found[0]]) for place, found in neighbours.items() if found}
    exporter = HTMLExporter(embed_images=True, template_file="notebook.html.j2", extra_loaders=[TEMPLATES])
    page = exporter.from_notebook_node(notebook, resources=resources)[0]
    return re.sub(r'<a href="(\w+)\.ipynb">(.*?)</a>', lambda link: _link(*link.groups(), titles), page)


def _link(name: str, words: str, titles: dict[str, str]) -> str:
    """A notebook's link to another, on a page: to the other's page, or only the words if the report has none."""
    return f'<a href="{name}.html">{words}</a>' if name in titles else words


def stills(notebook: nbformat.NotebookNode) -> None:
    """Remove widgets and frames from an executed notebook, in place, and keep the picture that came with each.

    A widget without a picture, such as a progress bar, leaves nothing: its text would show its state when it was created.
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


def _title(notebook: nbformat.NotebookNode, name: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0][2:]
    return name


ANSWER = re.compile(r"\*\*Answer found here\.\*\*\s*(.+?)(?=\n\n|$)", re.DOTALL)
"""The paragraph that gives a notebook's answer in its opening cell."""


def _answer(notebook: nbformat.NotebookNode) -> str:
    """A notebook's answer in Markdown: from the cell tagged "answer" in this run, else the opening; empty without one."""
    found = ANSWER.search(notebook.cells[0].source)
    text = found[1] if found else ""
    for cell in notebook.cells:
        if "answer" in cell.metadata.get("tags", []):
            said = [output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {})]
            text = said[-1] if said else "This run stopped before it had one."
    return text


def _plain(markdown: str) -> str:
    text = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", markdown)
    return re.sub(r"[*`]", "", text).replace("\n", " ")


def _words(picture: Path) -> str:
    return picture.stem.replace("_", " ")
