import json
import shutil

import pytest

from moebius_lab import LabError, __main__
from moebius_lab.config import GRAPHS, RUNS
from moebius_lab.evidence.check import CheckError, check_port
from moebius_lab.page.bundle import write_bundle
from moebius_lab.page.publish import write_site
from moebius_lab.page.serve import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port(tiny, tmp_path_factory):
    """A port of TINY as it is published: the page on one origin, under a sub-path and without headers of its own, the
    weights on another."""
    folder = tmp_path_factory.mktemp("port")
    (folder / "weights").mkdir()
    with Server(folder / "weights", open_to_all=True) as weights:
        write_bundle(tiny, folder / "bundle", ("fp16-storage", "fp32"), weights_base=weights.url)
        write_site(folder / "bundle", folder / "site")
        shutil.copytree(folder / "bundle" / "weights", folder / "weights", dirs_exist_ok=True)
        with Server(folder / "site", prefix="/project/", isolated=False) as page:
            yield folder, page, weights


def test_page_and_weights_of_two_origins_run_and_compute_what_pytorch_computes(port):
    _, page, weights = port
    page.requests.clear(), weights.requests.clear()
    said = []
    rows = check_port(page.url + "index.html", "fp32", "wasm", "none", GRAPHS, said.append)
    assert all(row.ok for row in rows) and {row.backend for row in rows} == {"ONNX Runtime", "Chromium, wasm"}
    assert {row.graph for row in rows} == set(RUNS)
    text = " ".join(said)
    assert "have the hashes" in text and "PyTorch" in text and "Chromium" in text
    assert "with one thread" not in text  # the service worker isolates the page where the host does not
    assert not [
        path for path in page.requests if path.endswith(".bin") and "/recordings/" not in path
    ]  # which lie beside the page
    fetched = [path for path in weights.requests if path.endswith(".bin")]
    assert fetched and all(fetched.count(path) >= 2 for path in fetched)  # by the check, and by the page


def test_the_command_names_what_is_equal(port, capsys):
    _, page, _ = port
    assert __main__.main(["check", page.url, "--adapter", "software"]) == 0
    out = capsys.readouterr().out
    assert "in fp16-storage" in out and "Chromium, webgpu" in out and "DIFFERENT" not in out


def damaged(port, tmp_path, damage):
    """A copy of the port after `damage(folder)`, checked."""
    folder, _, weights = port
    shutil.copytree(folder / "site", tmp_path / "site")
    damage(tmp_path / "site")
    with Server(tmp_path / "site") as page:
        check_port(page.url, "fp32", "wasm", "none")


def change(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | facts), encoding="utf-8")


def rename_first_file(path, name):
    manifest = json.loads(path.read_text(encoding="utf-8"))
    next(iter(manifest["precisions"]["fp32"]["graphs"].values()))[0]["name"] = name
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda site: next(site.glob("page-*/engine/engine.js")).unlink(), "engine.js answers 404"),
        (lambda site: (site / "manifest.json").write_text("<html>", encoding="utf-8"), "not the manifest of a port"),
        (lambda site: change(site / "manifest.json", format=99), "has format 99"),
        (lambda site: change(site / "manifest.json", version="0"), "of different versions"),
        (lambda site: change(site / "manifest.json", precisions={"fp32": {}}), "manifest.json is damaged"),
        (lambda site: change(site / "manifest.json", weights_base=None), "manifest.json is damaged.*weights_base"),
        (lambda site: rename_first_file(site / "manifest.json", "../../../escaped.onnx"), "manifest.json is damaged.*name"),
        (lambda site: (site / "precache.js").write_text("<html>", encoding="utf-8"), "precache.js is damaged"),
        (lambda site: change(site / "manifest.json", weights_base="nowhere/"), "nowhere/vae_encoder.*answers 404"),
        (lambda site: next((site / "runtime").glob("*/*.wasm")).write_bytes(b"x"), "has 1 bytes.*the manifest says"),
    ],
)
def test_a_port_that_is_not_whole(port, tmp_path, damage, words):
    with pytest.raises(CheckError, match=words):
        damaged(port, tmp_path, damage)


def test_weights_that_are_damaged_or_that_no_page_may_read(port, tmp_path):
    folder, _, _ = port
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with Server(tmp_path / "weights") as closed:
        with pytest.raises(CheckError, match="Access-Control-Allow-Origin"):
            damaged(port, tmp_path / "a", lambda site: change(site / "manifest.json", weights_base=closed.url))
    file = max((tmp_path / "weights").glob("*.bin"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with Server(tmp_path / "weights", open_to_all=True) as weights:
        with pytest.raises(CheckError, match=f"{file.name} has .* the manifest says"):
            damaged(port, tmp_path / "b", lambda site: change(site / "manifest.json", weights_base=weights.url))


@pytest.mark.parametrize(
    "url", ["page", "ftp://127.0.0.1/", "http://[::1/", "http://127.0.0.1:99999/", "http://127.0.0.1:9/"]
)
def test_addresses_that_lead_nowhere(url):
    with pytest.raises(LabError, match="is not an address|does not answer"):
        check_port(url)


def test_a_precision_or_a_provider_that_is_not_offered(port):
    _, page, _ = port
    with pytest.raises(LabError, match="'int8' is not published; choose one of fp16-storage, fp32"):
        check_port(page.url, "int8")
