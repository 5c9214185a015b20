"""Pictures as arrays: the square windows that the model sees, and pasting the result back.

A picture is uint8 (H, W, 3), a mask uint8 (H, W) with 255 for the hole. Ranges change only through the named functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor

from . import LabError
from .config import MASK_BLUR_RADIUS, MASK_THRESHOLD, MAX_MEGAPIXELS, VAE_FACTOR, WINDOW_MARGIN


class ImageError(LabError):
    """A picture or a mask that cannot be used."""


# -- pictures that can be used -----------------------------------------------------------------------------------------


def check_size(width: int, height: int, what: object) -> None:
    """Raise ImageError where a picture of this size (px) is above `MAX_MEGAPIXELS`."""
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise ImageError(f"{what}: {width} x {height} px is too large; use a picture of at most {MAX_MEGAPIXELS} megapixels")


def check_picture_and_mask(image: np.ndarray, mask: np.ndarray) -> None:
    """Raise ImageError unless `image` is uint8 (H, W, 3), `mask` uint8 (H, W), and the hole neither empty nor all."""
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
    """uint8 mask (H, W) -> bool (H, W): True where mask / 255 >= 0.5."""
    return mask / 255 >= MASK_THRESHOLD


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


def mask_to_latent(hole: Tensor) -> Tensor:
    """(1, 1, H, W) -> (1, 1, H/8, W/8) by 'nearest', which takes the upper left pixel of every 8 x 8 block."""
    return hole[:, :, ::VAE_FACTOR, ::VAE_FACTOR]


def feather(mask: np.ndarray) -> np.ndarray:
    """uint8 mask (H, W) -> float64 weights of the new picture in [0, 1]: PIL's Gaussian blur of `MASK_BLUR_RADIUS` px."""
    blurred = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(MASK_BLUR_RADIUS))
    return np.asarray(blurred, dtype=np.float64) / 255


def paste(new: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blend `new` into `image` (both uint8 (H, W, 3)) through the feathered `mask`; where its weight is 0, `image` stays.

    The blend is (new/255 a + image/255 (1 - a)) 255 in float64, truncated, as in the release.
    """
    a = feather(mask)[:, :, None]
    blended = ((new / 255 * a + image / 255 * (1 - a)) * 255).astype(np.uint8)
    return np.where(a > 0, blended, image)


# -- windows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A square of a picture, possibly reaching past its edges, and the holes that are filled through it."""

    left: int  # px, may be negative
    top: int  # px, may be negative
    side: int  # px; the model sees it scaled to its own size if it differs
    hole: np.ndarray  # bool (H, W) of the whole picture: the part of the mask that this window fills


@dataclass
class _Box:
    left: int
    top: int
    right: int  # exclusive
    bottom: int  # exclusive
    labels: list[int]

    def union(self, other: _Box) -> _Box:
        return _Box(
            min(self.left, other.left), min(self.top, other.top),
            max(self.right, other.right), max(self.bottom, other.bottom), self.labels + other.labels,
        )  # fmt: skip

    def overlaps(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    @property
    def side(self) -> int:
        return max(self.right - self.left, self.bottom - self.top)


def plan_windows(mask: np.ndarray, size: int) -> list[Window]:
    """Place square windows for a model of `size` px so that every hole of `mask` (uint8 (H, W)) is filled by one.

    Holes (8-connected) that fit together into one window with its margin share it, and so do holes whose boxes overlap.
    A window has the model's own size wherever its holes fit, so that nothing is scaled; otherwise it is as large as they
    need. It is centred on its holes and pushed back into the picture; a picture smaller than the window is mirrored
    outward. A picture that fits the model entirely is one window. Windows come in reading order of their boxes.
    """
    height, width = mask.shape
    labels, _ = ndimage.label(is_hole(mask), structure=np.ones((3, 3)))
    boxes = [
        _Box(cols.start, rows.start, cols.stop, rows.stop, [i + 1])
        for i, (rows, cols) in enumerate(ndimage.find_objects(labels))
    ]
    usable = int(size * (1 - 2 * WINDOW_MARGIN))
    whole = max(height, width) <= size
    boxes = _merge(boxes, lambda a, b: whole or a.overlaps(b) or a.union(b).side <= usable)
    windows = []
    for box in sorted(boxes, key=lambda b: (b.top, b.left)):
        side = size if whole or box.side <= usable else int(np.ceil(box.side / (1 - 2 * WINDOW_MARGIN)))
        side = max(size, min(side, max(height, width)))
        left = _place(box.left, box.right, side, width)
        top = _place(box.top, box.bottom, side, height)
        windows.append(Window(left, top, side, np.isin(labels, box.labels)))
    return windows


def _merge(boxes: list[_Box], together) -> list[_Box]:
    """Unite boxes as long as `together(a, b)` holds for some pair, earlier boxes first."""
    merged: list[_Box] = []
    for box in boxes:
        i = 0
        while i < len(merged):
            if together(merged[i], box):
                box = merged.pop(i).union(box)
                i = 0
            else:
                i += 1
        merged.append(box)
    return merged


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
        hole: bool (H, W), everything that is not to be seen, holes of later windows included.
        window: from `plan_windows`.
        size: px, side of the model's input.

    Returns:
        uint8 (size, size, 3), and its mask uint8 (size, size) of 0 and 255. When scaling down, a pixel that the hole
        touches at all belongs to the hole.
    """
    rows = _mirror(window.top, window.side, image.shape[0])
    cols = _mirror(window.left, window.side, image.shape[1])
    seen = image[rows[:, None], cols[None, :]]
    mask = hole[rows[:, None], cols[None, :]].astype(np.uint8) * 255
    if window.side != size:
        seen = np.asarray(Image.fromarray(seen).resize((size, size), Image.Resampling.LANCZOS))
        shrunk = Image.fromarray(mask).convert("F").resize((size, size), Image.Resampling.BOX)
        mask = (np.asarray(shrunk) > 0).astype(np.uint8) * 255
    return seen, mask


def uncrop(new: np.ndarray, image: np.ndarray, mask: np.ndarray, window: Window) -> np.ndarray:
    """Paste what the model made of a window back: a new picture, equal to `image` wherever the feather's weight is 0.

    Args:
        new: uint8 (size, size, 3), the model's output for `crop`.
        image: uint8 (H, W, 3).
        mask: uint8 (H, W), the painted mask; only its part near `window.hole` is used.
        window: the window of `crop`.
    """
    if new.shape[0] != window.side:
        new = np.asarray(Image.fromarray(new).resize((window.side, window.side), Image.Resampling.BICUBIC))
    top, left = max(window.top, 0), max(window.left, 0)
    bottom = min(window.top + window.side, image.shape[0])
    right = min(window.left + window.side, image.shape[1])
    inside = (slice(top, bottom), slice(left, right))
    offset = (slice(top - window.top, bottom - window.top), slice(left - window.left, right - window.left))
    own = window.hole[inside]
    others = is_hole(mask[inside]) & ~own
    if others.any():  # soft edges of this window's holes stay with them, those of other holes are left to their windows
        nearer = ndimage.distance_transform_edt(~own) <= ndimage.distance_transform_edt(~others)
        own_mask = np.where(nearer, mask[inside], 0).astype(np.uint8)
    else:
        own_mask = mask[inside]
    result = image.copy()
    result[inside] = paste(new[offset], image[inside], own_mask)
    return result
