import math
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from moebius_lab.config import AS_RELEASED, FEATHER_WIDTH, MASK_BLUR_RADIUS
from moebius_lab.inpainting.imaging import (
    ImageError,
    check_picture_and_mask,
    crop,
    feather,
    is_hole,
    mask_to_hole,
    mask_to_latent,
    nearness,
    paste,
    plan_windows,
    to_bytes,
    to_unit_range,
    uncrop,
)

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)


def mask_with(shape, *boxes):
    mask = np.zeros(shape, np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 255
    return mask


def test_unit_range_and_back_is_exact():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([every] * 3, axis=-1)
    x = to_unit_range(image)
    assert x.min() == -1 and x.max() == 1 and x.shape == (1, 3, 16, 16)
    assert np.abs(to_bytes(x).astype(int) - image).max() <= 1  # truncated, as in the release


def test_latent_mask_has_every_cell_that_the_hole_touches_and_as_released_those_whose_corner_it_touches():
    mask = np.zeros((16, 16), np.uint8)
    mask[7, 7] = mask[8, 8] = 255
    assert mask_to_latent(mask_to_hole(mask))[0, 0].tolist() == [[1, 0], [0, 1]]
    assert mask_to_latent(mask_to_hole(mask), AS_RELEASED)[0, 0].tolist() == [[0, 0], [0, 1]]


def test_the_hole_begins_at_128():
    assert is_hole(np.array([[127, 128]], np.uint8)).tolist() == [[False, True]]


@pytest.mark.parametrize(
    "image, mask, words",
    [
        (PHOTO, np.zeros((60, 80), np.uint8), "empty"),
        (PHOTO, np.full((60, 80), 255, np.uint8), "whole picture"),
        (PHOTO, np.full((80, 60), 255, np.uint8), "60 x 80"),
        (PHOTO / 255, np.zeros((60, 80), np.uint8), "uint8"),
        (PHOTO, np.zeros((60, 80)), "uint8"),
    ],
)
def test_pictures_and_masks_that_do_not_go_together(image, mask, words):
    with pytest.raises(ImageError, match=words):
        check_picture_and_mask(image, mask)


def test_the_feather_lies_outside_the_hole_and_fades_with_the_distance():
    mask = mask_with((60, 80), (20, 30, 40, 31), (5, 5, 6, 6))
    mask[50:55, 60:70] = 128
    mask[45, 10] = 127
    weights = feather(mask)
    d = ndimage.distance_transform_edt(~is_hole(mask))
    assert (weights[is_hole(mask)] == 255).all() and (weights[d >= FEATHER_WIDTH] == 0).all()
    assert (weights[(d > 0) & (d < FEATHER_WIDTH - 0.1)] > 0).all() and weights[d > 0].max() < 255
    order = np.argsort(d, axis=None)
    assert (np.diff(weights.ravel()[order].astype(int)) <= 0).all()
    assert np.array_equal(feather(np.where(is_hole(mask), 200, 100).astype(np.uint8)), weights)


def test_as_released_the_feather_is_pillow_s_blur_of_all_the_mask_s_values():
    mask = np.random.default_rng(1).integers(0, 256, (60, 80), dtype=np.uint8)
    blurred = np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(MASK_BLUR_RADIUS)))
    assert np.array_equal(feather(mask, AS_RELEASED), blurred)
    a = blurred[..., None] / 255
    expected = (((255 - PHOTO) / 255 * a + PHOTO / 255 * (1 - a)) * 255).astype(np.uint8)
    assert np.array_equal(paste(255 - PHOTO, PHOTO, mask, AS_RELEASED), expected)


def test_pasting_what_is_there_already_changes_nothing():
    assert np.array_equal(paste(PHOTO, PHOTO, mask_with((60, 80), (20, 30, 40, 50))), PHOTO)


@pytest.mark.parametrize("shape", [(40, 60), (1, 30), (30, 1), (5, 4)])
def test_nearness_is_the_squared_distance_up_to_its_reach(shape):
    ones = np.random.default_rng(sum(shape)).random(shape) < 0.04
    ones[0, 0] = True
    squared = np.round(ndimage.distance_transform_edt(~ones) ** 2)
    for reach in (1, 9, 11):
        assert np.array_equal(nearness(ones, reach), np.minimum(squared, reach**2))


