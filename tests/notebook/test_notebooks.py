import html
import inspect
import json
import re
import shutil

import nbformat
import pytest
from PIL import Image

from moebius_lab import LabError
from moebius_lab.config import RUNS
from moebius_lab.evidence import parity
from moebius_lab.evidence.benchmark import contenders
from moebius_lab.notebook import report
from moebius_lab.notebook.workbench import prepare

PARAMETERS = ("network", "weights", "precision", "backend", "image", "mask", "output_dir")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, picture_files, tiny):
    """All five notebooks, executed on TINY: folder, contents page, and how to run them again.

    Measured are two rounds of two forms, each for as long as a busy machine may need.
    """
    folder, source = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("source") / "notebooks"
    shutil.copytree(tiny.folder / "onnx", folder / "onnx")
    shutil.copytree(report.SOURCE_FOLDER, source)
    measuring = nbformat.read(source / "05_benchmark.ipynb", 4)
    [cell] = [cell for cell in measuring.cells if cell.metadata.get("tags") == ["parameters-more"]]
    cell.source = "repeats = 2\npatience = 60.0"
    [cell] = [cell for cell in measuring.cells if cell.id == "05-05"]
    forms = '("straightforward", "fp32", "int8")'
    assert forms in cell.source
    cell.source = cell.source.replace(forms, '("straightforward", "fp32")')
    nbformat.write(measuring, source / "05_benchmark.ipynb")
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


def answer_of(folder, name: str) -> str:
    [cell] = [
        c for c in nbformat.read(folder / "notebooks" / f"{name}.ipynb", 4).cells if "answer" in c.metadata.get("tags", [])
    ]
    return cell.outputs[0].data["text/markdown"]


@pytest.mark.slow
def test_answers_are_what_the_run_showed(finished):
    folder, index, _ = finished
    parity_answer, bundle_answer, benchmark_answer = (answer_of(folder, name) for name in report.NOTEBOOKS[2:])
    assert (
        "In float32, yes" in parity_answer and "(Chromium, webgpu" in parity_answer and "(Chromium, wasm)" in parity_answer
    )
    assert "every node on WebGPU" in bundle_answer and "a second one none at all" in bundle_answer
    assert "The quickest guided step" in benchmark_answer
    contents = html.unescape(index.read_text(encoding="utf-8"))
    for text in (parity_answer, bundle_answer, benchmark_answer):
        assert report._plain(text) in contents


@pytest.mark.slow
def test_without_a_browser_the_answers_say_what_is_missing(tmp_path, small, picture_files, monkeypatch):
    """A machine without one: nothing on the PATH, nothing of Playwright's."""
    shutil.copytree(small.folder / "onnx", tmp_path / "onnx")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "nothing"))
    parameters = {"network": "small", "weights": "deterministic", **dict(zip(("image", "mask"), map(str, picture_files)))}
    report.run_notebooks(tmp_path, parameters, names=("03_parity", "04_webgpu_bundle"))
    parity_answer, bundle_answer = answer_of(tmp_path, "03_parity"), answer_of(tmp_path, "04_webgpu_bundle")
    shown, missing = parity_answer.split("**Not compared here:**")
    assert "(ONNX Runtime, CPU)" in shown and "Chromium" not in shown and "rowser" not in shown
    for what in ("Chromium, wasm, fp32", "Chromium, webgpu (TINY), fp32", "this browser", "there is no Chromium"):
        assert what in missing
    shown, missing = bundle_answer.split("**Not shown here:**")
    assert "WebGPU" not in shown and "visit" not in shown
    for what in (
        "what a second visit fetches",
        "where the runtime places the nodes",
        "a picture through the bundle",
        "there is no Chromium",
    ):
        assert what in missing


@pytest.mark.slow
def test_notebooks_run_alone_on_the_demo_network(tmp_path, demo):
    """The graphs lie there that other tests have made, but for one, which the notebook makes itself."""
    there = tmp_path / "04_webgpu_bundle" / "onnx"
    shutil.copytree(demo.folder / "onnx", there, ignore=shutil.ignore_patterns("vae_encoder"))
    for name in ("01_feasibility", "04_webgpu_bundle"):
        report.run_notebooks(tmp_path / name, {}, names=(name,))
        cells = nbformat.read(tmp_path / name / "notebooks" / f"{name}.ipynb", 4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"]
        assert '"network": "demo"' in (tmp_path / name / "results.json").read_text(encoding="utf-8")


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


def write_notebooks(folder, cells: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, code in cells.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), folder / f"{name}.ipynb")


@pytest.mark.slow
def test_a_change_repeats_what_follows(tmp_path, monkeypatch):
    source, names = tmp_path / "notebooks", ("a", "b", "c")
    write_notebooks(source, {name: f"print({name!r})" for name in names})
    monkeypatch.setattr(report, "SOURCE_FOLDER", source)
    image = tmp_path / "image.png"
    image.write_bytes(b"one picture")
    executed = {name: tmp_path / "out" / "notebooks" / f"{name}.ipynb" for name in names}

    def repeated() -> str:
        before = {name: path.stat().st_mtime_ns for name, path in executed.items() if path.is_file()}
        report.run_notebooks(tmp_path / "out", {"image": str(image)}, names)
        return "".join(name for name, path in executed.items() if path.stat().st_mtime_ns != before.get(name))

    assert repeated() == "abc" and repeated() == ""
    write_notebooks(source, {"b": "print('another b')"})
    assert repeated() == "bc"
    (tmp_path / "out" / "notebooks" / "c.json").unlink()
    assert repeated() == "c"
    image.write_bytes(b"another picture")
    assert repeated() == "abc"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["run {draft}", "{", "}{0}", "50 % of #1", "{network}", "ünï"])
def test_a_folder_may_have_any_name(tmp_path, monkeypatch, folder):
    source = tmp_path / folder / "notebooks"
    source.mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell(code) for code in ('output_dir = ""', "print(output_dir)")]
    cells[0].metadata.tags = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), source / "a.ipynb")
    monkeypatch.setattr(report, "SOURCE_FOLDER", source)
    index = report.run_notebooks(tmp_path / folder / "out", {"network": "small"}, names=("a",))
    assert str(tmp_path / folder / "out") in (index.parent / "a.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_failing_cell_ends_the_run_and_keeps_what_was_made(tmp_path, monkeypatch, capsys):
    source = tmp_path / "notebooks"
    cells = {"a": "print('fine')", "b": "print('begun')\nraise RuntimeError('no such luck')", "c": "print('never')"}
    write_notebooks(source, cells)
    monkeypatch.setattr(report, "SOURCE_FOLDER", source)
    with pytest.raises(report.NotebookError) as error:
        report.run_notebooks(tmp_path / "out", {}, names=("a", "b", "c"))
    for words in ("b.ipynb", "cell 1", "RuntimeError: no such luck", "Traceback"):
        assert words in str(error.value)
    index = (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "stopped by an error" in index and "c: not run yet" in index
    assert "begun" in (tmp_path / "out" / "report" / "b.html").read_text(encoding="utf-8")


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


@pytest.mark.slow
def test_a_bad_parameter_ends_a_notebook_in_its_first_cell(tmp_path):
    with pytest.raises(report.NotebookError, match=r"05_benchmark.ipynb, cell [234]: LabError: there is no backend 'cuda'"):
        report.run_notebooks(tmp_path, {"backend": "cuda"}, names=("05_benchmark",))
    assert not (tmp_path / "onnx").exists()


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
