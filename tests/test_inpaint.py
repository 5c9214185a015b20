import threading

import numpy as np
import pytest
import torch

from moebius_lab import LabError
from moebius_lab.ddim import ddim_steps, scheduler
from moebius_lab.imaging import feather, mask_to_hole, paste, to_bytes, to_unit_range
from moebius_lab.inpaint import Cancelled, Settings, inpaint, sample

FEW = Settings(steps=3)


def differing(a, b):
    d = np.abs(a.astype(int) - b.astype(int))
    return d.max(), (d > 0).mean()


@pytest.mark.parametrize("backend", ["torch_backend", "onnx_backend"])
def test_the_pipeline_reproduces_the_release(small, pipeline_reference, backend):
    r = pipeline_reference
    settings = Settings(guidance=float(r["guidance"]))
    raw = to_bytes(sample(getattr(small, backend), to_unit_range(r["image"]), mask_to_hole(r["mask"]), settings))
    for ours, theirs in ((raw, r["raw"]), (paste(raw, r["image"], r["mask"]), r["pasted"])):
        most, share = differing(ours, theirs)
        assert most <= 1 and share < 1e-3


def test_inpaint_on_a_picture_of_the_models_size_is_the_release_too(small, pipeline_reference):
    r = pipeline_reference
    most, share = differing(inpaint(small.torch_backend, r["image"], r["mask"]), r["pasted"])
    assert most <= 1 and share < 1e-3


def test_the_release_runs_19_of_20_steps_from_900():
    steps = ddim_steps(20, 0.99)
    assert [step.timestep for step in steps] == list(range(900, -1, -50))
    assert steps[0].signal == pytest.approx(0.12, abs=0.005)
    assert steps[-1].noise_scale == pytest.approx(-steps[-1].sigma / steps[-1].signal)


@pytest.mark.parametrize("count", [1, 7, 20, 50])
def test_two_numbers_a_step_are_diffusers_ddim(count):
    schedule = scheduler()
    schedule.set_timesteps(count)
    generator = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    steps = ddim_steps(count, 1.0)
    assert [step.timestep for step in steps] == schedule.timesteps.tolist()
    gap = 1000 // count
    for step in steps:
        if step.timestep - gap >= 0 or step is steps[-1]:
            theirs = schedule.step(e, step.timestep, x).prev_sample
            torch.testing.assert_close(step.latent_scale * x + step.noise_scale * e, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps, strength", [(0, 1.0), (1001, 1.0), (20, 0.0), (20, 1.1), (1, 0.99)])
def test_schedules_that_cannot_be_run(steps, strength):
    with pytest.raises(LabError):
        Settings(steps=steps, strength=strength)


@pytest.mark.parametrize("bad", [{"init": "zeros"}, {"seed": -1}, {"guidance": float("nan")}])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(LabError):
        Settings(**bad)


def test_seed_start_and_guidance_each_change_the_result_and_repeat_exactly(small):
    def run(**changes):
        return inpaint(small.torch_backend, small.image, small.mask, Settings(steps=3, **changes))

    base = run()
    assert np.array_equal(base, run())
    for changes in ({"seed": 1}, {"init": "noise"}, {"guidance": 1.0}, {"noise_offset": 0.5}):
        assert not np.array_equal(base, run(**changes)), changes


def test_progress_is_told_after_every_step(small):
    seen = []
    inpaint(small.torch_backend, small.image, small.mask, FEW, seen.append)
    assert [(p.window, p.windows, p.step, p.steps) for p in seen] == [(0, 1, 1, 2), (0, 1, 2, 2)]
    torch.testing.assert_close(seen[-1].latent, seen[-1].clean)  # nothing is left of the noise


def test_cancel_stops_before_the_next_step(small):
    cancel, seen = threading.Event(), []

    def stop_after_two(progress):
        seen.append(progress.step)
        if len(seen) == 2:
            cancel.set()

    before = small.image.copy()
    with pytest.raises(Cancelled, match="2 of 19"):
        inpaint(small.torch_backend, small.image, small.mask, Settings(), stop_after_two, cancel)
    assert seen == [1, 2] and np.array_equal(small.image, before)


def test_numbers_that_are_not_finite_are_never_passed_on(small):
    class Broken:
        name, config = "broken", small.config
        encode, decode = small.torch_backend.encode, small.torch_backend.decode

        def step(self, latents, mask, masked_latents, step, guidance):
            return latents * float("nan")

    with pytest.raises(FloatingPointError, match="broken"):
        inpaint(Broken(), small.image, small.mask, FEW)


def test_a_large_picture_with_far_holes_changes_only_near_them(small):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    mask = np.zeros((300, 500), np.uint8)
    mask[20:50, 20:60] = mask[240:280, 430:480] = 255
    seen = []
    result = inpaint(small.torch_backend, image, mask, FEW, seen.append)
    assert {p.windows for p in seen} == {2}
    outside = feather(mask) == 0
    assert result.shape == image.shape and np.array_equal(result[outside], image[outside])
    for hole in (np.s_[25:45, 25:55], np.s_[245:275, 435:475]):
        assert (result[hole] != image[hole]).mean() > 0.9
