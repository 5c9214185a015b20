import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from hub_server import REVISION, HubServer
from huggingface_hub import constants
from PIL import Image

from moebius_lab.__main__ import main
from moebius_lab.evidence import parity
from moebius_lab.notebook.report import write_report
from moebius_lab.page import publish
from moebius_lab.page.bundle import write_bundle
from moebius_lab.page.links import broken_links
from moebius_lab.page.publish import PublishError, plan, weights_base, write_site

REPO = "someone/moebius-small"


@pytest.fixture(scope="module")
def published(small, tmp_path_factory):
    """A run of SMALL with its evidence, and its bundle."""
    folder = tmp_path_factory.mktemp("publish")
    shutil.copytree(small.folder / "onnx", folder / "onnx")
    bench = dataclasses.replace(small, folder=folder)
    references = parity.reference_outputs(small.net, small.vae)
    precisions = ("fp32", "fp16")  # fp16's autoencoder is fp16-storage's
    rows = parity.compare_precisions(references, small.net, bench.stored, precisions, parity.onnx_run, parity.CPU)
    bench.record("03_parity", rows=parity.table(rows).to_dict("records"))
    write_bundle(bench, folder / "bundle", precisions)
    return bench


@pytest.fixture
def bench(published, tmp_path):
    """A copy that a test may spoil."""
    for name in ("results", "bundle", "onnx"):
        shutil.copytree(published.folder / name, tmp_path / name)
    return dataclasses.replace(published, folder=tmp_path)


