"""A larger canvas: its size, the windows that fill it, and that neither the old pixels nor a seam give it away."""

import numpy as np
import pytest
from PIL import Image

from moebius_lab import LabError
from moebius_lab.config import AS_RELEASED, EXTENSION_REACH
from moebius_lab.inpainting.colours import PRIMARIES, TRANSFERS, make_profile
from moebius_lab.inpainting.extending import (
    Extension,
    extend,
    extend_mask,
    extension_to,
    parse_extension,
    plan_filling,
    put_back,
)
from moebius_lab.inpainting.imaging import ImageError, crop, feather, is_hole, plan_windows
from moebius_lab.inpainting.loop import Settings, inpaint, inpaint_picture
from moebius_lab.inpainting.picture_files import plan_output, read_picture
from moebius_lab.notebook.workbench import prepare

RNG = np.random.default_rng(0)
EXTENSIONS = [
    Extension(left=30),
    Extension(5, 7, 90, 11),
    Extension(bottom=200),
    Extension(1, 1, 1, 1),
    Extension(0, 0, 0, 1),
]


def test_an_aspect_ratio_keeps_the_picture_in_the_middle():
    assert extension_to("16:10", 720, 405) == Extension(0, 22, 0, 23)
    assert extension_to("1:1", 720, 405) == Extension(0, 157, 0, 158)
    assert extension_to("2.35:1", 100, 100) == Extension(67, 0, 68, 0)
    assert extension_to("3x2", 10, 100) == Extension(70, 0, 70, 0)
    for ratio in ("16", "0:1", "1:0", "a:b", "16:9"):
        with pytest.raises(LabError):
            extension_to(ratio, 720, 405)


def test_an_extension_is_read_as_a_person_writes_it():
    assert parse_extension(["left=200", "bottom=3"]) == Extension(left=200, bottom=3)
    for words in (["left"], ["left=1.5"], ["left=²"], ["left=1", "left=2"], ["up=3"], ["left=0"], []):
        with pytest.raises(LabError):
            parse_extension(words)


def test_the_new_area_mirrors_the_picture_and_is_opaque():
    pixels = RNG.integers(0, 256, (6, 8, 4), dtype=np.uint8)
    larger = extend(read_picture(pixels), Extension(3, 0, 20, 2))
    assert larger.rgb.shape == (8, 31, 3)
    assert np.array_equal(larger.rgb[:6, 3:11], pixels[:, :, :3]) and np.array_equal(larger.alpha[:6, 3:11], pixels[:, :, 3])
    assert np.array_equal(larger.rgb[:6, 2::-1], pixels[:, :3, :3]) and np.array_equal(larger.rgb[6, 3:11], pixels[5, :, :3])
    outside = extend_mask(None, Extension(3, 0, 20, 2), (8, 31)) == 255
    assert (larger.alpha[outside] == 255).all() and outside.sum() == 8 * 31 - 48
    with pytest.raises(ImageError, match="make them the same size"):
        extend_mask(np.zeros((8, 31), np.uint8), Extension(3, 0, 20, 2), (8, 31))


@pytest.mark.parametrize("extension", EXTENSIONS, ids=str)
@pytest.mark.parametrize("width, height", [(160, 90), (40, 30), (70, 200)])
def test_every_new_pixel_is_filled_once_by_a_window_that_shows_what_is_known(extension, width, height):
    size = 64
    shape = (height + extension.top + extension.bottom, width + extension.left + extension.right)
    mask = extend_mask(None, extension, shape)
    windows = plan_filling(mask, size, extension=extension)
    assert np.array_equal(sum(window.hole.astype(int) for window in windows), is_hole(mask).astype(int))
    for window in windows:
        own = window.hole
        assert own.any() and not own[~_seen(window, shape)].any() and window.side == size
        known = (window.owners < window.number)[window.visible]
        assert known.any()  # the old picture or a piece before it
    inner = plan_filling(mask, size, AS_RELEASED, extension)
    assert [(w.left, w.top, w.number) for w in inner] == [(w.left, w.top, w.number) for w in windows]


def _seen(window, shape):
    seen = np.zeros(shape, bool)
    seen[window.visible] = True
    return seen


def test_holes_of_the_old_picture_are_filled_first():
    extension = Extension(left=40, bottom=3)
    hole = np.zeros((90, 160), np.uint8)
    hole[10:20, 2:9] = hole[70:88, 100:130] = 255
    mask = extend_mask(hole, extension, (93, 200))
    mask[:, :5] = 0  # some of the new area is not to be filled
    windows = plan_filling(mask, 64, extension=extension)
    assert [bool(window.new_canvas) for window in windows[:3]] == [False, False, True]
    assert np.array_equal(sum(window.hole.astype(int) for window in windows), is_hole(mask).astype(int))
    assert len({id(window.owners) for window in windows}) == 1
    assert plan_filling(hole, 64)[0].side == plan_windows(hole, 64)[0].side


