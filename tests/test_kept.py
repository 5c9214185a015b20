"""Every file that is kept, damaged in every way: made again with one line that says so, or refused with one that says what to do."""

import dataclasses
import os
import shutil
import sys

import numpy as np
import pytest
from damage import damages, spoil

from moebius_lab.__main__ import main
from moebius_lab.evidence import parity
from moebius_lab.evidence.benchmark import results
from moebius_lab.evidence.reference import verify_reference
from moebius_lab.model.hub import Hub, HubError
from moebius_lab.notebook import report
from moebius_lab.page import bundle
from moebius_lab.page.bundle import read_manifest, write_bundle
from moebius_lab.page.publish import PublishError, plan, write_site

GRAPH = "onnx/int8/vae_decoder"


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """A folder with all that a run of SMALL keeps: graphs, a loop, a preview, a bundle, evidence."""
    folder = tmp_path_factory.mktemp("kept")
    for form in ("fp32", "int8", "recordings"):
        shutil.copytree(small.folder / "onnx" / form, folder / "onnx" / form)
    bench = dataclasses.replace(small, folder=folder)
    write_bundle(bench, folder / "bundle", ("fp32",))
    bench.loop("int8")
    rows = parity.compare_precisions(
        parity.reference_outputs(small.net, small.vae), small.net, bench.stored, ("fp32",), parity.onnx_run, parity.CPU
    )
    bench.record("03_parity", rows=parity.table(rows).to_dict("records"))
    return bench


