import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import moebius_lab
from moebius_lab import LabError
from moebius_lab.config import DEMO, GRAPHS, OPSET, STEP_UNGUIDED
from moebius_lab.notebook.workbench import prepare
from moebius_lab.port.export import example_inputs, operator_counts, opset_history, written_down
from moebius_lab.port.passes import SCOPES
from moebius_lab.port.sessions import OnnxBackend, open_session


def test_graphs_are_opset_18_without_three_dimensional_convolutions(small):
    for path in (*small.stored().values(), small.stored("straightforward")["step"]):
        model = onnx.load(str(path))
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
        dims = {init.name: len(init.dims) for init in model.graph.initializer}
        kernels = [dims[node.input[1]] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in dims]
        assert kernels and set(kernels) == {4}


def test_a_graph_does_not_tell_where_it_was_made(small):
    """The exporter notes Python's call stack at every node; a published graph then held its maker's paths."""
    library = str(Path(moebius_lab.__file__).parent).encode()
    for precision in ("fp32", "int8", "straightforward"):
        for path in small.stored(precision).values():
            body = path.read_bytes()
            assert library not in body and b"site-packages" not in body and b"stack_trace" not in body
    model = onnx.load(small.stored()["step"], load_external_data=False)
    assert any(note.key == SCOPES for node in model.graph.node for note in node.metadata_props)  # which parity reads


def test_the_rewritten_step_has_fewer_convolutions_than_the_straightforward_one_and_gives_the_same(small):
    paths = (small.stored("straightforward")["step"], small.stored()["step"])
    straightforward, rewritten = (operator_counts(path)["Conv"] for path in paths)
    assert straightforward > rewritten > 100
    sessions = [open_session(path) for path in paths]
    for run in ("step", STEP_UNGUIDED):
        feeds = {name: value.numpy() for name, value in example_inputs(small.config)[run].items()}
        published, ours = (session.run(["next_state", "noise"], feeds) for session in sessions)
        assert all(abs(a - b).max() < 2e-5 for a, b in zip(published, ours))
        assert ours[1].shape == (len(feeds["conditions"]), 4, 16, 16)


def test_no_graph_computes_a_shape_so_all_of_it_can_be_captured(small):
    for path in (*small.stored().values(), small.stored("straightforward")["step"]):
        assert not {"Shape", "ConstantOfShape", "Expand"} & set(operator_counts(path))


@pytest.mark.slow
def test_graphs_are_made_again_only_when_something_changed(small, tmp_path):
    path = small.stored()["vae_decoder"]
    stamp, before = path.with_name("files.json"), path.stat().st_mtime_ns
    assert small.stored()["vae_decoder"].stat().st_mtime_ns == before
    text = stamp.read_text(encoding="utf-8")
    stamp.write_text(text.replace('"deterministic"', '"other"'), encoding="utf-8")
    assert small.stored()["vae_decoder"].stat().st_mtime_ns > before and stamp.read_text(encoding="utf-8") == text
    weights = path.with_name("vae_decoder.000.bin")
    weights.write_bytes(weights.read_bytes()[:-1])  # as if the disk had been full
    small.stored()
    assert weights.stat().st_size == next(f["bytes"] for f in json.loads(text)["files"] if f["name"] == weights.name)


def test_fp16_is_the_denoiser_s_and_shares_the_autoencoder_with_fp16_storage(small):
    fp16, storage = small.stored("fp16"), small.stored("fp16-storage")
    assert fp16["vae_decoder"] == storage["vae_decoder"] and fp16["step"] != storage["step"]
    mixed = small.stored("int8,vae_decoder=fp32")
    assert [path.parent.parent.name for path in mixed.values()] == ["int8", "int8", "fp32"]


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("fp8", "precision 'fp8' is unknown; choose one of fp32"),
        ("", "precision '' is unknown"),
        ("int8,unet=fp32", "there is no graph 'unet'; the graphs are vae_encoder"),
        ("step=int8", "gives vae_encoder no precision"),
    ],
)
def test_a_precision_that_cannot_be_used_fails_before_anything_is_loaded(precision, words, tmp_path):
    with pytest.raises(LabError, match=words):
        prepare("small", "deterministic", output_dir=str(tmp_path), precision=precision)
    assert not list(tmp_path.iterdir())


def test_graphs_that_are_missing_damaged_or_of_another_network(small, tmp_path):
    paths = {graph: tmp_path / f"{graph}.onnx" for graph in GRAPHS}
    with pytest.raises(LabError, match="no such file"):
        OnnxBackend(paths, small.config)
    with pytest.raises(LabError, match="16 x 16 latents, the demo network has 32"):
        OnnxBackend(small.stored(), DEMO)
    for path in paths.values():
        path.write_bytes(b"not a graph")
    with pytest.raises(LabError, match="export it again"):
        OnnxBackend(paths, small.config)


def test_what_the_exporter_writes_down_of_a_small_module():
    lines = written_down(nn.Sequential(nn.Linear(4, 8), nn.SiLU()), torch.zeros(1, 4))
    assert [line.split()[0] for line in lines] == ["Gemm", "Sigmoid", "Mul"]
    assert "[1, 4]" in lines[0] and lines[2].endswith("[1, 8]")


def test_when_an_operator_came_and_changed():
    assert opset_history("LayerNormalization") == [17]
    assert opset_history("Conv")[:2] == [1, 11]
    with pytest.raises(LabError, match="no operator 'Convolution'"):
        opset_history("Convolution")
