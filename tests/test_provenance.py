"""What dates a graph: every source and library that it depends on, and nothing else."""

import shutil

import pytest

from moebius_lab import provenance
from moebius_lab.evidence import loops as loops_module
from moebius_lab.files import digest_of
from moebius_lab.page import bundle
from moebius_lab.port import graphs
from moebius_lab.provenance import PACKAGE, libraries, made_by, sources

MAKERS = {"config", "model.checkpoint", "model.sampler", "model.lambda_layer", "model.unet"}
MAKERS |= {f"port.{name}" for name in ("autoencoder", "denoiser", "export", "graphs", "passes", "precision")}
UNRELATED = ("page.", "evidence.", "notebook.", "training.")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package's Python, copied, so that a test may edit it."""
    folder = tmp_path_factory.mktemp("copy") / PACKAGE.name
    return shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "demo", "web"))


def names(paths, package=PACKAGE) -> set[str]:
    return {path.relative_to(package).with_suffix("").as_posix().replace("/", ".") for path in paths}


def test_graphs_depend_on_all_that_makes_them_and_on_nothing_that_shows_them():
    found = names(sources(("port.graphs",)))
    assert found >= MAKERS and not [name for name in found if name.startswith(UNRELATED)]


def edited(path, package, module="port.graphs") -> str:
    """The digest of a module's sources while `path` is another than it was."""
    before = path.read_bytes()
    path.write_bytes(before + b"\n# edited\n")
    try:
        return digest_of(sources((module,), package), package)
    finally:
        path.write_bytes(before)


def test_an_edit_of_any_source_dates_the_graphs_and_an_edit_elsewhere_does_not(package):
    before = digest_of(sources(("port.graphs",), package), package)
    depends = set(sources(("port.graphs",), package))
    assert before == graphs.MADE_BY["code"]
    for path in package.rglob("*.py"):
        assert (edited(path, package) != before) == (path in depends), path.name


def test_graphs_of_an_earlier_autoencoder_are_made_again(small, package, monkeypatch):
    """The stamp listed its sources by hand and lacked the autoencoder's rewrites: an edit there left the old graphs in use."""
    assert small.stored_files("vae_decoder", "fp32")
    other = graphs.MADE_BY | {"code": edited(package / "port" / "autoencoder.py", package)}
    monkeypatch.setattr(graphs, "MADE_BY", other)
    assert not small.stored_files("vae_decoder", "fp32")


@pytest.mark.parametrize(
    "library", ["torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "numpy", "diffusers", "safetensors"]
)
def test_another_version_of_a_library_dates_the_graphs(small, library, monkeypatch):
    before = small.fingerprint()
    version = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: "0" if name == library else version(name))
    now = made_by("moebius_lab.port.graphs")
    assert now["code"] == graphs.MADE_BY["code"] and now["libraries"][library] == "0"
    monkeypatch.setattr(graphs, "MADE_BY", now)
    assert small.fingerprint() != before and not small.stored_files("step", "fp32")


def test_loops_and_previews_depend_on_more_than_graphs():
    loops, previews = names(sources(("evidence.loops",))), names(sources(("page.bundle",)))
    assert (
        loops > names(sources(("port.graphs",)))
        and {"inpainting.imaging", "inpainting.loop", "inpainting.backends"} <= loops
    )
    assert previews > names(sources(("port.graphs",))) and "inpainting.photographs" in previews
    assert loops_module.MADE_BY["code"] != graphs.MADE_BY["code"] != bundle.MADE_BY["code"]
    assert {"PIL", "scipy"} <= set(loops_module.MADE_BY["libraries"])


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("model.sampler", "from ..page.serve import Server"),
        ("model.sampler", "from ..page import serve"),
        ("model.sampler", "def late():\n    from ..page.serve import Server"),
        ("model.sampler", "import moebius_lab.page.serve"),
        ("config", "from .page import serve"),
        ("model.sampler", "from moebius_lab.page.serve import Server"),
        ("inpainting.masks", "from ..page.serve import Server"),
        ("inpainting.masks", "from ..page import serve"),
        ("training", "from ..page import serve"),
    ],
)
def test_an_import_is_followed_in_whatever_form(package, module, line):
    path = package.joinpath(*module.split(".")).with_suffix(".py")
    path = path if path.is_file() else package / module / "__init__.py"
    before = path.read_text(encoding="utf-8")
    assert "page.serve" not in names(sources((module,), package), package)
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    try:
        assert "page.serve" in names(sources((module,), package), package)
    finally:
        path.write_text(before, encoding="utf-8")


def test_libraries_are_found_by_the_names_that_modules_have():
    found = libraries([PACKAGE / "inpainting" / "imaging.py"])
    assert found["PIL"] == provenance.version("pillow") and "os" not in found and "moebius_lab" not in found
    assert "playwright" not in libraries([PACKAGE / "page" / "engines.py"]) and "playwright" in libraries(
        [PACKAGE / "page" / "engines.py"], optional=True
    )
