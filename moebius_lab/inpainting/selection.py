"""Selecting with a click: masks from colours and edges, and masks made larger, smaller, softer or whole.

A selection is bool (H, W); positions are whole px, x to the right and y down. The page has the same functions
(`web/interface/selection.js`) and gives the same masks, pixel for pixel.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage
from skimage.graph import MCP_Geometric
from skimage.measure import label
from skimage.segmentation import flood

from ..config import MOST_GROWTH, WIRE_MARGIN
from .imaging import ImageError

Pixel = tuple[int, int]
"""x and y of a pixel."""

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # rows, columns


def wand(image: np.ndarray, point: Pixel, tolerance: int, contiguous: bool = True) -> np.ndarray:
    """The pixels that have the colour of one, or nearly.

    Args:
        image: uint8 (H, W, 3).
        point: the pixel.
        tolerance: 0..255: by how much red, green and blue may each differ from it.
        contiguous: only pixels that such pixels connect with it, side by side.

    Returns:
        bool (H, W).
    """
    x, y = inside(point, image.shape)
    low, high = (tuple(int(v) + by for v in image[y, x]) for by in (-tolerance, tolerance))
    near = cv2.inRange(image, low, high)
    return flood(near, (y, x), connectivity=1) if contiguous else near > 0


def wire(image: np.ndarray, start: Pixel, end: Pixel) -> list[Pixel]:
    """The way from one pixel to another that follows edges: live-wire, or intelligent scissors (Mortensen and Barrett, 1995).

    A pixel costs 4 on the strongest edges and 258 where nothing is to be seen; a step to one of the eight neighbours costs the
    mean of both pixels times its length. Of ways that cost the same, the last steps that come first in `NEIGHBOURS` are taken.

    Args:
        image: uint8 (H, W, 3).
        start, end: the two ends; both are part of the way.

    Returns:
        Every pixel of the way, in order.
    """
    (x0, y0), (x1, y1) = inside(start, image.shape), inside(end, image.shape)
    margin = WIRE_MARGIN + max(abs(x1 - x0), abs(y1 - y0)) // 4
    left, top = max(min(x0, x1) - margin, 0), max(min(y0, y1) - margin, 0)
    part = image[top : max(y0, y1) + margin + 1, left : max(x0, x1) + margin + 1]
    spent, _ = MCP_Geometric(costs := edge_costs(part)).find_costs([(y0 - top, x0 - left)])
    at, goal = (y1 - top, x1 - left), (y0 - top, x0 - left)
    way = [at]
    while at != goal:
        at = next(before for before in _around(at, spent.shape) if spent[before] + _step(costs, before, at) == spent[at])
        way.append(at)
    return [(x + left, y + top) for y, x in reversed(way)]


def edge_costs(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) -> float64 (h, w) of whole numbers: 4 + (255 - e)^2 / 256, with e half the Sobel gradient of the channel
    that changes most, at most 255."""
    ways = ((1, 0), (0, 1))
    across, down = (cv2.Sobel(image, cv2.CV_16S, *way, ksize=3, borderType=cv2.BORDER_REPLICATE) for way in ways)
    edge = np.minimum((np.abs(across.astype(np.int32)) + np.abs(down)).max(axis=2) >> 1, 255)
    return (4 + ((255 - edge) ** 2 >> 8)).astype(np.float64)


def _around(at: Pixel, shape: tuple[int, ...]) -> list[Pixel]:
    places = ((at[0] + dy, at[1] + dx) for dy, dx in NEIGHBOURS)
    return [(y, x) for y, x in places if 0 <= y < shape[0] and 0 <= x < shape[1]]


def _step(costs: np.ndarray, a: Pixel, b: Pixel) -> float:
    """What a step costs, in the arithmetic of `MCP_Geometric`."""
    length = np.sqrt(2.0) if a[0] != b[0] and a[1] != b[1] else 1.0
    return length * 0.5 * (costs[a] + costs[b])


def grow(selection: np.ndarray, px: int) -> np.ndarray:
    """bool (H, W) -> the pixels that are at most `px`, 0 to `MOST_GROWTH`, from a selected one."""
    return _squared_distance(selection, px) <= px * px


def shrink(selection: np.ndarray, px: int) -> np.ndarray:
    """bool (H, W) -> the pixels that are more than `px` from every one that is not selected; the picture's edge is none."""
    return ~grow(~selection, px)


def feather(selection: np.ndarray, px: int) -> np.ndarray:
    """bool (H, W) -> uint8 (H, W): 255 inside and 0 outside, with a straight ramp over `px` on both sides of the edge.

    The hole, from 128 on, stays the same. Its values count where a fill is blended in as released; see `config.COVERAGES`.
    """
    inward = np.sqrt(np.minimum(_squared_distance(~selection, px), (px + 1) ** 2))
    outward = np.sqrt(np.minimum(_squared_distance(selection, px), (px + 1) ** 2))
    depth = np.where(selection, inward - 0.5, 0.5 - outward)  # px from the edge, which runs between two pixels
    return np.floor(np.clip(127.5 + 127.5 * depth / max(px, 0.5), 0, 255) + 0.5).astype(np.uint8)


def _squared_distance(selection: np.ndarray, px: int) -> np.ndarray:
    """int64 (H, W): px^2 from each pixel to the nearest selected one; where none is selected, far."""
    if not 0 <= px <= MOST_GROWTH:
        raise ImageError(f"a selection grows, shrinks and is feathered by 0 to {MOST_GROWTH} px, not by {px}")
    if not selection.any():
        return np.full(selection.shape, np.iinfo(np.int64).max)
    return np.rint(ndimage.distance_transform_edt(~selection) ** 2).astype(np.int64)


def fill_holes(selection: np.ndarray) -> np.ndarray:
    """bool (H, W) -> with everything that it encloses: what no way of side-by-side pixels joins with the picture's edge."""
    return ndimage.binary_fill_holes(selection)


def keep_largest(selection: np.ndarray) -> np.ndarray:
    """bool (H, W) -> its largest part; pixels that touch at a corner are of one part. Of parts as large, the uppermost, then
    the one that begins furthest left."""
    if not selection.any():
        return selection.copy()
    parts = label(selection, connectivity=2)
    return parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1


def inside(point: Pixel, shape: tuple[int, ...]) -> Pixel:
    """A point as two ints; ImageError where it lies outside a picture of this shape."""
    x, y = (int(v) for v in point)
    if not (0 <= x < shape[1] and 0 <= y < shape[0]):
        raise ImageError(f"({x}, {y}) is not a pixel of the picture, {shape[1]} x {shape[0]} px")
    return x, y
