"""Runs of one or two notebooks, or of notebooks that were made for a test. All of a run: test_notebooks.py."""

import shutil

import nbformat
import pytest
from executed import answer_of, change_cells

from moebius_lab.notebook import report

pytestmark = pytest.mark.slow


def test_without_a_browser_the_answers_say_what_is_missing(tmp_path, small, tiny, picture_files, monkeypatch):
    """A machine without one: nothing on the PATH, nothing of Playwright's."""
    shutil.copytree(small.folder / "onnx", tmp_path / "onnx")
    shutil.copytree(tiny.folder / "onnx", tmp_path / "tiny" / "onnx")
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


def test_notebooks_run_alone_on_the_demo_network(tmp_path, demo, monkeypatch):
    """The graphs lie there that other tests have made, but for one, which the notebook makes itself; it offers two precisions of four."""
    source = shutil.copytree(report.SOURCE_FOLDER, tmp_path / "notebooks")
    change_cells(source / "04_webgpu_bundle.ipynb", {"tuple(offered())": '("fp32", "fp16-storage")'})
    monkeypatch.setattr(report, "SOURCE_FOLDER", source)
    there = tmp_path / "04_webgpu_bundle" / "onnx"
    shutil.copytree(demo.folder / "onnx", there, ignore=shutil.ignore_patterns("vae_encoder"))
    for name in ("01_feasibility", "04_webgpu_bundle"):
        report.run_notebooks(tmp_path / name, {}, names=(name,))
        cells = nbformat.read(tmp_path / name / "notebooks" / f"{name}.ipynb", 4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"]
        assert '"network": "demo"' in (tmp_path / name / "results.json").read_text(encoding="utf-8")


def write_notebooks(folder, cells: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, code in cells.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), folder / f"{name}.ipynb")


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


def test_a_bad_parameter_ends_a_notebook_in_its_first_cell(tmp_path):
    with pytest.raises(report.NotebookError, match=r"05_benchmark.ipynb, cell [234]: LabError: there is no backend 'cuda'"):
        report.run_notebooks(tmp_path, {"backend": "cuda"}, names=("05_benchmark",))
    assert not (tmp_path / "onnx").exists()
