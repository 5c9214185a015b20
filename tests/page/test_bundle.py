"""The bundle as a folder, the commands that make and serve it, and the server."""

import gzip
import json
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import onnx
import pytest

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.config import PRESETS, RUNS, SMALL, SOLVERS, STEP_UNGUIDED
from moebius_lab.files import file_sha256
from moebius_lab.inpainting.loop import Settings, preset
from moebius_lab.page import bundle
from moebius_lab.page.bundle import read_manifest, shipped_files, write_bundle
from moebius_lab.page.serve import Server
from moebius_lab.port.export import operator_counts
from moebius_lab.port.precision import CHUNK_BYTES

PRECISIONS = ("fp16-storage", "fp16", "fp32")
CPU_OPERATORS = {"Attention", "GridSample", "Mod", "GroupNormalization"}
"""Operators that ONNX Runtime Web 1.30 hands to the CPU beside its WebGPU provider, wholly or in part, as seen running."""


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "page"
    write_bundle(small, folder, PRECISIONS)
    return folder


def get(url: str, **headers: str):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)


def test_the_manifest_describes_every_file(folder):
    manifest = read_manifest(folder)
    assert list(manifest["precisions"]) == list(PRECISIONS) and manifest["network"] == "small"
    table = shipped_files(manifest)
    assert table.sha256.str.fullmatch("[0-9a-f]{64}").all() and (table.MB > 0).all()
    named = set()
    for form in manifest["precisions"].values():
        assert set(form["graphs"]) == {"vae_encoder", "step", "vae_decoder"}
        for files in form["graphs"].values():
            assert files[0]["name"].endswith(".onnx") and all(file["name"].endswith(".bin") for file in files[1:])
            for file in files:
                path = folder / "weights" / file["file"]
                named.add(path)
                assert path.stat().st_size == file["bytes"] <= CHUNK_BYTES and file_sha256(path) == file["sha256"]
                assert file["sha256"][:12] in path.name
    assert named == set((folder / "weights").iterdir())
    halves = manifest["precisions"]
    assert halves["fp16"]["graphs"]["vae_decoder"] == halves["fp16-storage"]["graphs"]["vae_decoder"]  # stored once
    assert halves["fp16"]["requires"] == ["shader-f16"] and halves["fp16-storage"]["bytes"] < 0.7 * halves["fp32"]["bytes"]


def test_constants_are_those_of_config(folder):
    constants = read_manifest(folder)["constants"]
    assert constants == bundle.constants(SMALL)
    assert (constants["image_size"], constants["latent_size"], constants["scaling_factor"]) == (128, 16, 0.13025)


def test_presets_solvers_and_runs_are_those_of_python(folder):
    manifest = read_manifest(folder)
    assert list(manifest["presets"]) == list(PRESETS) and list(manifest["solvers"]) == list(SOLVERS)
    for name, entry in manifest["presets"].items():
        values = {field: value for field, value in entry.items() if field not in ("label", "note")}
        assert Settings(**values | {"guidance_interval": tuple(values["guidance_interval"])}) == preset(name)
    runs = manifest["runs"]
    assert {run: entry["graph"] for run, entry in runs.items()} == RUNS
    model = onnx.load(
        folder / "weights" / manifest["precisions"]["fp32"]["graphs"]["step"][0]["file"], load_external_data=False
    )
    free = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    assert runs["step"]["sizes"] == {"n": 2} and runs[STEP_UNGUIDED]["sizes"] == {"n": 1} and free == {"n"}
    assert not runs["vae_encoder"]["sizes"] and not runs["vae_decoder"]["sizes"]


def test_colours_of_the_latents_are_a_finite_map(folder):
    rows = read_manifest(folder)["preview"]
    assert len(rows) == 5 and all(len(row) == 3 and all(abs(value) < 10 for value in row) for row in rows)


