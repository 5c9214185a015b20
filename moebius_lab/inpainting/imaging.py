"""Pictures as arrays: the square windows that the model sees, and pasting the result back.

A picture is uint8 (H, W, 3) and a mask uint8 (H, W). The hole is where the mask is 128 or more (`config.MASK_THRESHOLD`),
whatever the exact values. Ranges change only through the named functions. No array is larger than the picture, or than a
window's longer side by the model's: a panorama is never padded to a square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor

from .. import LabError
from ..config import (
    AS_RELEASED,
    FEATHER_WIDTH,
    MASK_BLUR_RADIUS,
    MASK_THRESHOLD,
    MAX_MEGAPIXELS,
    VAE_FACTOR,
    WHOLE,
    WINDOW_MARGIN,
)


class ImageError(LabError):
    """A picture or mask that cannot be used."""


# -- pictures that can be used -----------------------------------------------------------------------------------------


def check_size(width: int, height: int, what: object) -> None:
    """Raise ImageError if a picture of this size (px) exceeds `MAX_MEGAPIXELS`."""
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise ImageError(f"{what}: {width} x {height} px is too large; use a picture of at most {MAX_MEGAPIXELS} megapixels")


def check_picture_and_mask(image: np.ndarray, mask: np.ndarray) -> None:
    """Raise ImageError unless `image` is uint8 (H, W, 3), `mask` uint8 (H, W), and the hole neither empty nor everything."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError("the picture must be an array of uint8 with shape (height, width, 3)")
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2:
        raise ImageError("the mask must be an array of uint8 with shape (height, width), 255 for the hole")
    if mask.shape != image.shape[:2]:
        raise ImageError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} px but the picture is {image.shape[1]} x {image.shape[0]} px; "
            "make them the same size"
        )
    check_size(image.shape[1], image.shape[0], "the picture")
    hole = is_hole(mask)
    if not hole.any():
        raise ImageError("the mask is empty: paint white (128 or more) over what should be replaced")
    if hole.all():
        raise ImageError("the mask covers the whole picture: leave some of it for the model to continue")


# -- conversions -------------------------------------------------------------------------------------------------------


def is_hole(mask: np.ndarray) -> np.ndarray:
    """uint8 mask (H, W) -> bool (H, W): True where mask / 255 >= `MASK_THRESHOLD`, that is from 128 on."""
    return mask >= math.ceil(255 * MASK_THRESHOLD)


def to_unit_range(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) in 0..255 -> float32 (1, 3, H, W) in [-1, 1]."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    return x / 255 * 2 - 1


def to_bytes(x: Tensor) -> np.ndarray:
    """float (1, 3, H, W) in about [-1, 1] -> uint8 (H, W, 3): clipped, then truncated as in the release, not rounded."""
    y = (x[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    return (y.float().numpy() * 255).astype(np.uint8)


def mask_to_hole(mask: np.ndarray) -> Tensor:
    """uint8 mask (H, W) -> float32 (1, 1, H, W): 1 in the hole, 0 outside."""
    return torch.from_numpy(is_hole(mask).astype(np.float32))[None, None]


def mask_to_latent(hole: Tensor, coverage: str = WHOLE) -> Tensor:
    """(1, 1, H, W) -> (1, 1, H/8, W/8), 1 for hole.

    A cell is hole if any pixel of its 8 x 8 block is; as released, if the upper left one is ('nearest').
    """
    if coverage == AS_RELEASED:
        return hole[:, :, ::VAE_FACTOR, ::VAE_FACTOR]
    return F.max_pool2d(hole, VAE_FACTOR)


# -- pasting -----------------------------------------------------------------------------------------------------------


def feather(mask: np.ndarray, coverage: str = WHOLE) -> np.ndarray:
    """uint8 mask (H, W) -> uint8 (H, W): weights of the new picture, 255 for the new picture alone.

    The weight is 255 throughout the hole. Outside, it falls with the distance to the hole and is 0 from `FEATHER_WIDTH` px
    on. It depends on where the hole is, not on the mask's values. As released, the weights are PIL's Gaussian blur of the
    mask, `MASK_BLUR_RADIUS` px: it gives weight to values below the threshold and takes some from the hole's edge.
    """
    if coverage == AS_RELEASED:
        return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(MASK_BLUR_RADIUS)))
    return outward_weights(is_hole(mask))


def outward_weights(hole: np.ndarray) -> np.ndarray:
    """bool (H, W) -> uint8 (H, W): 255 in the hole, falling to 0 at `FEATHER_WIDTH` px from it."""
    return _fading()[nearness(hole, FEATHER_WIDTH)]