def test_a_shift_of_colour_fades_into_the_new_area_and_leaves_no_line():
    """What the model makes is the picture, but lighter on the left and darker on the right: at the seam that is not seen."""
    yy, xx = np.mgrid[:128, :192]
    truth = np.stack([60 + xx // 2, 200 - yy, 90 + (xx + yy) // 4], axis=-1).astype(np.uint8)
    extension = Extension(left=40, right=40)
    mask = extend_mask(None, extension, truth.shape[:2])
    image = np.where(is_hole(mask)[..., None], 0, truth).astype(np.uint8)
    result, left = image, is_hole(mask)
    for window in plan_filling(mask, 128, extension=extension):
        seen, _ = crop(result, left, window, 128)
        top, first = window.top + 128, window.left + 128
        shown = np.pad(truth, ((128, 128), (128, 128), (0, 0)), "edge")[top : top + 128, first : first + 128].astype(int)
        made = np.clip(shown + (12 if window.left < 0 else -12), 0, 255).astype(np.uint8)
        result = put_back(made, result, mask, window)
        left = left & ~window.hole
    error = result.astype(int) - truth
    assert np.array_equal(result[:, 40:152], truth[:, 40:152])
    assert np.abs(error[:, 39]).max() <= 2 and np.abs(error[:, 152]).max() <= 2
    assert np.abs(error).max() <= 12 and np.abs(np.diff(error, axis=1)).max() <= 2
    assert (error[:40, 39 - EXTENSION_REACH] == 12).all()  # further out the model's own colours stand


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """The smallest network in PyTorch."""
    return prepare("tiny", "deterministic", output_dir=str(tmp_path_factory.mktemp("tiny"))).torch_backend


@pytest.mark.parametrize("coverage", ["whole", "as-released"])
@pytest.mark.parametrize("extension", [Extension(left=30), Extension(20, 70, 10, 5)], ids=str)
def test_the_old_pixels_stay_bit_identical(backend, extension, coverage):
    pixels = RNG.integers(0, 256, (80, 100, 3), dtype=np.uint8)
    picture = extend(read_picture(pixels), extension)
    mask = extend_mask(None, extension, picture.rgb.shape[:2])
    settings = Settings(steps=2, strength=1.0, coverage=coverage)
    result = inpaint(backend, picture.rgb, mask, settings, extension=extension)
    left, top, right, bottom = extension.inside(mask.shape[1], mask.shape[0])
    assert np.array_equal(result[top:bottom, left:right], pixels)
    assert (result != picture.rgb)[is_hole(mask)].any(axis=-1).mean() > 0.9
    filled = inpaint_picture(backend, picture, mask, settings, extension=extension)
    assert np.array_equal(filled.rgb, result)


def test_a_grey_picture_is_extended_in_its_own_colours(backend):
    grey = RNG.integers(0, 256, (60, 60), dtype=np.uint8)
    picture = extend(read_picture(grey), Extension(top=30))
    mask = extend_mask(None, Extension(top=30), (90, 60))
    filled = inpaint_picture(backend, picture, mask, Settings(steps=2, strength=1.0), extension=Extension(top=30))
    assert filled.stored.shape == (90, 60) and np.array_equal(filled.stored[30:], grey)


def test_in_a_colour_profile_old_pixels_keep_the_file_s_values_and_new_ones_are_converted(backend, tmp_path):
    wide = make_profile(PRIMARIES[12], TRANSFERS[13], grey=False)  # Display P3
    pixels = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png", icc_profile=wide)
    extension = Extension(left=20, bottom=30)
    picture = extend(read_picture(tmp_path / "wide.png"), extension)
    hole = np.zeros((60, 80), np.uint8)
    hole[20:30, 40:50] = 255
    mask = extend_mask(hole, extension, picture.rgb.shape[:2])
    filled = inpaint_picture(backend, picture, mask, Settings(steps=2, strength=1.0), extension=extension)
    plan_output(tmp_path / "filled.png", filled).write(filled)
    saved = read_picture(tmp_path / "filled.png")
    assert saved.profile == wide and np.array_equal(saved.stored, filled.stored)
    outside = np.ones(mask.shape, bool)
    outside[:60, 20:] = False
    assert np.array_equal(saved.stored[outside], picture.in_its_profile(filled.rgb)[outside])
    kept = feather(hole) == 0
    assert np.array_equal(saved.stored[:60, 20:][kept], pixels[kept]) and kept.mean() > 0.8
    assert (saved.stored[:60, 20:][hole == 255] != pixels[hole == 255]).any()
