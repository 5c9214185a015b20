import threading

import numpy as np
import pytest
import torch

from moebius_lab import LabError
from moebius_lab.config import AS_RELEASED, FEATHER_WIDTH
from moebius_lab.inpainting.imaging import (
    feather,
    is_hole,
    mask_to_hole,
    nearness,
    paste,
    plan_windows,
    to_bytes,
    to_unit_range,
)
from moebius_lab.inpainting.loop import Cancelled, Settings, describe_cost, inpaint, sample
from moebius_lab.model.ddim import ddim_steps, scheduler

FEW = Settings(steps=3)


def differing(a, b):
    d = np.abs(a.astype(int) - b.astype(int))
    return d.max(), (d > 0).mean()


@pytest.mark.parametrize("backend", ["torch_backend", "onnx_backend"])
def test_the_pipeline_reproduces_the_release(small, pipeline_reference, backend):
    r = pipeline_reference
    settings = Settings(guidance=float(r["guidance"]), coverage=AS_RELEASED)
    raw = to_bytes(sample(getattr(small, backend), to_unit_range(r["image"]), mask_to_hole(r["mask"]), settings))
    for ours, theirs in ((raw, r["raw"]), (paste(raw, r["image"], r["mask"], AS_RELEASED), r["pasted"])):
        most, share = differing(ours, theirs)
        assert most <= 1 and share < 1e-3


def test_inpaint_on_a_picture_of_the_models_size_is_the_release_too(small, pipeline_reference):
    r = pipeline_reference
    most, share = differing(inpaint(small.torch_backend, r["image"], r["mask"], Settings(coverage=AS_RELEASED)), r["pasted"])
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


@pytest.mark.parametrize("steps, strength", [(0, 1.0), (1001, 1.0), (20, 0.0), (20, 1.1), (1, float("nan"))])
def test_schedules_that_cannot_be_run(steps, strength):
    with pytest.raises(LabError):
        Settings(steps=steps, strength=strength)


def test_at_least_one_step_is_run():
    assert ddim_steps(1, Settings().strength) == ddim_steps(1, 1.0)
    assert len(ddim_steps(10, 0.01)) == 1


@pytest.mark.parametrize("bad", [{"init": "zeros"}, {"seed": -1}, {"guidance": float("nan")}, {"coverage": "most"}])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(LabError):
        Settings(**bad)


def test_seed_start_and_guidance_each_change_the_result_and_repeat_exactly(small):
    def run(**changes):
        return inpaint(small.torch_backend, small.image, small.mask, Settings(steps=3, **changes))

    base = run()
    assert np.array_equal(base, run())
    for changes in ({"seed": 1}, {"init": "noise"}, {"guidance": 1.0}, {"noise_offset": 0.5}, {"coverage": AS_RELEASED}):
        assert not np.array_equal(base, run(**changes)), changes


class Flat:
    """A model that paints each window in a grey of its own, 50, 52, 54, ...: what is filled from where can be read off."""

    name = "flat"

    def __init__(self, config):
        self.config, self.seen, self.told, self.painted = config, [], [], 50

    def encode(self, image):
        self.seen.append(to_bytes(image))
        cells = torch.zeros(1, 4, self.config.latent_size, self.config.latent_size)
        return cells, cells

    def step(self, latents, mask, masked_latents, step, guidance):
        self.told.append(mask)
        return latents

    def decode(self, latents):
        grey = (self.painted + 0.5) / 255
        self.painted += 2
        return torch.full((1, 3, self.config.image_size, self.config.image_size), grey * 2 - 1)


