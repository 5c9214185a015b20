"""Outpainting: a larger canvas around a picture, and the windows through which the new area is filled.

The old pixels stay bit-identical. The new area grows around them in rings of at most half a window, each ring in pieces that are
filled one after another, at the model's own scale: what a window shows besides its piece is the old picture and the pieces before
it. Two things hide the seams. Pieces fade into earlier ones, as the feather of any hole does. And each piece takes over the
difference between what is known around it and what the model made of the same pixels, averaged over `EXTENSION_REACH` px: an
autoencoder shifts colours a little, and beside pixels that must not change such a shift would be a line.

The page does the same (`web/engine/extending.js`), pixel for pixel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .. import LabError
from ..config import EXTENSION_BEYOND, EXTENSION_DEPTH, EXTENSION_REACH, WHOLE, WINDOW_MARGIN
from .imaging import ImageError, Window, check_size, crop, is_hole, mix, outward_weights, plan_windows, uncrop
from .picture_files import Picture

SIDES = ("left", "top", "right", "bottom")
RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*[:x/]\s*(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Extension:
    """How many px a canvas grows on each side of a picture; at least one of them is not 0."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __post_init__(self) -> None:
        if min(self.left, self.top, self.right, self.bottom) < 0 or not any(vars(self).values()):
            raise LabError("extend a picture by 1 px or more on at least one side, as in left=200 right=50")

    def inside(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the old picture on a canvas of this size (px); the last two are exclusive."""
        return self.left, self.top, width - self.right, height - self.bottom


def parse_extension(words: Iterable[str]) -> Extension:
    """An extension as a person writes it: "left=200", "bottom=30" and so on, each side at most once.

    Raises:
        LabError: anything else.
    """
    found: dict[str, int] = {}
    for word in words:
        side, _, size = word.partition("=")
        if side not in SIDES or not size.isascii() or not size.isdigit() or side in found:
            raise LabError(f"{word!r} does not say by how many px to extend which side: write, once a side, left=200")
        found[side] = int(size)
    return Extension(**found)


def extension_to(ratio: str, width: int, height: int) -> Extension:
    """What brings a picture of `width` x `height` px to an aspect ratio such as "16:10", and keeps it in the middle.

    The canvas is the smallest that holds the picture; its odd pixel is on the right or at the bottom.

    Raises:
        LabError: no ratio, or the picture has it already.
    """
    matched = RATIO.fullmatch(ratio.strip())
    across, down = (float(part) for part in matched.groups()) if matched else (0.0, 0.0)
    if not across or not down:
        raise LabError(f"{ratio!r} is not an aspect ratio: write it as in 16:10")
    more = max(0, round_half_up(height * across / down) - width), max(0, round_half_up(width * down / across) - height)
    if not any(more):
        raise LabError(f"the picture, {width} x {height} px, is {ratio} already")
    return Extension(more[0] // 2, more[1] // 2, more[0] - more[0] // 2, more[1] - more[1] // 2)


def round_half_up(x: float) -> int:
    """The nearest whole number, as JavaScript's Math.round gives it."""
    return math.floor(x + 0.5)


def extend(picture: Picture, extension: Extension) -> Picture:
    """A picture on its larger canvas, the old pixels where the extension says; the new area mirrors them and is opaque.

    Raises:
        ImageError: the canvas is too large.
    """
    height, width = picture.rgb.shape[:2]
    check_size(width + extension.left + extension.right, height + extension.top + extension.bottom, "the extended picture")

    def larger(pixels: np.ndarray, fill: int | None = None) -> np.ndarray:
        wide = [(extension.top, extension.bottom), (extension.left, extension.right), (0, 0)][: pixels.ndim]
        return np.pad(pixels, wide, "symmetric") if fill is None else np.pad(pixels, wide, constant_values=fill)

    rgb = larger(picture.rgb)
    stored = rgb if picture.stored is picture.rgb else larger(picture.stored)
    alpha = None if picture.alpha is None else larger(picture.alpha, 255)
    return replace(picture, rgb=rgb, stored=stored, alpha=alpha)


def extend_mask(mask: np.ndarray | None, extension: Extension, shape: tuple[int, int]) -> np.ndarray:
    """The mask of an extended picture, uint8 (H, W): all of the new area is hole, besides a mask of the old one if there is one.

    Args:
        mask: uint8 of the old picture's size, or None.
        extension: how the picture was extended.
        shape: (H, W) of the extended picture.

    Raises:
        ImageError: the mask has another size than the old picture.
    """
    left, top, right, bottom = extension.inside(shape[1], shape[0])
    if mask is not None and mask.shape != (bottom - top, right - left):
        sizes = f"{mask.shape[1]} x {mask.shape[0]} px but the picture is {right - left} x {bottom - top} px"
        raise ImageError(f"the mask is {sizes}; make them the same size")
    extended = np.full(shape, 255, np.uint8)
    extended[top:bottom, left:right] = 0 if mask is None else mask
    return extended


# -- windows -----------------------------------------------------------------------------------------------------------


def plan_filling(mask: np.ndarray, size: int, coverage: str = WHOLE, extension: Extension | None = None) -> list[Window]:
    """The windows that fill `mask` (uint8 (H, W)), in order: those of `plan_windows`, then those of the new area.

    Args:
        mask: of the extended picture, where there is an extension.
        size: px, side of the model's input.
        coverage: one of `config.COVERAGES`, for holes in the old picture; the new area is always replaced whole.
        extension: how the picture was extended; None if it was not.
    """
    if extension is None:
        return plan_windows(mask, size, coverage)
    height, width = mask.shape
    left, top, right, bottom = extension.inside(width, height)
    old_mask = np.zeros_like(mask)
    old_mask[top:bottom, left:right] = mask[top:bottom, left:right]
    before = plan_windows(old_mask, size, coverage) if is_hole(old_mask).any() else []
    sides = tuple(px > 0 for px in vars(extension).values())
    pieces = list(_pieces(extension, width, height, size))
    owners = np.zeros(mask.shape, np.min_scalar_type(len(before) + len(pieces)))
    if before:
        owners[:] = before[0].owners
    windows = [replace(window, owners=owners) for window in before]
    hole = is_hole(mask)
    for x0, y0, x1, y1, window_left, window_top in pieces:
        part = hole[y0:y1, x0:x1]
        if part.any():
            number = len(windows) + 1
            owners[y0:y1, x0:x1][part] = number
            windows.append(Window(window_left, window_top, size, number, owners, sides))
    return windows


def _pieces(extension: Extension, width: int, height: int, size: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Rectangles of the new area in the order of filling, each with the upper left corner of its window.

    In every ring the strips on the left and right come first, as high as what is inside; then those at the top and bottom, which
    hold the corners. Across its strip a window reaches a little further: what a model makes at the very edge of its window is poor,
    and is not used.
    """
    old = extension.inside(width, height)
    rings = math.ceil(max(vars(extension).values()) / (size * EXTENSION_DEPTH // 16))
    longest = int(size * (1 - 2 * WINDOW_MARGIN))

    def ring(i: int) -> tuple[int, int, int, int]:
        rest = rings - i
        right, bottom = width - (width - old[2]) * rest // rings, height - (height - old[3]) * rest // rings
        return old[0] * rest // rings, old[1] * rest // rings, right, bottom

    def beyond(depth: int) -> int:
        """How far a window reaches past a strip of this depth, 0 where there is none."""
        return max(size * EXTENSION_BEYOND // 16, size // 4 - depth) if depth else 0

    def parts(start: int, stop: int) -> Iterator[tuple[int, int]]:
        count = math.ceil((stop - start) / longest)
        for k in range(count):
            yield start + (stop - start) * k // count, start + (stop - start) * (k + 1) // count

    def along(start: int, stop: int, length: int, before: int, after: int) -> int:
        low, high = -beyond(before), length - size + beyond(after)
        return (length - size) // 2 if low > high else min(max((start + stop - size) // 2, low), high)

    for i in range(1, rings + 1):
        (left, top, right, bottom), (inner_left, inner_top, inner_right, inner_bottom) = ring(i), ring(i - 1)
        for y0, y1 in parts(inner_top, inner_bottom):
            at = along(y0, y1, height, extension.top, extension.bottom)
            if inner_left > left:
                yield left, y0, inner_left, y1, left - beyond(inner_left - left), at
            if right > inner_right:
                yield inner_right, y0, right, y1, right + beyond(right - inner_right) - size, at
        for x0, x1 in parts(left, right):
            at = along(x0, x1, width, extension.left, extension.right)
            if inner_top > top:
                yield x0, top, x1, inner_top, at, top - beyond(inner_top - top)
            if bottom > inner_bottom:
                yield x0, inner_bottom, x1, bottom, at, bottom + beyond(bottom - inner_bottom) - size


# -- what the model sees -----------------------------------------------------------------------------------------------


def see(image: np.ndarray, hole: np.ndarray, window: Window, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`crop` for any window of `plan_filling`: beyond the edges of new canvas there is more hole, not a mirrored picture."""
    seen, mask = crop(image, hole, window, size)
    if window.new_canvas:
        height, width = hole.shape
        left, top, right, bottom = window.new_canvas
        for past, at in (
            (left, np.s_[:, : max(-window.left, 0)]), (top, np.s_[: max(-window.top, 0)]),
            (right, np.s_[:, max(width - window.left, 0) :]), (bottom, np.s_[max(height - window.top, 0) :]),
        ):  # fmt: skip
            if past:
                mask[at] = 255
    return seen, mask


# -- pasting -----------------------------------------------------------------------------------------------------------


def put_back(new: np.ndarray, image: np.ndarray, mask: np.ndarray, window: Window, coverage: str = WHOLE) -> np.ndarray:
    """`uncrop` for any window of `plan_filling`: through one of the new area the old pixels stay as they are."""
    return _join(new, image, window) if window.new_canvas else uncrop(new, image, mask, window, coverage)


def _join(new: np.ndarray, image: np.ndarray, window: Window) -> np.ndarray:
    """Paste a piece of the new area: a new picture, equal to `image` in the old area and in pieces that come later.

    With K the pixels that are known (the old ones and earlier pieces) and B those of a box of 2 `EXTENSION_REACH` + 1 px a side
    around a pixel that the window shows, the pixel becomes new + sum over B and K of (image - new) / max(|B and K|, |B| / 2),
    rounded and clipped. At a straight edge this adds the mean difference, which fades to nothing `EXTENSION_REACH` px into the piece.

    Args:
        new: uint8 (size, size, 3), the model's output for `crop`; such a window has the model's own size.
        image: uint8 (H, W, 3).
        window: one of `plan_filling`, with `new_canvas`.
    """
    rows, cols = inside = window.visible
    seen = new[rows.start - window.top : rows.stop - window.top, cols.start - window.left : cols.stop - window.left]
    owners, old = window.owners[inside], image[inside]
    known = owners < window.number
    lacking = (old.astype(np.int64) - seen) * known[:, :, None]
    count = np.maximum(2 * _box_sum(known.astype(np.int64)), _box_sum(np.ones(known.shape, np.int64)))[:, :, None]
    corrected = np.clip(seen + (4 * _box_sum(lacking) + count) // (2 * count), 0, 255).astype(np.uint8)
    fading = outward_weights(owners == window.number)
    weights = np.where((owners > 0) & (owners <= window.number), fading, 0)[:, :, None].astype(np.uint8)
    result = image.copy()
    result[inside] = mix(corrected, old, weights)
    return result


def _box_sum(values: np.ndarray) -> np.ndarray:
    """Integers (h, w, ...) -> of the same shape: sums over the box around each pixel, with nothing beyond the edges."""
    for axis in (0, 1):
        length = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        i = np.arange(length)
        high, low = np.minimum(i + EXTENSION_REACH + 1, length), np.maximum(i - EXTENSION_REACH, 0)
        values = sums.take(high, axis) - sums.take(low, axis)
    return values