def test_paste_leaves_every_pixel_outside_the_feather():
    mask = mask_with((60, 80), (20, 30, 40, 50))
    result = paste(255 - PHOTO, PHOTO, mask)
    outside = feather(mask) == 0
    assert np.array_equal(result[outside], PHOTO[outside])
    assert np.array_equal(result[28:32, 38:42], 255 - PHOTO[28:32, 38:42])


def test_a_small_hole_gets_a_window_of_the_models_own_size_inside_the_picture():
    for box in ((0, 0, 20, 20), (200, 300, 240, 330), (480, 600, 500, 640)):
        [window] = plan_windows(mask_with((500, 640), box), 128)
        assert window.side == 128
        assert 0 <= window.left <= 640 - 128 and 0 <= window.top <= 500 - 128
        top, left, bottom, right = box
        assert window.top <= top and bottom <= window.top + 128 and window.left <= left and right <= window.left + 128


def test_a_large_hole_gets_a_larger_window_with_its_margin():
    [window] = plan_windows(mask_with((500, 640), (100, 100, 300, 400)), 128)
    assert window.side == 400  # 300 px are three quarters of it
    assert window.left == 50 and window.top == 0


def test_far_holes_get_windows_of_their_own_and_near_ones_share():
    near = mask_with((500, 640), (10, 10, 30, 30), (40, 60, 60, 80))
    assert len(plan_windows(near, 128)) == 1
    far = mask_with((500, 640), (10, 10, 30, 30), (400, 500, 430, 560))
    windows = plan_windows(far, 128)
    assert len(windows) == 2
    assert np.array_equal(windows[0].hole | windows[1].hole, is_hole(far))
    assert not (windows[0].hole & windows[1].hole).any()


def specks(height, width, count, size, seed=0):
    rng, mask = np.random.default_rng(seed), np.zeros((height, width), np.uint8)
    for top, left in rng.integers((0, 0), (height - size, width - size), (count, 2)):
        mask[top : top + size, left : left + size] = 255
    return mask


