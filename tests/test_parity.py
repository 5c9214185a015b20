import numpy as np
import pytest

from moebius_lab import parity
from moebius_lab.precision import PRECISIONS, per_graph


@pytest.fixture(scope="module")
def references(small):
    return parity.reference_outputs(small.net, small.vae)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_in_every_precision_against_pytorch(small, references, precision):
    run = parity.onnx_run(small.stored(precision))
    rows = parity.compare_graphs(references, small.net, run, per_graph(precision), "ONNX Runtime")
    assert [(row.graph, row.output) for row in rows] == [
        ("vae_encoder", "mean"), ("vae_encoder", "std"), ("step", "next_latents"), ("step", "noise"), ("vae_decoder", "image"),
    ]  # fmt: skip
    parity.require(rows)
    if precision == "fp32":
        assert max(row.max_error for row in rows) < 2e-5
    else:
        assert max(row.psnr_db for row in rows) < 100  # narrower weights do show


def test_the_error_of_every_block(small):
    errors = parity.block_errors(small.net, small.stored()["step"])
    assert len(errors) == 2 * 15 + 4 and errors.index[0] == "noise.down.0.resnets.0"
    assert (errors > 0).all() and errors.max() < 1e-5
    coarse = parity.block_errors(small.net, small.stored("int8")["step"])
    assert coarse.iloc[-1] > 1e3 * errors.iloc[-1]


def test_a_mismatch_is_an_error_that_names_it():
    zeros = np.zeros((2, 2), np.float32)
    good = parity.compare("step", "noise", "fp32", "CPU", zeros + 1e-5, zeros)
    bad = parity.compare("step", "noise", "fp32", "CPU", zeros + 1e-3, zeros)
    not_a_number = parity.compare("vae_decoder", "image", "int8", "CPU", zeros * np.nan, zeros)
    parity.require([good])
    with pytest.raises(parity.ParityError, match="step.noise in fp32 on CPU: max 1.00e-03.*asked max 0.0001; vae_decoder.image"):
        parity.require([good, bad, not_a_number])
    assert parity.table([good, bad]).verdict.tolist() == ["ok", "DIFFERENT"]
    with pytest.raises(parity.ParityError, match="shape"):
        parity.compare("step", "noise", "fp32", "CPU", np.zeros(3), zeros)


def test_a_picture_is_held_to_one_level_in_fp32_and_to_a_ratio_otherwise():
    picture = np.full((4, 4), 100, np.uint8)
    assert parity.compare(parity.PICTURE, "filled", "fp32", "CPU", picture + 1, picture).ok
    assert not parity.compare(parity.PICTURE, "filled", "fp32", "CPU", picture + 2, picture).ok
    one_level = parity.compare(parity.PICTURE, "filled", "int8", "CPU", picture + 1, picture)
    assert one_level.ok and one_level.psnr_db == pytest.approx(48.13, abs=0.01)
    assert not parity.compare(parity.PICTURE, "filled", "fp16-storage", "CPU", picture + 1, picture).ok
