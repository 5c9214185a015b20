import ast
import html
import inspect
import json
import re
import shutil

import nbformat
import pytest
from executed import answer_of, change_cells
from PIL import Image

from moebius_lab import LabError
from moebius_lab.config import RUNS
from moebius_lab.evidence import parity
from moebius_lab.evidence.benchmark import contenders
from moebius_lab.notebook import report
from moebius_lab.notebook.workbench import prepare
from moebius_lab.provenance import package_files

PARAMETERS = ("network", "weights", "precision", "backend", "image", "mask", "output_dir")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, picture_files, tiny):
    """Every notebook of a run, executed on TINY: folder, contents page, and how to run them again.

    Measured is one round of one form, for as long as a busy machine may need; evaluated are two pictures; each engine runs one case or
    two. More of each is in test_benchmark.py, test_dataset.py, test_recording.py and test_engines.py.
    """
    folder, source = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("source") / "notebooks"
    shutil.copytree(tiny.folder / "onnx", folder / "onnx")
    shutil.copytree(report.SOURCE_FOLDER, source)
    change_cells(
        source / "05_benchmark.ipynb",
        {
            "repeats = 5": "repeats = 1",
            "patience = 10.0": "patience = 60.0",
            '("straightforward", "fp32", "int8")': '("fp32",)',
        },
    )
    change_cells(
        source / "03_parity.ipynb",
        {
            'every_case(["fp32", "fp16-storage"], ["webgpu"], [MAIN]': 'every_case(["fp32"], ["webgpu"], [MAIN]',
            '["webgpu"], [MAIN], stand_in, recorded=False': '["webgpu"], OTHERS[:1], stand_in, recorded=False',
            '["wasm"], OTHERS': '["wasm"], OTHERS[1:]',
            'every_case(["fp32", "fp16"], ["webgpu"], OTHERS': 'every_case(["fp16"], ["webgpu"], OTHERS',
        },
    )
    change_cells(source / "B_evaluation.ipynb", {"count = 3": "count = 2"})
    image, mask = map(str, picture_files)

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "SOURCE_FOLDER", source)
            return report.run_notebooks(
                folder, {"network": "tiny", "weights": "deterministic", "image": image, "mask": mask}
            )

    return folder, run(), run


@pytest.mark.slow
def test_the_run_leaves_notebooks_report_pictures_and_results(finished):
    folder, index, _ = finished
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(results) == list(report.NOTEBOOKS)
    rows = results["03_parity"]["rows"]
    assert all(row["verdict"] == "ok" for row in rows)
    by_runner = {row["graph"] for row in rows if row["backend"].startswith("headless Chromium")}
    assert by_runner == {*RUNS, parity.PICTURE}, "the reader's browser, whose part a headless Chromium plays here"
    reader = {row["what"] for row in results["05_benchmark"]["rows"] if row["backend"] == contenders.READER}
    assert {"guided step", "whole picture"} <= reader
    for name in report.NOTEBOOKS:
        assert f'href="{name}.html"' in index.read_text(encoding="utf-8")
        assert len((index.parent / f"{name}.html").read_text(encoding="utf-8")) > 10_000
        outputs = [
            o for cell in nbformat.read(folder / "notebooks" / f"{name}.ipynb", 4).cells for o in cell.get("outputs", [])
        ]
        assert any("image/png" in o.get("data", {}) for o in outputs), f"{name} shows no picture"
        assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"], f"{name} has red output"
    pictures = list((folder / "pictures").glob("*.png"))
    assert len(pictures) >= 9
    for picture in pictures:
        Image.open(picture).verify()
        assert picture.name in index.read_text(encoding="utf-8")


@pytest.mark.slow
def test_answers_are_what_the_run_showed(finished):
    folder, index, _ = finished
    answers = [answer_of(folder, name) for name in report.NOTEBOOKS[2:]]
    parity_answer, bundle_answer, benchmark_answer, evaluation_answer = answers
    assert (
        "In float32, yes" in parity_answer and "(Chromium, webgpu" in parity_answer and "(Chromium, wasm)" in parity_answer
    )
    assert "every node on WebGPU" in bundle_answer and "a second one none at all" in bundle_answer
    assert "The quickest guided step" in benchmark_answer
    assert "every form of the port is faithful" in evaluation_answer and "PatchMatch" in evaluation_answer
    contents = html.unescape(index.read_text(encoding="utf-8"))
    for text in answers:
        assert report._plain(text) in contents


@pytest.mark.slow
def test_a_second_run_repeats_nothing_and_a_cut_one_goes_on(finished, capsys):
    folder, _, run = finished
    executed = {name: folder / "notebooks" / f"{name}.ipynb" for name in report.NOTEBOOKS}
    before = {name: path.stat().st_mtime_ns for name, path in executed.items()}
    run()
    assert {name: path.stat().st_mtime_ns for name, path in executed.items()} == before
    (folder / "notebooks" / "02_export.json").unlink()  # as if the run had been cut there
    run()
    again = {name for name, path in executed.items() if path.stat().st_mtime_ns != before[name]}
    assert again == {"02_export"}


def test_every_legend_is_told_where_to_lie():
    """Matplotlib looks for the best place otherwise, and says so in red where that takes it a second."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in package_files() if path.suffix == ".py"}
    for path in report.SOURCE_FOLDER.glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        sources[path.name] = "\n".join(cells)
    calls = [
        (name, node)
        for name, source in sources.items()
        for node in ast.walk(compile(source, name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "legend"
    ]
    assert len(calls) > 5
    assert not [(name, node.lineno) for name, node in calls if "loc" not in {word.arg for word in node.keywords}]


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"network": "huge"}, "choose one of"),
        ({"backend": "cuda"}, "no backend 'cuda'; choose one of torch, onnx, browser"),
        ({"precision": "fp64"}, "choose"),
        ({"network": "small"}, "belong to the demo network"),
        ({"weights": "nowhere"}, "folder that exists"),
        ({"image": "x.png"}, "together"),
        ({"image": "x.png", "mask": "y.png"}, "no such file"),
    ],
)
def test_bad_parameters_are_refused_by_the_first_cell(tmp_path, bad, words):
    with pytest.raises(LabError, match=words):
        prepare(**({"output_dir": str(tmp_path)} | bad))


@pytest.mark.parametrize("name", report.NOTEBOOKS)
def test_each_notebook_is_a_lesson_with_the_same_parameters(name):
    notebook = nbformat.read(report.SOURCE_FOLDER / f"{name}.ipynb", 4)
    opening, closing = notebook.cells[0].source, notebook.cells[-1].source
    assert all(words in opening for words in ("**Question.**", "**Answer found here.**", "*Runs alone.*"))
    assert closing.startswith("## Learned") and ".ipynb)" in closing
    [given, first] = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.metadata.get("tags") != ["parameters-more"]
    ][:2]
    assert re.findall(r"^(\w+) = ", given, re.MULTILINE) == list(PARAMETERS)
    assert f"prepare({', '.join(inspect.signature(prepare).parameters)})" in first
    for cell in notebook.cells:
        assert cell.cell_type == "code" or len(cell.source) < 2500, f"{cell.id} has too much text at once"


@pytest.mark.parametrize("path", sorted(report.SOURCE_FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_clean_and_keep_the_house_rules(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "outputs are not committed"
    assert ["parameters"] in [cell.metadata.get("tags") for cell in code[:2]]
    assert notebook.cells[0].source.startswith("# ")
    for cell in code:
        assert len(cell.source.splitlines()) <= 16 and "class " not in cell.source, cell.source
