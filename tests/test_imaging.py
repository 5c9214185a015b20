import numpy as np
import pytest
from PIL import Image

from moebius_lab.imaging import (
    ImageError,
    check_picture_and_mask,
    crop,
    feather,
    is_hole,
    mask_to_hole,
    mask_to_latent,
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


def test_latent_mask_takes_the_upper_left_pixel_of_each_block():
    mask = np.zeros((16, 16), np.uint8)
    mask[7, 7] = mask[8, 8] = 255
    assert mask_to_latent(mask_to_hole(mask))[0, 0].tolist() == [[0, 0], [0, 1]]


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
    mask = mask_with((100, 600), (40, 50, 60, 550))
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