@cache
def _fading() -> np.ndarray:
    """Weights by squared distance, uint8 (FEATHER_WIDTH^2 + 1,): 255 (3 t^2 - 2 t^3), t falling from 1 to 0."""
    t = 1 - np.sqrt(np.arange(FEATHER_WIDTH**2 + 1)) / FEATHER_WIDTH
    return np.floor(255 * (t * t * (3 - 2 * t)) + 0.5).astype(np.uint8)


def nearness(ones: np.ndarray, reach: int) -> np.ndarray:
    """bool (H, W) -> uint8 (H, W): px^2 from each pixel to the nearest True, at most `reach`^2; reach is at most 11 px."""
    d = np.where(ones, 0, reach * reach).astype(np.uint8)
    for axis in (1, 0):  # the squared distance is the sum of those along a row and a column
        near = np.moveaxis(d, axis, 0)
        before = near.copy()
        for k in range(1, reach):
            np.minimum(near[k:], before[:-k] + k * k, out=near[k:])
            np.minimum(near[:-k], before[k:] + k * k, out=near[:-k])
    return d


def paste(new: np.ndarray, image: np.ndarray, mask: np.ndarray, coverage: str = WHOLE) -> np.ndarray:
    """Blend `new` into `image` (both uint8 (H, W, 3)) by the weights of `feather`; where these are 0, `image` stays.

    With a = weight / 255 the blend is new a + image (1 - a), rounded. As released it is computed as
    (new/255 a + image/255 (1 - a)) 255 in float64 and truncated.
    """
    weights, result = feather(mask, coverage), image.copy()
    blend = _mix_as_released if coverage == AS_RELEASED else mix
    for rows in _bands(0, len(image), image.shape[1]):
        a = weights[rows, :, None]
        result[rows] = np.where(a > 0, blend(new[rows], image[rows], a), image[rows])
    return result