@pytest.mark.parametrize(
    "count, most", [(200, 60), (800, 85), (10_000, 90)]
)  # 88 tiles of the usable part cover the picture
def test_many_small_holes_go_through_windows_of_the_model_s_size(count, most):
    mask = specks(3000, 4000, count, 3)
    began = time.process_time()
    windows = plan_windows(mask, 512)
    assert time.process_time() - began < 10
    assert len(windows) <= most and {window.side for window in windows} == {512}
    assert np.array_equal(windows[0].owners > 0, is_hole(mask))
    for window in windows[:: len(windows) // 20]:
        rows, cols = np.nonzero(window.hole)
        inner = [(window.top, rows, 3000), (window.left, cols, 4000)]
        for start, at, length in inner:  # the margin is kept except at the picture's edge
            assert at.min() - start >= 64 or start == 0
            assert start + 512 - at.max() > 64 or start + 512 == length


def test_a_large_hole_takes_no_small_one_into_its_scaled_window():
    mask = specks(600, 800, 60, 3)
    frame = mask_with(mask.shape, (200, 250, 400, 600)) - mask_with(mask.shape, (250, 260, 390, 590))
    mask[195:405, 245:605] = frame[195:405, 245:605]
    mask[300:303, 300:303] = mask[305:308, 500:503] = 255  # inside the frame
    large, *others = plan_windows(mask, 128)
    assert large.side == math.ceil(350 / 0.75) and {window.side for window in others} == {128}
    assert np.array_equal(large.hole, frame > 0)
    assert np.array_equal(sum(window.hole.astype(int) for window in others), is_hole(mask) & (frame == 0))


def test_a_wire_is_cut_into_pieces_and_a_thick_hole_is_not():
    yy, xx = np.mgrid[:1500, :2000]
    wires = (np.abs(yy - 0.6 * xx - 100) < 3) | (np.abs(xx - 900) < 2)  # they cross: one hole
    windows = plan_windows(wires.astype(np.uint8) * 255, 512)
    assert {window.side for window in windows} == {512} and 6 <= len(windows) <= 12
    assert np.array_equal(sum(window.hole.astype(int) for window in windows), wires)
    for window in windows:  # half of each is known
        assert wires[window.visible].mean() < 0.5
    [released] = plan_windows(wires.astype(np.uint8) * 255, 512, AS_RELEASED)
    assert released.side == 2000
    half = 384 // 2
    for thick, sides in ((half - 1, {512}), (half, {2000})):
        assert {w.side for w in plan_windows(mask_with((1500, 2000), (500, 100, 500 + thick, 1900)), 512)} == sides


def test_windows_depend_on_the_holes_alone():
    mask = specks(400, 500, 100, 9)
    place = [(w.left, w.top, w.side, int(w.hole.sum())) for w in plan_windows(mask, 128)]
    assert place == [(w.left, w.top, w.side, int(w.hole.sum())) for w in plan_windows(np.minimum(mask, 128), 128)]
    assert sum(count for *_, count in place) == is_hole(mask).sum()


PEAK = """
import resource
import numpy as np
from moebius_lab.inpainting.imaging import crop, is_hole, plan_windows, uncrop
height, width, size = {height}, {width}, {size}
image = np.full((height, width, 3), 90, np.uint8)
mask = np.zeros((height, width), np.uint8)
if width > height:
    mask[height // 5 : height * 4 // 5, width // 40 : -width // 40] = 255
else:
    mask[height // 40 : -height // 40, width // 5 : width * 4 // 5] = 255
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
[window] = plan_windows(mask, size)
seen, _ = crop(image, is_hole(mask), window, size)
result = uncrop(255 - seen, image, mask, window)
assert window.side == max(height, width) and (result[mask > 0] > 150).all()
print(int(peak() - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("height, width, size", [(1000, 16000, 512), (200, 24000, 128), (24000, 200, 128)])
def test_memory_goes_with_the_picture_s_area(height, width, size):
    code = PEAK.format(height=height, width=width, size=size)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert int(done.stdout) < 20 * height * width + 10 * size * max(height, width) + 60e6, done.stdout


def test_a_picture_that_fits_the_model_is_one_window_whatever_its_holes():
    mask = mask_with((128, 128), (0, 0, 5, 5), (120, 120, 128, 128))
    [window] = plan_windows(mask, 128)
    assert (window.left, window.top, window.side) == (0, 0, 128)


def test_a_small_picture_is_mirrored_outward():
    mask = mask_with((60, 80), (20, 30, 40, 50))
    [window] = plan_windows(mask, 128)
    seen, hole = crop(PHOTO, window.hole, window, 128)
    assert seen.shape == (128, 128, 3)
    assert np.array_equal(seen[34:94, 24:104], PHOTO)
    assert np.array_equal(seen[33, 24:104], PHOTO[0]) and np.array_equal(seen[94, 24:104], PHOTO[-1])
    pasted = uncrop(255 - seen, PHOTO, mask, window)
    outside = feather(mask) == 0
    assert np.array_equal(pasted[outside], PHOTO[outside])
    assert np.array_equal(pasted[28:32, 38:42], 255 - PHOTO[28:32, 38:42])  # put back where it came from
    assert hole.max() == 255


def test_a_hole_wider_than_the_picture_is_high_still_fits_its_window():
    image = RNG.integers(0, 256, (100, 600, 3), dtype=np.uint8)
    mask = mask_with((100, 600), (10, 50, 90, 550))
    [window] = plan_windows(mask, 128)
    seen, hole = crop(image, window.hole, window, 128)
    assert seen.shape == (128, 128, 3) and 0 < is_hole(hole).mean() < 1
    result = uncrop(seen, image, mask, window)
    outside = feather(mask) == 0
    assert result.shape == image.shape and np.array_equal(result[outside], image[outside])


def test_scaling_down_never_lets_a_pixel_of_the_hole_through():
    image = np.zeros((400, 400, 3), np.uint8)
    mask = mask_with((400, 400), (50, 50, 351, 351))
    image[is_hole(mask)] = 255
    [window] = plan_windows(mask, 128)
    seen, hole = crop(image, window.hole, window, 128)
    assert window.side > 128
    plain = Image.fromarray(image[window.top : window.top + window.side, window.left : window.left + window.side])
    touched = np.asarray(plain.convert("F").resize((128, 128), Image.Resampling.BOX)) > 0
    assert (is_hole(hole) | ~touched).all()


def test_each_window_pastes_only_its_own_hole():
    mask = mask_with((128, 400), (50, 60, 70, 80), (50, 170, 70, 190))
    image = np.zeros((128, 400, 3), np.uint8)
    first, second = plan_windows(mask, 128)
    white = np.full((128, 128, 3), 255, np.uint8)
    once = uncrop(white, image, mask, first)
    assert once[60, 70].tolist() == [255] * 3 and once[60, 180].tolist() == [0] * 3
    both = uncrop(white, once, mask, second)
    assert both[60, 70].tolist() == [255] * 3 and both[60, 180].tolist() == [255] * 3
    assert np.array_equal(both[feather(mask) == 0], image[feather(mask) == 0])
