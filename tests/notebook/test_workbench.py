import dataclasses

import numpy as np
import pytest

from moebius_lab.config import MOEBIUS
from moebius_lab.evidence.inventory import graph_gflop
from moebius_lab.files import NUMBER, listed
from moebius_lab.inpainting.loop import Settings, inpaint


def test_a_loop_is_the_backend_s_and_is_run_again_only_when_something_changed(small):
    loop = small.loop("fp32")
    seen, released = [], Settings(coverage="as-released")
    assert np.array_equal(loop.picture, inpaint(small.onnx_backend, small.image, small.mask, released, seen.append))
    assert loop.steps == 19 and loop.seconds > 0
    assert np.array_equal(loop.latents, np.concatenate([p.latent.numpy() for p in seen]))
    assert np.array_equal(loop.clean, np.concatenate([p.clean.numpy() for p in seen]))
    kept = small.folder / "loops" / "fp32-image.npz"
    written = kept.stat().st_mtime_ns
    assert np.array_equal(small.loop("fp32").latents, loop.latents) and kept.stat().st_mtime_ns == written
    assert not np.array_equal(small.loop("fp32", init="noise").picture, loop.picture)
    other = dataclasses.replace(small, image=255 - small.image)
    assert not np.array_equal(other.loop("fp32").picture, loop.picture) and kept.stat().st_mtime_ns != written


def test_each_precision_has_its_own_loop(small):
    exact, coarse = small.loop("fp32"), small.loop("int8")
    apart = np.abs(coarse.latents - exact.latents).max(axis=(1, 2, 3))
    assert apart[0] > 1e-4 and apart[0] < 0.1


def test_what_was_made_once_is_kept_until_its_source_changes(small, tmp_path):
    bench, shape = dataclasses.replace(small, folder=tmp_path), listed(NUMBER)
    assert bench.once("numbers", lambda: [1, 2], shape, "a maker") == [1, 2]
    assert bench.once("numbers", lambda: pytest.fail("made again"), shape, "a maker") == [1, 2]
    assert bench.once("numbers", lambda: [3], shape, "another maker") == [3]


@pytest.mark.slow
def test_what_a_step_costs_is_told_beforehand(small):
    large = dataclasses.replace(small, config=MOEBIUS)
    assert 0 < small.least_step_seconds < large.least_step_seconds
    assert small.brisk and graph_gflop(MOEBIUS)["step"] == pytest.approx(632, abs=1)