@pytest.mark.parametrize("width, left", [(2, 97), (4, 100), (6, 97), (7, 97), (12, 98)])
def test_nothing_of_a_thin_hole_comes_back_wherever_it_lies(small, width, left):
    image = np.full((128, 128, 3), 200, np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[20:110, left : left + width] = 255
    image[mask > 0] = 10
    backend = Flat(small.config)
    result = inpaint(backend, image, mask, Settings(steps=1))
    assert (result[mask > 0] == 50).all()
    cells = mask.reshape(16, 8, 16, 8).max((1, 3)) > 0
    assert np.array_equal(backend.told[0][0, 0] > 0, cells) and cells.any()
    far = nearness(mask > 0, FEATHER_WIDTH) >= FEATHER_WIDTH**2
    assert np.array_equal(result[far], image[far]) and (result[~far & (mask == 0)] < 200).any()
    released = inpaint(Flat(small.config), image, mask, Settings(steps=1, coverage=AS_RELEASED))
    assert (released[mask > 0] != 50).any()


@pytest.mark.parametrize("low", [1, 100, 127])
def test_what_is_grey_where_black_was_meant_changes_nothing(small, low):
    rng = np.random.default_rng(low)
    mask = np.zeros((128, 128), np.uint8)
    mask[50:70, 40:80] = 255
    soft = np.where(mask > 0, rng.integers(128, 256, mask.shape), rng.integers(0, low + 1, mask.shape)).astype(np.uint8)
    results = [inpaint(Flat(small.config), small.image, m, Settings(steps=1)) for m in (mask, soft)]
    assert np.array_equal(*results) and not np.array_equal(results[0], small.image)


def test_a_window_sees_what_earlier_ones_have_filled(small):
    image = np.full((128, 300, 3), 200, np.uint8)
    mask = np.zeros((128, 300), np.uint8)
    mask[50:60, 20:90] = mask[50:60, 100:150] = 255
    backend = Flat(small.config)
    result = inpaint(backend, image, mask, Settings(steps=1))
    first, masked, second, _ = backend.seen
    assert (first == 200).all() and (masked == 127).any()
    assert (np.abs(second[50:60, :29].astype(int) - 50) <= 1).all()  # columns 61 to 90: what the first window has filled
    assert (result[50:60, 20:90] < 60).all() and (result[50:60, 100:150] == 52).all()


def test_a_wire_that_is_filled_in_pieces_is_replaced_whole_and_its_pieces_run_into_each_other(small):
    image = np.full((200, 500, 3), (0, 200, 200), np.uint8)
    mask = np.zeros((200, 500), np.uint8)
    mask[90:94, 20:480] = 255
    result = inpaint(Flat(small.config), image, mask, Settings(steps=1))
    wire = result[90:94, 20:480].astype(int)
    assert (np.ptp(wire, axis=2) == 0).all() and len(np.unique(wire)) > 4
    assert np.abs(np.diff(wire, axis=1)).max() <= 1  # greys differ by 2 from window to window


def test_specks_all_over_a_large_picture_are_all_filled_and_nothing_else(small):
    rng = np.random.default_rng(3)
    image = rng.integers(100, 256, (500, 700, 3), dtype=np.uint8)
    image[..., 0] = 0
    mask = np.zeros((500, 700), np.uint8)
    for top, left in rng.integers((0, 0), (497, 697), (60, 2)):
        mask[top : top + 3, left : left + 3] = 255
    seen = []
    result = inpaint(Flat(small.config), image, mask, Settings(steps=1), seen.append)
    assert 20 < seen[-1].windows < 60
    hole, outside = is_hole(mask), feather(mask) == 0
    assert (np.ptp(result[hole], axis=1) == 0).all()  # grey: nothing of the old picture
    assert np.array_equal(result[outside], image[outside])


def test_the_cost_is_told_in_words():
    mask = np.zeros((600, 600), np.uint8)
    mask[10:20, 10:20] = mask[500:510, 500:510] = 255
    windows = plan_windows(mask, 128)
    assert describe_cost(windows, 128, Settings()) == "2 windows of 128 px, 38 steps"
    assert describe_cost(windows, 128, Settings(), 10.0) == "2 windows of 128 px, 38 steps, about 6 min"
    mask[200:400, 100:500] = 255
    words = "2 windows of 128 px and 1 larger window of up to 534 px, scaled to 128 px, 3 steps, about 6 s"
    assert describe_cost(plan_windows(mask, 128), 128, Settings(steps=1), 2.0) == words


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
