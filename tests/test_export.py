import numpy as np
import onnx
import pytest
import torch

from moebius_lab import LabError, parity
from moebius_lab.backends import GRAPHS, OnnxBackend
from moebius_lab.bundle import operators_off_the_gpu, shipped_files
from moebius_lab.config import DEMO
from moebius_lab.export import OPSET, OUTPUT_NAMES, example_inputs, operator_counts, torch_graphs


def test_every_graph_computes_what_pytorch_computes(small):
    rows, modules = [], torch_graphs(small.net, small.vae)
    for graph, inputs in example_inputs(small.config).items():
        with torch.inference_mode():
            expected = modules[graph](*inputs.values())
        expected = expected if isinstance(expected, tuple) else (expected,)
        got = small.onnx_backend.sessions[graph].run(OUTPUT_NAMES[graph], {n: v.numpy() for n, v in inputs.items()})
        rows += [parity.compare(graph, "", "", a, b.numpy()) for a, b in zip(got, expected, strict=True)]
    assert len(rows) == 4
    parity.require(rows)
    assert max(row.max_error for row in rows) < 2e-5


def test_graphs_are_opset_18_without_three_dimensional_convolutions(small):
    for graph in GRAPHS:
        model = onnx.load(str(small.graphs().with_name(f"{graph}.onnx")))
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
        dims = {init.name: len(init.dims) for init in model.graph.initializer}
        kernels = [dims[node.input[1]] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in dims]
        assert kernels and set(kernels) == {4}


def test_operator_counts_and_shipped_files(small):
    folder = small.graphs().parent
    assert operator_counts(folder / "denoiser.onnx")["Conv"] > 100
    assert not any(operators_off_the_gpu(folder).values())
    files = shipped_files(folder)
    assert len(files) == 6 and (files.MB > 0).all() and files.sha256.str.fullmatch("[0-9a-f]{64}").all()


def test_graphs_are_made_again_only_when_something_changed(small):
    stamp = small.graphs().with_name("made_from.json")
    before = small.graphs().stat().st_mtime_ns
    assert small.graphs().stat().st_mtime_ns == before
    text = stamp.read_text()
    stamp.write_text(text.replace('"deterministic"', '"other"'))
    assert small.graphs().stat().st_mtime_ns > before and stamp.read_text() == text


def test_graphs_that_are_missing_damaged_or_of_another_network(small, tmp_path):
    with pytest.raises(LabError, match="no such file"):
        OnnxBackend(tmp_path, small.config)
    with pytest.raises(LabError, match="16 x 16 latents, the demo network has 32"):
        OnnxBackend(small.graphs().parent, DEMO)
    for graph in GRAPHS:
        (tmp_path / f"{graph}.onnx").write_bytes(b"not a graph")
    with pytest.raises(LabError, match="export it again"):
        OnnxBackend(tmp_path, small.config)


def test_a_mismatch_is_an_error_that_names_it():
    zeros = np.zeros((2, 2), np.float32)
    good = parity.compare("denoiser", "noise", "CPU", zeros + 1e-5, zeros)
    bad = parity.compare("denoiser", "noise", "CPU", zeros + 1e-3, zeros)
    not_a_number = parity.compare("vae_decoder", "image", "CPU", zeros * np.nan, zeros)
    parity.require([good])
    with pytest.raises(parity.ParityError, match="denoiser.noise.*1.00e-03 > 1e-04; vae_decoder.image"):
        parity.require([good, bad, not_a_number])
    assert parity.table([good, bad]).verdict.tolist() == ["equal", "DIFFERENT"]
    with pytest.raises(parity.ParityError, match="shape"):
        parity.compare("denoiser", "noise", "CPU", np.zeros(3), zeros)
