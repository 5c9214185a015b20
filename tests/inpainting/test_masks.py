"""Random holes: those that the network is trained on, and those of a kind and a share that an evaluation draws."""

import numpy as np
import pytest
from scipy import ndimage

from moebius_lab import LabError
from moebius_lab.config import MASK_KINDS
from moebius_lab.inpainting import masks


def test_masks_stay_in_their_range_and_repeat_with_their_seed():
    drawn = masks.random_masks(60, seed=3, size=128)
    area = drawn.mean(axis=(1, 2))
    assert set(np.unique(drawn)) == {0, 1}
    assert area.min() >= masks.LEAST_AREA and area.max() <= masks.MOST_AREA
    assert area.max() > 4 * area.min()  # thin and broad ones
    assert np.array_equal(drawn, masks.random_masks(60, seed=3, size=128))
    assert not np.array_equal(drawn, masks.random_masks(60, seed=4, size=128))


def test_some_holes_touch_a_side_and_every_side_is_touched():
    drawn = masks.random_masks(200, seed=0, size=64)
    touched = [drawn[:, 0].any(1), drawn[:, -1].any(1), drawn[:, :, 0].any(1), drawn[:, :, -1].any(1)]
    assert all(side.mean() > 0.04 for side in touched)
    assert 0.2 < np.any(touched, axis=0).mean() < 0.6


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("shares", [(0.02, 0.1), (0.2, 0.21), (0.4, 0.5)])
@pytest.mark.parametrize("kind", MASK_KINDS)
def test_a_hole_of_a_kind_takes_its_share_and_repeats_with_its_seed(kind, shares, size):
    drawn = [masks.mask_of_kind(kind, shares, np.random.default_rng(seed), size) for seed in range(12)]
    for mask in drawn:
        assert mask.shape == (size, size) and set(np.unique(mask)) == {0, 1} and shares[0] <= mask.mean() <= shares[1]
    assert np.array_equal(drawn[3], masks.mask_of_kind(kind, shares, np.random.default_rng(3), size))
    assert len({mask.tobytes() for mask in drawn}) >= (1 if kind == "centre" else 9)


def test_kinds_differ_in_how_far_a_hole_s_inside_is_from_its_edge():
    deepest = {
        kind: np.mean(
            [
                ndimage.distance_transform_edt(masks.mask_of_kind(kind, (0.4, 0.5), np.random.default_rng(i), 128)).max()
                for i in range(6)
            ]
        )
        for kind in MASK_KINDS
    }
    assert 2 * deepest["thin"] < deepest["thick"] < deepest["box"] < deepest["centre"] * 1.01


@pytest.mark.parametrize(
    ("kind", "shares", "words"),
    [
        ("star", (0.4, 0.5), "no kind of mask 'star'"),
        ("box", (0.5, 0.4), "must run from"),
        ("box", (0.0, 0.4), "must run from"),
        ("centre", (0.30001, 0.30002), "no hole of the kind 'centre' takes"),
    ],
)
def test_a_share_that_no_hole_has(kind, shares, words):
    with pytest.raises(LabError, match=words):
        masks.mask_of_kind(kind, shares, np.random.default_rng(0), 64)