def mix(new: np.ndarray, old: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """uint8, all of shapes that broadcast: new where the weight is 255, old where it is 0, rounded in between."""
    weight = weight.astype(np.uint16)
    return ((new * weight + old * (255 - weight) + 127) // 255).astype(np.uint8)


def _mix_as_released(new: np.ndarray, old: np.ndarray, weight: np.ndarray) -> np.ndarray:
    a = weight / 255
    return ((new / 255 * a + old / 255 * (1 - a)) * 255).astype(np.uint8)


def _bands(start: int, stop: int, width: int) -> Iterator[slice]:
    """start..stop in bands of rows of `width` pixels, at most `BAND` pixels a band."""
    step = max(1, BAND // width)
    for top in range(start, stop, step):
        yield slice(top, min(top + step, stop))


BAND = 1_000_000  # px that are blended or scaled at once, which bounds the memory for floats and copies


# -- windows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Window:
    """A square of a picture, possibly reaching past its edges, and the part of the hole that is filled through it."""

    left: int  # px, may be negative
    top: int  # px, may be negative
    side: int  # px; the model sees it scaled to its own size if it differs
    number: int  # from 1
    owners: np.ndarray  # unsigned (H, W), shared by all windows: for each pixel, the window that fills it; 0 for none
    new_canvas: tuple[
        bool, ...
    ] = ()  # where it fills new canvas: whether there is some left, top, right, bottom; see `extending`

    @property
    def visible(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that the window shows; its part of the hole is within them."""
        height, width = self.owners.shape
        return (
            slice(max(self.top, 0), min(self.top + self.side, height)),
            slice(max(self.left, 0), min(self.left + self.side, width)),
        )

    @property
    def hole(self) -> np.ndarray:
        """bool (H, W) of the whole picture: the part of the mask that this window fills."""
        return self.owners == self.number


def plan_windows(mask: np.ndarray, size: int, coverage: str = WHOLE) -> list[Window]:
    """Place square windows for a model of `size` px so that every hole of `mask` (uint8 (H, W)) is filled by one.

    A hole is a connected component of the mask (8 neighbours). There are three cases:

    - It fits a window of the model's own size, with its margin. It is filled through such a window, so that nothing is
      scaled, and shares the window with other holes that fit; see `_cover`.
    - It is longer but thin, such as a wire or a scratch. It is cut into pieces that fit (not as released, where the blend
      would show the cuts).
    - It is larger and thick. It gets a window of its own, as large as it needs. These windows come first, the largest before
      the others, so that small windows continue what they have filled.

    A window is centred on its holes and pushed back into the picture; a picture smaller than the window is mirrored outward.
    A picture that fits the model entirely is one window.
    """
    height, width = mask.shape
    labels, _ = ndimage.label(is_hole(mask), structure=np.ones((3, 3)))
    usable = int(size * (1 - 2 * WINDOW_MARGIN))
    fits = max(height, width) <= size
    if coverage != AS_RELEASED and not fits:
        _cut_thin(labels, usable)
    found = [
        (i, *(edge for at in box for edge in (at.start, at.stop)))
        for i, box in enumerate(ndimage.find_objects(labels), 1)
        if box
    ]
    label, *edges = np.array(found).T
    boxes = np.stack([edges[i] for i in (0, 2, 1, 3)], axis=1)  # top, left, bottom, right
    groups = [np.arange(len(boxes))] if fits else _cover(boxes, usable)
    numbers = np.zeros(label[-1] + 1, dtype=np.min_scalar_type(len(groups)))
    for number, group in enumerate(groups, 1):
        numbers[label[group]] = number
    owners = numbers[labels]
    windows = []
    for number, group in enumerate(groups, 1):
        (top, left), (bottom, right) = boxes[group, :2].min(0).tolist(), boxes[group, 2:].max(0).tolist()
        extent = max(bottom - top, right - left)
        needed = size if extent <= usable else math.ceil(extent / (1 - 2 * WINDOW_MARGIN))
        side = max(size, min(needed, max(height, width)))
        windows.append(Window(_place(left, right, side, width), _place(top, bottom, side, height), side, number, owners))
    return windows


def _cut_thin(labels: np.ndarray, usable: int) -> None:
    """Cut holes that are longer than `usable` px but thin along a grid of that width, each from its own upper left.

    A hole is thin if no square of half that width fits in it. A window on any piece then shows enough of its surroundings.

    Args:
        labels: integers (H, W), 0 outside; changed in place, so that every piece has a label of its own.
        usable: px.
    """
    boxes = ndimage.find_objects(labels)
    long = [i for i, box in enumerate(boxes, 1) if max(at.stop - at.start for at in box) > usable]
    free = len(boxes) + 1
    for label in long:
        part = labels[boxes[label - 1]]
        own = part == label
        if ndimage.minimum_filter(own.view(np.uint8), usable // 2, mode="constant").any():
            continue
        y, x = np.nonzero(own)
        _, piece = np.unique(y // usable * part.shape[1] + x // usable, return_inverse=True)
        part[y, x] = free + piece
        free += piece.max() + 1


def _cover(boxes: np.ndarray, usable: int) -> list[np.ndarray]:
    """Group boxes so that each group fits a square of `usable` px; a larger box is a group of its own.

    A greedy cover by shelves. The topmost remaining box sets a shelf of the square's height, and the leftmost remaining box
    on the shelf sets the square's left side. The square then moves down to the topmost of the boxes that it would take from
    the shelf. It takes every box that fits in, even below the shelf.

    Args:
        boxes: integers (n, 4): top, left, bottom, right; the last two are exclusive.
        usable: px.

    Returns:
        Indices of boxes, one array a group: the larger boxes by falling size, then the shelves from the top, from the left.
    """
    top, left, bottom, right = boxes.T
    extent = np.maximum(bottom - top, right - left)
    order = np.lexsort((right, bottom, left, top))
    large = order[extent[order] > usable]
    groups = list(large[np.argsort(-extent[large], kind="stable"), None])
    rest = order[extent[order] <= usable]
    while len(rest):
        on_shelf = bottom[rest] <= top[rest[0]] + usable
        while on_shelf.any():
            side = left[rest[on_shelf]].min()
            across = (left[rest] >= side) & (right[rest] <= side + usable)
            upper = top[rest[across & on_shelf]].min()
            taken = across & (top[rest] >= upper) & (bottom[rest] <= upper + usable)
            groups.append(rest[taken])
            rest, on_shelf = rest[~taken], on_shelf[~taken]
    return groups


def describe_windows(windows: list[Window], size: int) -> str:
    """How many windows of which size, in words: they are what a run costs."""
    larger = [window.side for window in windows if window.side > size]
    parts = []
    if own := len(windows) - len(larger):
        parts.append(f"{own} window{'s' if own > 1 else ''} of {size} px")
    if larger:
        what = f"{len(larger)} {'larger ' if own else ''}window{'s' if len(larger) > 1 else ''}"
        parts.append(f"{what} of up to {max(larger)} px, scaled to {size} px")
    return " and ".join(parts)


def _place(start: int, stop: int, side: int, length: int) -> int:
    """Where a window of `side` begins along one axis: centred on start..stop, inside 0..length if it fits there."""
    if side >= length:
        return (length - side) // 2
    return min(max((start + stop - side) // 2, 0), length - side)


def _mirror(start: int, side: int, length: int) -> np.ndarray:
    """Indices start..start+side into an axis of `length`, reflected at both ends with the edge pixel repeated."""
    i = np.arange(start, start + side) % (2 * length)
    return np.where(i < length, i, 2 * length - 1 - i)


def crop(image: np.ndarray, hole: np.ndarray, window: Window, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees of a picture through a window.

    Args:
        image: uint8 (H, W, 3).
        hole: bool (H, W), everything that must not be seen, including the holes of later windows.
        window: from `plan_windows`.
        size: px, side of the model's input.

    Returns:
        uint8 (size, size, 3), and its mask uint8 (size, size) of 0 and 255. When scaling down, a pixel that the hole
        touches at all belongs to the hole.
    """
    rows = _mirror(window.top, window.side, image.shape[0])
    cols = _mirror(window.left, window.side, image.shape[1])
    if window.side == size:
        seen, hidden = image[np.ix_(rows, cols)], hole[np.ix_(rows, cols)]
    else:
        seen, hidden = _shrink(image, rows, cols, size, _lanczos), _shrink(hole, rows, cols, size, _touched)
    return seen, hidden.astype(np.uint8) * 255


def _shrink(pixels: np.ndarray, rows: np.ndarray, cols: np.ndarray, size: int, scaled: Callable) -> np.ndarray:
    """`pixels` at `rows` and `cols`, a square of any size, scaled down to `size`: first along the picture's longer
    side, where each line is reflected and scaled on its own, then along the other."""
    if pixels.shape[0] > pixels.shape[1]:
        return _shrink(pixels.swapaxes(0, 1), cols, rows, size, scaled).swapaxes(0, 1)
    first, stop = int(rows.min()), int(rows.max()) + 1
    narrow = np.concatenate([scaled(pixels[band][:, cols], size, None) for band in _bands(first, stop, len(cols))])
    return scaled(narrow[rows - first], None, size)


def _lanczos(pixels: np.ndarray, width: int | None, height: int | None) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width or image.width, height or image.height), Image.Resampling.LANCZOS))


def _touched(hole: np.ndarray, width: int | None, height: int | None) -> np.ndarray:
    image = Image.fromarray(hole.astype(np.float32))
    return np.asarray(image.resize((width or image.width, height or image.height), Image.Resampling.BOX)) > 0


def uncrop(new: np.ndarray, image: np.ndarray, mask: np.ndarray, window: Window, coverage: str = WHOLE) -> np.ndarray:
    """Paste the model's output for a window back: a new picture, equal to `image` wherever the feather's weight is 0.

    Args:
        new: uint8 (size, size, 3), the model's output for `crop`.
        image: uint8 (H, W, 3).
        mask: uint8 (H, W), the painted mask; as released, its values near the window's holes feather them.
        window: the window of `crop`.
        coverage: one of `config.COVERAGES`.
    """
    rows, cols = inside = window.visible
    offset = (
        slice(rows.start - window.top, rows.stop - window.top),
        slice(cols.start - window.left, cols.stop - window.left),
    )
    own = window.owners[inside] == window.number
    own_mask = own.astype(np.uint8) * 255
    if coverage == AS_RELEASED:
        own_mask = _own_values(mask[inside], own)
    result = image.copy()
    result[inside] = paste(_enlarge(new, window.side, *offset), image[inside], own_mask, coverage)
    return result


def _enlarge(new: np.ndarray, side: int, rows: slice, cols: slice) -> np.ndarray:
    """The given part of a square (size, size, 3) scaled up to `side`, without the rest: rows first, then columns."""
    size = len(new)
    if size == side:
        return new[rows, cols]
    left, right, top, bottom = (edge * size / side for edge in (cols.start, cols.stop, rows.start, rows.stop))
    width, height = cols.stop - cols.start, rows.stop - rows.start
    wide = Image.fromarray(new).resize((width, size), Image.Resampling.BICUBIC, (left, 0, right, size))
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC, (0, top, width, bottom)))


def _own_values(mask: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The mask where this window's holes are the nearest, else 0: other windows own the soft edges of their holes."""
    others = is_hole(mask) & ~own
    if not others.any():
        return mask
    nearer = ndimage.distance_transform_edt(~own) <= ndimage.distance_transform_edt(~others)
    return np.where(nearer, mask, 0).astype(np.uint8)
