"""Selections on pictures whose answer is known; tests/web compares the page's with these functions on photographs."""

import numpy as np
import pytest
from scipy import ndimage

from moebius_lab.config import MOST_GROWTH
from moebius_lab.inpainting.imaging import ImageError, is_hole
from moebius_lab.inpainting.selection import feather, fill_holes, grow, keep_largest, shrink, wand, wire

YY, XX = np.mgrid[:60, :80]
DISC = (YY - 30) ** 2 + (XX - 40) ** 2 <= 15**2
PICTURE = np.where(DISC[..., None], (200, 40, 40), (90, 120, 60)).astype(np.uint8)


def test_the_wand_takes_a_colour_and_what_is_near_it():
    assert np.array_equal(wand(PICTURE, (40, 30), 20), DISC)
    assert np.array_equal(wand(PICTURE, (0, 0), 0), ~DISC)
    assert wand(PICTURE, (40, 30), 110).all()  # red differs most, by 110
    assert np.array_equal(wand(PICTURE, (40, 30), 109), DISC)


def test_the_wand_stops_where_its_colour_does_unless_it_is_told_to_go_on():
    striped = PICTURE.copy()
    striped[:, 40] = 0
    left = wand(striped, (30, 30), 20)
    assert np.array_equal(left, DISC & (XX < 40))
    assert np.array_equal(wand(striped, (30, 30), 20, contiguous=False), DISC & (XX != 40))


def test_a_wire_follows_the_edge_instead_of_the_straight_way():
    way = wire(PICTURE, (25, 30), (55, 30))
    assert way[0] == (25, 30) and way[-1] == (55, 30)
    steps = np.abs(np.diff(way, axis=0))
    assert steps.max() == 1 and (steps.sum(axis=1) > 0).all()
    radii = np.hypot(*(np.array(way) - (40, 30)).T)
    assert np.abs(radii - 15).max() < 1.5  # round the disc, not through it
    assert wire(PICTURE, (3, 3), (3, 3)) == [(3, 3)]


def test_growing_and_shrinking_go_by_distance():
    one = np.zeros((40, 40), bool)
    one[20, 20] = True
    distance = ndimage.distance_transform_edt(~one)
    for px in (0, 1, 5, 13):
        assert np.array_equal(grow(one, px), distance <= px + 1e-9)
    assert np.array_equal(shrink(grow(one, 13), 12), distance <= 1)
    corner = np.ones((5, 5), bool)
    corner[0, 0] = False
    assert shrink(corner, 1).sum() == 22 and shrink(np.ones((5, 5), bool), 3).all()
    assert not grow(np.zeros((5, 5), bool), 3).any()
    for px in (-1, MOST_GROWTH + 1):
        with pytest.raises(ImageError, match="by 0 to"):
            grow(one, px)


@pytest.mark.parametrize("px", [0, 1, 4, 9])
def test_feathering_keeps_the_hole_and_is_a_ramp_on_both_sides(px):
    values = feather(DISC, px)
    assert np.array_equal(is_hole(values), DISC)
    inside, outside = ndimage.distance_transform_edt(DISC), ndimage.distance_transform_edt(~DISC)
    assert (values[inside > px + 0.5] == 255).all() and (values[outside > px + 0.5] == 0).all()
    assert px == 0 or set(np.unique(values)) - {0, 255}


def test_what_is_enclosed_and_what_is_largest():
    ring = DISC & ~(np.hypot(YY - 30, XX - 40) < 8)
    ring[2:5, 2:5] = True
    assert np.array_equal(fill_holes(ring), ring | DISC)
    assert np.array_equal(keep_largest(ring), ring & DISC)
    assert not keep_largest(np.zeros((4, 4), bool)).any()
    diagonal = np.eye(4, dtype=bool)
    assert np.array_equal(keep_largest(diagonal), diagonal)
    for outside in ((80, 0), (-1, 0), (0, 60)):
        with pytest.raises(ImageError, match="is not a pixel"):
            wand(PICTURE, outside, 3)
