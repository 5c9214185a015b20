import dataclasses

import numpy as np
import pytest

from moebius_lab import LabError
from moebius_lab.config import PRECISIONS
from moebius_lab.evidence import parity
from moebius_lab.inpainting.imaging import is_hole
from moebius_lab.page.driving import has_nvidia
from moebius_lab.port.precision import per_graph


@pytest.fixture(scope="module")
def references(small):
    return parity.reference_outputs(small.net, small.vae)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_in_every_precision_against_pytorch(small, references, precision):
    run = parity.onnx_run(small.stored(precision))
    rows = parity.compare_graphs(references, small.net, run, per_graph(precision), "ONNX Runtime")
    assert [(row.graph, row.output) for row in rows] == [
        ("vae_encoder", "mean"), ("vae_encoder", "std"), ("step", "next_state"), ("step", "noise"),
        ("step_unguided", "next_state"), ("step_unguided", "noise"), ("vae_decoder", "image"),
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
    with pytest.raises(
        parity.ParityError, match="step.noise in fp32 on CPU: max 1.00e-03.*asked max 0.0001; vae_decoder.image"
    ):
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


def test_a_form_that_two_precisions_share_is_compared_once(small, references):
    args = references, small.net, small.stored, ("fp32", "fp16-storage", "fp16"), parity.onnx_run, parity.CPU
    rows = parity.compare_precisions(*args)
    compared = [(row.graph, row.precision) for row in rows if row.output in ("mean", "noise", "image")]
    assert sorted(compared) == [
        ("step", "fp16"), ("step", "fp16-storage"), ("step", "fp32"),
        ("step_unguided", "fp16"), ("step_unguided", "fp16-storage"), ("step_unguided", "fp32"),
        ("vae_decoder", "fp16-storage"), ("vae_decoder", "fp32"), ("vae_encoder", "fp16-storage"), ("vae_encoder", "fp32"),
    ]  # fmt: skip
    parity.require(rows)


@pytest.mark.slow
def test_a_graph_that_would_take_too_long_is_left_out_and_the_reason_stands_for_it(small, references):
    run, forms = parity.onnx_run(small.stored()), per_graph("fp32")
    rows, left_out = parity.compare_in_time(references, small.net, run, forms, parity.CPU, seconds=600)
    assert {row.graph for row in rows} == set(references) and not left_out
    rows, left_out = parity.compare_in_time(references, small.net, run, forms, parity.CPU, seconds=0)
    assert {row.graph for row in rows} == {"step"} and set(left_out) == {"vae_encoder", "step_unguided", "vae_decoder"}
    assert all("by its arithmetic" in reason for reason in left_out.values())


def test_latents_of_a_loop_are_held_to_their_own_size():
    latents = np.linspace(-40, 40, 8, dtype=np.float32)
    row = parity.LOOP, "latents after step 19", "fp32", parity.CPU
    good = parity.compare(*row, latents + np.float32(1e-3), latents)
    assert good.ok and good.tolerance == "max 0.004"
    assert not parity.compare(*row, latents + np.float32(1e-2), latents).ok
    assert not parity.compare(*row, latents / 40 + np.float32(1e-3), latents / 40).ok


def test_the_loop_is_compared_on_the_way_and_at_its_end(small):
    loops = {name: small.loop(name) for name in ("fp32", "int8")}
    moved = dataclasses.replace(loops["fp32"], latents=loops["fp32"].latents + 2e-5)
    hole = is_hole(small.mask)
    rows = parity.compare_loops({"PyTorch": moved, **loops}, hole, parity.UNTRAINED_SLACK)
    assert [(row.precision, row.output) for row in rows] == [
        ("fp32", "latents after step 1"), ("fp32", "latents after step 19"), ("fp32", "picture, against PyTorch"),
        ("int8", "latents after step 1"), ("int8", "latents after step 19"), ("int8", "picture's hole, against fp32"),
    ]  # fmt: skip
    assert rows[0].max_error == pytest.approx(2e-5, rel=0.1) and rows[2].max_error == 0
    assert rows[4].psnr_db < rows[3].psnr_db  # what int8 rounds away grows from step to step
    inside = loops["int8"].picture[hole].astype(float) - loops["fp32"].picture[hole]
    assert rows[5].mean_error == pytest.approx(np.abs(inside).mean())


@pytest.mark.skipif(has_nvidia(), reason="there the rows are compared, in notebook 3")
def test_without_a_native_webgpu_provider_the_reason_is_said(small, references):
    with pytest.raises(LabError, match="native WebGPU provider"):
        parity.compare_graphs(references, small.net, parity.webgpu_run(small.stored()), per_graph("fp32"), "WebGPU, native")


def a_row(graph="step", output="noise", precision="fp32", backend="CPU", off=1e-5):
    zeros = np.zeros((2, 2), np.float32)
    zeros[0] = 1
    return parity.compare(graph, output, precision, backend, zeros + np.float32(off), zeros)


def test_the_table_for_reading_has_graphs_down_and_precisions_across():
    rows = [
        a_row(),
        a_row(precision="int8", off=1e-3),
        a_row("vae_encoder", "mean", backend="a browser"),
        a_row("vae_encoder", "mean"),
        a_row(precision="fp32", backend="a browser", off=1e-2),
    ]
    table = parity.wide_table(rows)
    assert list(table.columns) == ["fp32, largest difference", "int8, dB"]
    assert list(table.index) == [
        ("vae_encoder", "mean", "CPU"), ("vae_encoder", "mean", "a browser"), ("step", "noise", "CPU"), ("step", "noise", "a browser"),
    ]  # fmt: skip
    assert list(table.loc[("step", "noise", "CPU")]) == ["1e-05\u00a0≤\u00a00.0001", "60.0\u00a0≥\u00a040"]
    assert list(table.loc[("step", "noise", "a browser")]) == ["DIFFERENT: 0.01\u00a0>\u00a00.0001", ""]
    assert (table != "").sum().sum() == len(rows), "every row is in it once"


def test_the_answer_says_what_the_rows_show_and_what_is_missing():
    rows = [a_row(), a_row(backend="Chromium, wasm", off=2e-5), a_row(precision="int8", off=1e-3)]
    text = parity.answer(rows, {})
    assert (
        "In float32, yes" in text
        and "2.0e-05 (Chromium, wasm)" in text
        and "int8 at least 60 dB" in text
        and "Not compared" not in text
    )
    text = parity.answer(
        rows[:1], {"Chromium, wasm": "no browser", "this browser": "no browser", "WebGPU, native": "no card"}
    )
    assert "Chromium" not in text.partition("**Not compared")[0]
    assert text.endswith("**Not compared here:** Chromium, wasm; this browser (no browser). WebGPU, native (no card).")
    text = parity.answer([*rows, a_row("vae_decoder", "image", off=1e-2)], {})
    assert "In float32, no" in text and "**1 of 4 comparisons are past what was asked.**" in text
