"""The browser as a backend where no page shows the notebook: a headless Chromium answers. In JupyterLab: test_jupyterlab.py."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from moebius_lab import LabError
from moebius_lab.config import BACKENDS, DEMO, SMALL
from moebius_lab.evidence import parity
from moebius_lab.evidence.benchmark.contenders import READER
from moebius_lab.evidence.benchmark.run import run
from moebius_lab.inpainting.loop import Settings, inpaint, preset
from moebius_lab.notebook.browser_backend import BrowserRunner, fill
from moebius_lab.port.precision import per_graph

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runner(small_bundle):
    runner = BrowserRunner(small_bundle, SMALL, "wasm")
    asyncio.run(runner.connect(0.1))
    yield runner
    runner.disconnect()


def test_without_a_page_a_headless_chromium_answers_and_says_what_it_ran_on(runner):
    assert runner.headless and "headless Chromium" in runner.name
    assert runner.loaded["provider"] == "wasm" and "processor (wasm)" in runner.evidence
    assert runner.status == runner.name
    x = np.zeros((1, 4, 16, 16), np.float32)
    outputs, milliseconds = runner.time("vae_decoder", {"latent": x}, 3)
    assert outputs["image"].shape == (1, 3, 128, 128) and len(milliseconds) == 3 and min(milliseconds) > 0


def test_the_sampling_loop_takes_it_as_one_more_backend(runner, small):
    for settings in (Settings(steps=3), preset("fast", steps=3)):
        from_torch = inpaint(small.torch_backend, small.image, small.mask, settings)
        from_browser = inpaint(runner, small.image, small.mask, settings)
        assert np.abs(from_browser.astype(int) - from_torch).max() <= 1


def test_a_notebook_s_backend_fills_its_picture(small):
    loops = {name: asyncio.run(fill(replace(small, backend=name))) for name in BACKENDS}
    assert loops["torch"].backend == "PyTorch" and loops["onnx"].backend.startswith("ONNX Runtime")
    assert loops["browser"].backend.startswith("headless Chromium") and loops["browser"].steps == 19
    for loop in loops.values():
        assert np.abs(loop.picture.astype(int) - loops["torch"].picture).max() <= 1


def test_the_parity_table_takes_it_too(runner, small):
    references = parity.reference_outputs(small.net, small.vae)
    rows = parity.compare_graphs(references, small.net, runner.run, per_graph("fp32"), runner.name)
    assert rows and all(row.ok for row in rows), [row for row in rows if not row.ok]


def test_the_benchmark_measures_it_beside_the_others(runner, small, tmp_path):
    data = run(small, tmp_path / "m.json", ("onnxruntime-cpu",), ("fp32",), ("step", "picture", "parts"), 3, runner=runner)
    own = {row["what"]: row for row in data["rows"] if row["backend"] == READER}
    assert set(own) == {"guided step", "unguided step", "encode", "decode", "whole picture", "fast picture"}
    assert all(0 < row["q1"] <= row["median"] <= row["q3"] for row in own.values())
    [said] = [entry for entry in data["evidence"] if entry["backend"] == READER]
    assert "headless Chromium" in str(said) and "processor (wasm)" in str(said)


def test_what_cannot_work_is_said_with_advice(small_bundle, tmp_path):
    with pytest.raises(LabError, match="holds the small network, not demo"):
        BrowserRunner(small_bundle, DEMO)
    with pytest.raises(LabError, match="no precision 'fp64'; choose from fp16-storage, fp16, fp32"):
        BrowserRunner(small_bundle, SMALL, precision="fp64")
    with pytest.raises(LabError, match="not a complete bundle"):
        BrowserRunner(tmp_path, SMALL)
    with pytest.raises(LabError, match=r"await runner\.connect\(\)"):
        BrowserRunner(small_bundle, SMALL).run("step", {})
    alone = BrowserRunner(small_bundle, SMALL)
    with pytest.raises(LabError, match="no page shows this notebook"):
        asyncio.run(alone.connect(0.1, headless=False))