@pytest.fixture
def bench(made, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(made, folder=tmp_path)


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines_about(text: str, path) -> list[str]:
    return [line for line in text.replace("\r", "\n").splitlines() if str(path) in line]


@damages
@pytest.mark.parametrize("name", ["files.json", "vae_decoder.onnx", "vae_decoder.000.bin"])
def test_a_damaged_graph_is_made_again(bench, capsys, name, damage):
    before, path = contents(bench.folder / GRAPH), bench.folder / GRAPH / name
    spoil(path, damage)
    assert bench.stored_files("vae_decoder", "int8") == []
    [line] = lines_about(capsys.readouterr().err, path)
    assert "made again" in line
    bench.stored("int8")
    assert contents(bench.folder / GRAPH) == before


def test_zeros_in_a_file_of_weights_are_noticed_though_its_size_is_right(bench, capsys):
    """4 KB of zeros gave another picture, without a word, although the SHA-256 was known."""
    path = max((bench.folder / "onnx/int8/step").glob("*.bin"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[8192:12288] = bytes(4096)
    path.write_bytes(data)
    expected = bench.loop("int8").picture  # was run before, on whole graphs
    shutil.rmtree(bench.folder / "loops")
    assert np.array_equal(bench.loop("int8").picture, expected)
    assert "its SHA-256 is not the recorded one" in capsys.readouterr().err


@damages
def test_a_damaged_loop_is_run_again(bench, capsys, damage):
    path, before = bench.folder / "loops" / "int8-image.npz", bench.loop("int8")
    spoil(path, damage)
    again = bench.loop("int8")
    [line] = lines_about(capsys.readouterr().err, path)
    assert "run again" in line
    assert all(np.array_equal(getattr(again, name), getattr(before, name)) for name in ("picture", "latents", "clean"))
    assert bench.loop("int8").seconds == again.seconds and not lines_about(capsys.readouterr().err, path)


def test_a_loop_whose_arrays_have_other_shapes_is_run_again(bench, capsys):
    path, before = bench.folder / "loops" / "int8-image.npz", bench.loop("int8")
    with np.load(path) as kept:
        arrays = dict(kept)
    for name, array in (("picture", before.picture[1:]), ("latents", before.latents[0]), ("steps", np.ones(3))):
        np.savez(path, **arrays | {name: array})
        assert np.array_equal(bench.loop("int8").picture, before.picture)
        assert "has shape" in capsys.readouterr().err


@damages
def test_a_damaged_preview_is_made_again(bench, capsys, damage):
    path = bench.folder / "onnx" / "preview.json"
    before = path.read_bytes()
    spoil(path, damage)
    write_bundle(bench, bench.folder / "bundle", ("fp32",))
    [line] = lines_about(capsys.readouterr().err, path)
    assert "made again" in line and path.read_bytes() == before


@damages
@pytest.mark.parametrize("name", ["manifest.json", "precache.js", "engine.js", "weights", "runtime", "samples"])
def test_a_damaged_bundle_is_refused_where_it_is_read_and_made_whole_where_it_is_made(bench, name, damage):
    folder = bench.folder / "bundle"
    before = contents(folder)
    files = [file for file in folder.rglob("*") if file.is_file() and name in file.relative_to(folder).parts]
    path = max(files, key=lambda file: file.stat().st_size)
    spoil(path, damage)
    if name == "manifest.json":
        with pytest.raises(ValueError, match="manifest.json .*make the bundle again"):
            read_manifest(folder)
    if name in ("manifest.json", "weights", "runtime"):
        with pytest.raises(ValueError, match=f"{path.name} .*make the bundle again"):
            write_site(folder, bench.folder / "site")
        assert not (bench.folder / "site").exists()
    write_bundle(bench, folder, ("fp32",))
    assert contents(folder) == before


def test_a_bundle_that_was_stopped_before_its_end_is_finished(bench):
    """Nothing but weights was there then, and it was taken for somebody's own folder."""
    folder = bench.folder / "another"

    class Stopped(Exception):
        pass

    def stop(name: str) -> None:
        if name.startswith("runtime"):
            raise Stopped

    with pytest.raises(Stopped):
        write_bundle(bench, folder, ("fp32",), on_file=stop)
    assert any((folder / "weights").iterdir()) and not (folder / "manifest.json").exists()
    write_bundle(bench, folder, ("fp32",))
    assert contents(folder) == contents(bench.folder / "bundle")


@damages
def test_damaged_evidence_is_not_published(bench, damage):
    spoil(bench.folder / "results" / "03_parity.json", damage)
    with pytest.raises(PublishError, match="03_parity.json .*run `python -m moebius_lab run.*again"):
        plan(bench, bench.folder / "bundle", "someone/small")


@damages
def test_a_damaged_file_of_measurements_is_named_with_what_to_do(tmp_path, capsys, damage):
    source = next((report.SOURCE_FOLDER / "results").glob("*.json"))
    path = shutil.copy(source, tmp_path / "mine.json")
    spoil(path, damage)
    damaged = path.read_bytes()
    for options in ([], ["--merge", str(tmp_path / "whole.json")]):
        assert main(["results", str(path), str(source), *options]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "mine.json" in line and "measure again" in line
    with pytest.raises(ValueError, match="mine.json .*measure again"):
        results.Results(path, {"machine": {}})
    assert path.read_bytes() == damaged and not (tmp_path / "whole.json").exists()


@damages
def test_a_damaged_record_of_published_files_is_named_with_what_to_do(tmp_path, damage):
    hub = Hub(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"weights")
    hub.check(tmp_path / "a.bin")
    spoil(tmp_path / "lock.json", damage)
    with pytest.raises(HubError, match="lock.json .*delete it"):
        hub.check(tmp_path / "a.bin")


@damages
@pytest.mark.parametrize("name", ["pipeline_small.npz", "small_state_dict.json"])
def test_a_damaged_reference_file_is_named_with_what_to_do(tmp_path, name, damage):
    path = tmp_path / name
    shutil.copy(report.SOURCE_FOLDER.parent / "tests" / "data" / name, path)
    spoil(path, damage)
    with pytest.raises(ValueError, match=f"{name}.*copy it again"):
        verify_reference(tmp_path)


@damages
@pytest.mark.parametrize("name", ["files.json", "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"])
def test_a_damaged_runtime_is_installed_again(tmp_path, monkeypatch, capsys, name, damage):
    """By an npm that copies what is installed here already, so that no registry is asked."""
    installed = bundle.npm_packages()
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\nmkdir node_modules && cp -r "{installed}/onnxruntime-web" node_modules\n', encoding="utf-8")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    modules = bundle.npm_packages()
    before = contents(modules)
    assert modules.is_relative_to(tmp_path)
    spoil(modules.parent / name, damage)
    capsys.readouterr()
    assert bundle.npm_packages() == modules and contents(modules) == before
    assert len(capsys.readouterr().err.splitlines()) == 1
