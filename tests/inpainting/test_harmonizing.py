"""A fill that agrees with its surroundings: its colours, its fine texture, and what stays as it was made."""

import cv2
import numpy as np
import pytest

from moebius_lab import LabError
from moebius_lab.config import MOST_DETAIL, PRESETS
from moebius_lab.evidence.measures import texture_ratio
from moebius_lab.inpainting.harmonizing import fine_detail, harmonized, luma_and_differences
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.loop import Settings, inpaint, preset

SIZE = 128


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[40:90, 30:80] = 255
    return mask


def noisy(mean: tuple[int, int, int], spread: float, seed: int = 0) -> np.ndarray:
    """uint8 (SIZE, SIZE, 3): one colour with grain that is the same in all channels."""
    grain = np.random.default_rng(seed).normal(0, spread, (SIZE, SIZE, 1))
    return np.clip(np.array(mean) + grain, 0, 255).astype(np.uint8)


def test_a_grey_picture_is_filled_in_grey(mask):
    made = noisy((140, 120, 100), 9)
    fill = harmonized(made, noisy((128, 128, 128), 9), mask)[feather(mask) > 0]
    assert (fill == fill[..., :1]).all(), "also where it fades out"
    luma = luma_and_differences(made)[0][feather(mask) > 0] / 4
    assert abs(fill[..., 0].mean() - luma.mean()) < 0.5, "as bright as it was made"


def test_each_hole_agrees_with_its_own_surroundings():
    seen = np.where(np.arange(SIZE)[:, None, None] < SIZE // 2, noisy((128, 128, 128), 3), noisy((200, 120, 40), 12))
    made, mask = noisy((140, 120, 100), 6), np.zeros((SIZE, SIZE), np.uint8)
    mask[20:40, 20:60] = mask[90:110, 60:110] = 255
    both = harmonized(made, seen, mask)
    for rows in (slice(0, 64), slice(64, SIZE)):
        alone = np.zeros_like(mask)
        alone[rows] = mask[rows]
        where = feather(alone) > 0
        assert (both[where] == harmonized(made, seen, alone)[where]).all()
    grey, coloured = both[20:40, 20:60].astype(int), both[90:110, 60:110].astype(int)
    assert (grey == grey[..., :1]).all() and (coloured[..., 0] - coloured[..., 2]).mean() > 100
    assert np.diff(grey[..., 0]).std() < 0.8 * np.diff(coloured[..., 0]).std(), "smoother, as it is around it"


def test_holes_that_fade_into_each_other_are_one(mask):
    made, seen = noisy((140, 120, 100), 6), noisy((128, 128, 128), 9)
    seen[:, 82:] = noisy((200, 120, 40), 12)[:, 82:]
    left = mask.copy()
    left[:, 55:] = mask[40:90, 55:58] = 0  # a strip of what is known, in grey
    alone, both = (harmonized(made, seen, each)[40:90, 30:55].astype(int) for each in (left, mask))
    assert (alone == alone[..., :1]).all() and (both[..., 0] - both[..., 2]).mean() > 30, "the colours are beside the other"


def test_a_colour_that_is_nowhere_around_is_moved_to_the_nearest_that_is(mask):
    seen = noisy((60, 120, 60), 4)
    seen[20:30] = noisy((90, 100, 60), 4)[20:30]
    known = [difference[16:114, 6:104] for difference in luma_and_differences(seen)[1:]]  # 24 px around the hole
    seen[:10] = 255, 0, 200  # what lies further away does not count
    fill = harmonized(noisy((250, 10, 200), 4), seen, mask)
    for found, allowed in zip((difference[feather(mask) > 0] for difference in luma_and_differences(fill)[1:]), known):
        assert allowed.min() - 4 <= found.min() and found.max() <= allowed.max() + 4  # but for rounding
    assert (harmonized(seen, seen, mask)[60:70] == seen[60:70]).all(), (
        "what has the colours and the texture stays, bit for bit"
    )


@pytest.mark.parametrize(("made_spread", "seen_spread"), [(4, 8), (8, 4), (6, 7), (1, 40), (40, 1)])
def test_fine_texture_comes_half_way_and_no_further(mask, made_spread, seen_spread):
    made, seen = noisy((120, 120, 120), made_spread, 1), noisy((120, 120, 120), seen_spread, 2)
    hole = mask > 0
    before = texture_ratio(np.where(hole[..., None], made, seen).astype(np.uint8), hole)
    after = texture_ratio(np.where(hole[..., None], harmonized(made, seen, mask), seen).astype(np.uint8), hole)
    wanted = np.clip(np.sqrt(1 / before), MOST_DETAIL**-2, MOST_DETAIL**2)  # of the energy
    assert after / before == pytest.approx(wanted, rel=0.2)


def test_a_smooth_fill_beside_a_smooth_picture_stays_as_it_was_made(mask):
    flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
    assert (harmonized(flat, flat, mask) == 90).all()
    ramp = np.repeat(np.arange(SIZE, dtype=np.uint8)[None, :, None], SIZE, 0).repeat(3, 2)
    assert (harmonized(ramp, ramp, mask)[1:-1, 1:-1] == ramp[1:-1, 1:-1]).all()


def test_holes_that_leave_nothing_to_compare_with(mask):
    made, seen = noisy((200, 90, 30), 9), noisy((128, 128, 128), 9, 3)
    for value in (0, 255):
        assert harmonized(made, seen, np.full_like(mask, value)) is made, "nothing is hole, or nothing is known"
    line = np.zeros_like(mask)
    line[64] = 255
    assert (harmonized(made, seen, line)[64, :, 0] == harmonized(made, seen, line)[64, :, 2]).all(), (
        "no core: the hole itself"
    )
    almost = np.full_like(mask, 255)
    almost[0, 0] = 0
    assert harmonized(made, seen, almost).shape == made.shape


def test_fine_detail_is_what_a_small_blur_takes(mask):
    grey = noisy((120, 120, 120), 20)[..., 0]
    binomial = cv2.sepFilter2D(
        grey.astype(np.float64), cv2.CV_64F, *[np.array([1.0, 2, 1]) / 4] * 2, borderType=cv2.BORDER_REPLICATE
    )
    assert fine_detail(grey.astype(np.int32)) / 16 == pytest.approx(grey - binomial)


class Coloured:
    """A backend whose every picture is of one colour that the picture has not."""

    name = "one colour"

    def __init__(self, backend) -> None:
        self.config, self.encode, self.step = backend.config, backend.encode, backend.step

    def decode(self, latent):
        import torch

        return torch.tensor([0.5, -0.5, 0.0])[None, :, None, None].expand(
            1, 3, self.config.image_size, self.config.image_size
        )


def test_presets_for_pictures_harmonize_and_as_released_does_not(small):
    assert {name: entry.harmonize for name, entry in PRESETS.items()} == {
        "fast": True,
        "fastest": True,
        "as-released": False,
    }
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (140, 150, 1), dtype=np.uint8), 3, 2)
    mask = np.zeros((140, 150), np.uint8)
    mask[50:70, 60:90] = 255
    backend = Coloured(small.torch_backend)
    harmonious = inpaint(backend, image, mask, preset("fastest"))
    assert (harmonious == harmonious[..., :1]).all()
    plain = inpaint(backend, image, mask, Settings(steps=1, strength=1.0))
    assert (plain[60, 75] == [191, 63, 127]).all()
    with pytest.raises(LabError, match="harmonize must be true or false"):
        Settings(harmonize=2)
