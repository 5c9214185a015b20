import threading

import numpy as np
import pytest
import torch

from moebius_lab import LabError
from moebius_lab.config import AS_RELEASED, FEATHER_WIDTH, PRESETS
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
from moebius_lab.inpainting.loop import Cancelled, Settings, describe_cost, inpaint, preset, preset_of, sample

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


@pytest.mark.parametrize("steps, strength", [(0, 1.0), (1001, 1.0), (20, 0.0), (20, 1.1), (1, float("nan"))])
def test_schedules_that_cannot_be_run(steps, strength):
    with pytest.raises(LabError):
        Settings(steps=steps, strength=strength)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"init": "zeros"}, 'must be "image" or "noise"'),
        ({"seed": -1}, "seed must be"),
        ({"guidance": float("nan")}, "finite"),
        ({"coverage": "most"}, "one of whole, as-released"),
        ({"solver": "euler"}, "choose one of ddim, ddim-trailing, dpm"),
        ({"solver": "dpm++2m", "steps": 1}, "at least 2 steps, and 1 would run"),
        ({"solver": "unipc", "steps": 10, "strength": 0.1}, "at least 2 steps, and 1 would run"),
        ({"guidance_interval": (0.5, 0.5)}, "not from 0.5 to 0.5"),
        ({"guidance_interval": (-0.1, 0.5)}, "not from -0.1"),
        ({"guidance_interval": (0.5, 1.5)}, "to 1.5"),
        ({"guidance_interval": (float("nan"), 1.0)}, "not from nan"),
        ({"guidance_interval": (0.5,)}, "two shares"),
        ({"guidance_interval": (0.96, 1.0)}, "no step of 19 begins between 0.96 and 1"),
    ],
)
def test_settings_that_make_no_sense(bad, words):
    with pytest.raises(LabError, match=words):
        Settings(**bad)


def test_presets_say_what_they_cost_and_are_known_again():
    evaluations = {name: preset(name).evaluations() for name in PRESETS}
    assert evaluations == {"fast": 9, "fastest": 6, "as-released": 38}
    for name, entry in PRESETS.items():
        assert preset_of(preset(name, seed=3)) == name and f"{evaluations[name]} evaluations" in entry.note
    assert preset("as-released") == Settings() and preset_of(Settings(steps=7)) == ""
    with pytest.raises(LabError, match="choose one of fast, fastest, as-released"):
        preset("faster")


@pytest.mark.parametrize(
    "interval, guided",
    [((0.0, 1.0), range(10)), ((0.5, 1.0), range(5, 10)), ((0.0, 0.3), range(3)), ((0.7, 0.8), [7]), ((0.29, 0.31), [3])],
)
def test_steps_of_the_interval_are_guided(interval, guided):
    settings = Settings(steps=10, strength=1.0, guidance=3.0, guidance_interval=interval)
    assert [i for i, guidance in enumerate(settings.guidances()) if guidance == 3.0] == list(guided)
    assert settings.evaluations() == 10 + len(guided)


def test_where_guidance_is_1_the_network_is_evaluated_once_and_gives_the_same(small):
    state = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    mask, masked = torch.ones(1, 1, 16, 16), torch.zeros(1, 4, 16, 16)
    for step in preset("fast").schedule()[1:3]:
        once, nearly = (small.torch_backend.step(state, mask, masked, step, g) for g in (1, 1 + 1e-6))
        torch.testing.assert_close(once, nearly, rtol=1e-4, atol=1e-4)


def test_from_noise_the_picture_itself_is_not_encoded_and_its_draw_is_made_all_the_same(small):
    backend = Flat(small.config)
    inpaint(backend, small.image, small.mask, Settings(steps=1, init="noise"))
    assert len(backend.seen) == 1
    inpaint(backend, small.image, small.mask, Settings(steps=1))
    assert len(backend.seen) == 3
    first = {}

    class Keeping(Flat):
        def step(self, state, mask, masked_latents, step, guidance):
            first.setdefault(settings.init, state)
            return state

    for init in ("image", "noise"):
        settings = Settings(init=init, steps=1)
        sample(Keeping(small.config), to_unit_range(small.image), mask_to_hole(small.mask), settings)
    sigma = settings.schedule()[0].sigma  # the picture's latent is zeros here
    torch.testing.assert_close(first["image"], sigma * first["noise"])


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

    def step(self, state, mask, masked_latents, step, guidance):
        self.told.append(mask)
        return state

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