def change(path, edit):
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_the_plan_lists_every_file_with_its_bytes_and_hash(published):
    files = {file.path: file for file in plan(published, published.folder / "bundle", REPO)}
    manifest = json.loads((published.folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    weights = [f for form in manifest["precisions"].values() for files in form["graphs"].values() for f in files]
    assert set(files) == {"README.md", "LICENSE", "results.json", "manifest.json"} | {
        f"weights/{f['file']}" for f in weights
    }
    for file in files.values():
        data = file.source.encode() if isinstance(file.source, str) else file.source.read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)


def test_the_card_says_what_licence_how_and_how_well(published):
    card = next(file for file in plan(published, published.folder / "bundle", REPO) if file.path == "README.md").source
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0" and "webgpu" in head["tags"]
    rows = json.loads((published.folder / "results" / "03_parity.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        assert f"| {row['graph']} | {row['output']} |" in card and f"{row['max_error']:.2g}" in card
    for words in ("## Licence", "opset 18", "## Sizes", "| fp32 |", "2606.19195", weights_base(REPO)):
        assert words in card


@pytest.mark.parametrize(
    ("weights", "license_"), [("places2", "mit"), ("demo", "apache-2.0"), ("deterministic", "apache-2.0")]
)
def test_the_card_names_the_licences_of_code_and_weights_apart(weights, license_):
    assert yaml.safe_load(publish._front_matter(weights).strip("-"))["license"] == license_
    code, words = publish._licence(weights).split("\n\n")
    assert code.startswith("**Code** (") and "Apache-2.0" in code and words.startswith("**Weights**: ")
    if weights == "places2":
        for said in (
            "MIT by the cards",
            "hustvl/Moebius",
            "ft_places2",
            "hustvl/PixelHacker",
            "b88d462",
            "dllu/rawpuppy",
            "2026-08-27",
        ):
            assert said in words


def test_results_of_other_code_are_not_sent(bench):
    (bench.folder / "results" / "05_benchmark.json").write_text(
        json.dumps({"made_from": "0", "timings": []}), encoding="utf-8"
    )
    sent = next(file for file in plan(bench, bench.folder / "bundle", REPO) if file.path == "results.json").source
    assert set(json.loads(sent)) == {"03_parity"}


def spoil(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: (b / "results/03_parity.json").unlink(), "no evidence.*moebius_lab run --network small"),
        (
            lambda b: change(b / "results/03_parity.json", lambda d: d["rows"][0].update(verdict="DIFFERENT")),
            "parity failed",
        ),
        (lambda b: change(b / "results/03_parity.json", lambda d: d["rows"].clear()), "not shown for .*fp32 vae_encoder"),
        (lambda b: change(b / "results/03_parity.json", lambda d: d.update(made_from="0")), "other weights or other code"),
        (lambda b: shutil.rmtree(b / "onnx/fp32/step"), "step in fp32 is not this run's"),
        (lambda b: shutil.rmtree(b / "onnx/fp16-storage/vae_encoder"), "vae_encoder in fp16 is not this run's"),
        (lambda b: (b / "bundle/manifest.json").unlink(), "not a complete bundle"),
        (lambda b: spoil(next((b / "bundle/weights").glob("*.bin"))), "not the file that manifest.json names"),
    ],
)
def test_nothing_is_published_without_evidence(bench, damage, words):
    plan(bench, bench.folder / "bundle", REPO)
    damage(bench.folder)
    with pytest.raises(ValueError, match=words):
        plan(bench, bench.folder / "bundle", REPO)


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a b/c", "../x"])
def test_a_name_that_is_none(published, repo):
    with pytest.raises(PublishError, match="not the name of a repository"):
        plan(published, published.folder / "bundle", repo)


def command(published, server, *options):
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_right"}
    network = ["--network", "small", "--weights", "deterministic", "--output-dir", str(published.folder)]
    arguments = [sys.executable, "-m", "moebius_lab", "publish", REPO, *network, *options]
    return subprocess.run(arguments, capture_output=True, env=environment, encoding="utf-8")


@pytest.mark.slow
def test_the_command_sends_nothing_unless_told_and_then_exactly_what_it_showed(published):
    with HubServer() as server:
        server.state.token = "hf_right"
        shown = command(published, server)
        assert shown.returncode == 0 and "Nothing was sent" in shown.stdout, shown.stderr
        assert not server.state.requests

        sent = command(published, server, "--send")
        assert sent.returncode == 0 and f"revision {REVISION}" in sent.stdout, sent.stderr
        assert f"/{REPO}/resolve/{REVISION}/weights/" in sent.stdout
        assert server.state.repos == [REPO]
        [commit] = server.state.commits
    lines = [line.split() for line in shown.stdout.split("bytes in")[0].splitlines()[:-1]]
    announced = {path: (int(size.replace(",", "")), digest) for size, digest, path in lines}
    assert {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in commit.items()} == announced


def test_a_hub_that_refuses_is_said_in_one_line(published, monkeypatch, capsys, tmp_path):
    network = ["--network", "small", "--weights", "deterministic", "--output-dir", str(published.folder)]
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        server.state.token = "hf_other"
        for token, words in (("hf_right", "HF_TOKEN"), ("", "needs a token")):
            monkeypatch.setenv("HF_TOKEN", token)
            assert main(["publish", REPO, *network, "--send"]) == 2
            said = capsys.readouterr().err
            assert words in said.splitlines()[-1] and "Traceback" not in said
            assert not server.state.commits


def test_the_site_leaves_out_weights_that_lie_elsewhere(bench, tmp_path):
    size = write_site(bench.folder / "bundle", tmp_path / "site")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert (tmp_path / "site" / "weights").is_dir() and size == sum(path.stat().st_size for path in files)
    write_bundle(bench, bench.folder / "bundle", ("fp32",), weights_base=weights_base(REPO))
    write_site(bench.folder / "bundle", tmp_path / "other")
    assert (tmp_path / "other" / "index.html").is_file() and not (tmp_path / "other" / "weights").exists()
    with pytest.raises(PublishError, match="not empty"):
        write_site(bench.folder / "bundle", tmp_path / "other")


def test_a_run_s_report_goes_along(bench, tmp_path):
    run, site = tmp_path / "run", tmp_path / "site"
    with pytest.raises(PublishError, match="no report.*moebius_lab run"):
        write_site(bench.folder / "bundle", site, run)
    (run / "notebooks").mkdir(parents=True)
    (run / "report").mkdir()
    (run / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(run / "pictures" / "a_figure.png")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 1 · First")]), run / "notebooks" / "a.ipynb"
    )
    write_report(run, ("a",))
    write_site(bench.folder / "bundle", site, run)
    assert broken_links([site / "index.html", *(site / "report").glob("*.html")]) == []
    assert (
        (site / "pictures" / "a_figure.png").is_file()
        and (site / "results.json").is_file()
        and not (site / "notebooks").exists()
    )
    (run / "pictures" / "a_figure.png").unlink()
    with pytest.raises(PublishError, match="lead nowhere.*a_figure.png"):
        write_site(bench.folder / "bundle", tmp_path / "other", run)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("limit", "words"), [("PAGES_FILE_BYTES", "allowed for one file"), ("PAGES_SITE_BYTES", "allowed")])
def test_a_site_beyond_the_hosts_limits_is_refused(published, tmp_path, monkeypatch, limit, words):
    monkeypatch.setattr(publish, limit, 10_000)
    with pytest.raises(PublishError, match=words + ".*--weights-base"):
        write_site(published.folder / "bundle", tmp_path / "site")
    assert not (tmp_path / "site").exists()