def test_the_runtime_is_pinned_and_only_what_is_used_is_there(folder):
    runtime = read_manifest(folder)["runtime"]
    wanted = json.loads((bundle.WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]
    assert runtime["version"] == wanted == "1.30.0"
    used = {build["module"] for build in runtime["builds"].values()} | {
        b["wasm"]["file"] for b in runtime["builds"].values()
    }
    assert used == {f"runtime/1.30.0/{path.name}" for path in (folder / "runtime" / "1.30.0").iterdir()} and len(used) == 6
    lock = (bundle.WEB / "package-lock.json").read_text(encoding="utf-8")
    assert "://" not in lock and '"version": "1.30.0"' in lock


def test_the_service_worker_knows_every_file_of_the_page(folder):
    precache = json.loads(
        (folder / "precache.js").read_text(encoding="utf-8").removeprefix("self.PRECACHE = ").rstrip(";\n")
    )
    assert precache["version"] == read_manifest(folder)["version"]
    prefix = f"page-{precache['version']}/"
    assert read_manifest(folder)["page"] == prefix
    page = {name if name in bundle.UNVERSIONED else prefix + name for name in bundle.page_files()}
    assert page | {"manifest.json"} < set(precache["files"]) and all((folder / name).is_file() for name in precache["files"])


def test_the_page_names_only_modules_of_its_own_version(folder):
    prefix = read_manifest(folder)["page"]
    text = (folder / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:href|src)="([^"#:]+)"', text)
    assert len(named) >= 8 and all(name.startswith(prefix) and (folder / name).is_file() for name in named)
    assert f'src="{prefix}interface/main.js"' in text and f'href="{prefix}interface/style.css"' in text


def test_samples_come_with_masks_and_credits(folder):
    samples = read_manifest(folder)["samples"]
    assert len(samples) >= 3
    for sample in samples:
        assert (folder / sample["image"]).is_file() and (folder / sample["mask"]).is_file() and "," in sample["credit"]


def test_a_second_writing_copies_nothing_and_removes_what_is_old(small, folder):
    version = read_manifest(folder)["version"]
    (folder / "old.js").write_text("", encoding="utf-8")
    (folder / "weights" / "old.bin").write_text("", encoding="utf-8")
    (folder / "sw").mkdir()
    copied = []
    assert write_bundle(small, folder, PRECISIONS, on_file=copied.append)["version"] == version
    assert not copied and not any((folder / name).exists() for name in ("old.js", "weights/old.bin", "sw"))
    engine = read_manifest(folder)["page"] + "engine/engine.js"
    (folder / engine).write_text("damaged", encoding="utf-8")
    write_bundle(small, folder, PRECISIONS, on_file=copied.append)
    assert copied == [engine]


def test_another_version_has_another_name(small, tmp_path, folder):
    manifest = write_bundle(small, tmp_path / "page", ("fp32",), weights_base="https://weights.example/small/")
    assert manifest["version"] != read_manifest(folder)["version"]
    assert manifest["weights_base"] == "https://weights.example/small/"


def test_what_cannot_be_bundled_is_refused(small, tmp_path):
    with pytest.raises(LabError, match="fp8.*choose from"):
        write_bundle(small, tmp_path / "page", ("fp8",))
    with pytest.raises(LabError, match="end in a slash"):
        write_bundle(small, tmp_path / "page", weights_base="https://weights.example/small")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(LabError, match="something other than a bundle"):
        write_bundle(small, tmp_path / "letters", ("fp32",))
    assert (tmp_path / "letters" / "a.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(LabError, match="not a complete bundle"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(LabError, match="format 99"):
        read_manifest(tmp_path)


def test_every_operator_runs_on_webgpu(small):
    counted = [operator_counts(path) for path in small.stored("fp32").values()]
    assert all(counted) and not [op for operators in counted for op in operators if op in CPU_OPERATORS]


def test_the_commands_fail_in_one_line(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    assert "python -m moebius_lab bundle" in capsys.readouterr().err
    arguments = ["bundle", "--output-dir", str(tmp_path), "--network", "small", "--weights", "deterministic"]
    assert main([*arguments, "--precisions", "fp8"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- the server --------------------------------------------------------------------------------------------------------


def test_the_server_isolates_names_types_and_compresses_text(folder):
    with Server(folder, prefix="/a/b/") as server:
        page = get(server.url, **{"Accept-Encoding": "gzip"})
        assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert page.headers["Content-Type"] == "text/html"
        engine = read_manifest(folder)["page"] + "engine/engine.js"
        script = get(server.url + engine, **{"Accept-Encoding": "gzip"})
        assert script.headers["Content-Type"] == "text/javascript" and script.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(script.read()) == (folder / engine).read_bytes()
        wasm = next((folder / "runtime").glob("*/*.wasm")).relative_to(folder).as_posix()
        assert get(server.url + wasm).headers["Content-Type"] == "application/wasm"
        assert server.requests[0] == "/a/b/"


def test_the_server_sends_ranges(folder):
    path = next((folder / "weights").glob("step-*.bin"))
    whole = path.read_bytes()
    with Server(folder) as server:
        url = f"{server.url}weights/{path.name}"
        part = get(url, Range="bytes=10-29")
        assert part.status == 206 and part.read() == whole[10:30]
        assert part.headers["Content-Range"] == f"bytes 10-29/{len(whole)}"
        assert get(url, Range=f"bytes={len(whole) - 5}-").read() == whole[-5:]
        with pytest.raises(urllib.error.HTTPError, match="416"):
            get(url, Range=f"bytes={len(whole)}-")


def test_the_server_gives_nothing_else_away(folder):
    (folder.parent / "secret.txt").write_text("secret", encoding="utf-8")
    with Server(folder, prefix="/a/") as server:
        for path in ("/", "/manifest.json", "/a/../secret.txt", "/a/%2e%2e/secret.txt", "/a/weights/", "/a/nothing"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(f"http://127.0.0.1:{server.port}{path}")


def test_other_origins_may_read_only_where_told(folder):
    with Server(folder) as closed, Server(folder, open_to_all=True, isolated=False) as open_to_all:
        assert "Access-Control-Allow-Origin" not in get(closed.url + "manifest.json").headers
        headers = get(open_to_all.url + "manifest.json").headers
        assert headers["Access-Control-Allow-Origin"] == "*" and headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        with pytest.raises(LabError, match="choose another with --port"):
            Server(folder, port=closed.port)


def test_a_disk_without_room_is_said_before_the_bundle_is_touched(small, folder, monkeypatch):
    before = (folder / "manifest.json").read_bytes()
    small.stored("int8")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    write_bundle(small, folder, PRECISIONS)  # all weights are there: nothing is needed
    with pytest.raises(LabError, match=r"a bundle's weights needs \d+ MB but only 0 MB are free"):
        write_bundle(small, folder, (*PRECISIONS, "int8"))
    assert (folder / "manifest.json").read_bytes() == before


def test_onnx_runtime_web_from_a_folder_that_somebody_brought(monkeypatch, tmp_path):
    package = tmp_path / "onnxruntime-web"
    package.mkdir()
    monkeypatch.setenv("MOEBIUS_NODE_MODULES", str(tmp_path))
    with pytest.raises(LabError, match="holds onnxruntime-web none where 1.30.0 is needed"):
        bundle.npm_packages()
    (package / "package.json").write_text('{"version": "1.30.0"}', encoding="utf-8")
    assert bundle.npm_packages() == tmp_path


def test_the_answer_says_what_was_seen_and_what_was_not():
    manifest = {"precisions": {"fp32": {"bytes": 56e6}, "int8": {"bytes": 16e6}}}
    text = bundle.answer(manifest, {"step": {"WebGpu": 1094}, "vae_decoder": {"WebGpu": 388}}, [9, 0], {})
    assert "(fp32 56 MB, int8 16 MB)" in text and "every node on WebGPU" in text and "1,094 of the step" in text
    assert text.endswith("A first visit makes 9 requests for weights, a second one none at all.")
    text = bundle.answer(manifest, {"step": {"WebGpu": 1, "CPU": 2}}, [9, 3], {})
    assert "**2 nodes elsewhere than on WebGPU**" in text and text.endswith("a second one **[3]**.")
    text = bundle.answer(manifest, {}, [], {"where the nodes are": "no browser"})
    assert (
        "WebGPU" not in text
        and "visit" not in text
        and text.endswith("**Not shown here:** where the nodes are (no browser).")
    )
