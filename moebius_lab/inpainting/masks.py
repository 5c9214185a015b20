"""Random holes: what a person paints over a picture, from a thin scratch to two fifths of the window; and holes of a kind and a
share, for evaluations."""

from __future__ import annotations

import copy
from collections.abc import Callable

import cv2
import numpy as np

from .. import LabError
from ..config import MASK_KINDS

MOST_AREA = 0.4  # share of the window that a hole may take
LEAST_AREA = 0.002
EDGE_SHARE = 0.25  # of the holes touch a side of the window


def _stroke(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """One wandering brush stroke."""
    size = canvas.shape[0]
    point = rng.uniform(0.1, 0.9, 2) * size
    angle, width = rng.uniform(0, 2 * np.pi), int(rng.uniform(0.03, 0.16) * size)
    for _ in range(rng.integers(2, 9)):
        angle += rng.normal(0, 0.7)
        end = point + rng.uniform(0.05, 0.2) * size * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(canvas, tuple(map(int, point)), tuple(map(int, end)), 1, max(2, width))
        point = end


def _outline(canvas: np.ndarray, rng: np.random.Generator, centre: np.ndarray, radius: float) -> None:
    """A closed smooth shape around a point: an ellipse whose radius wobbles, like an object someone circles."""
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    wobble = sum(rng.normal(0, 0.35 / k) * np.cos(k * turns + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 6))
    r = radius * np.clip(1 + wobble, 0.35, 1.9)
    stretch, tilt = np.exp(rng.normal(0, 0.35)), rng.uniform(0, np.pi)
    x, y = r * np.cos(turns) * stretch, r * np.sin(turns) / stretch
    points = np.stack([x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)], 1) + centre
    cv2.fillPoly(canvas, [points.astype(np.int32)], 1)


def _figure(canvas: np.ndarray, rng: np.random.Generator, centre: np.ndarray, radius: float) -> None:
    """The silhouette of a standing thing: a body, sometimes a head, and limbs."""
    _outline(canvas, rng, centre, 0.6 * radius)
    for _ in range(rng.integers(1, 6)):
        away = rng.uniform(0, 2 * np.pi)
        tip = centre + radius * rng.uniform(0.8, 1.3) * np.array([np.cos(away), np.sin(away)])
        cv2.line(canvas, tuple(map(int, centre)), tuple(map(int, tip)), 1, max(3, int(radius * rng.uniform(0.12, 0.4))))


def _push_to_side(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The holes moved towards one side of the window until up to half of them is beyond it."""
    turned = np.rot90(canvas, turns := rng.integers(4))
    rows = np.flatnonzero(turned.any(1))
    if not rows.size:
        return canvas
    away = rows[0] + int(rng.uniform(0.02, 0.5) * (rows[-1] - rows[0] + 1)) + 1
    moved = np.zeros_like(turned)
    moved[: len(moved) - away] = turned[away:]
    return np.ascontiguousarray(np.rot90(moved, -turns))


def random_mask(rng: np.random.Generator, size: int = 256) -> np.ndarray:
    """One hole.

    Args:
        rng: where every choice comes from.
        size: side of the window, in px.

    Returns:
        (size, size) uint8, 1 in the hole. Its area is between `LEAST_AREA` and `MOST_AREA` of the window. Most holes
        are one shape near the middle, because that is where the window is placed around what a person erases; the window
        stops at the picture's border, so a share of `EDGE_SHARE` is pushed to a side and cut off there.
    """
    edge = rng.random() < EDGE_SHARE
    while True:
        canvas = np.zeros((size, size), np.uint8)
        kind = rng.random()
        centre = np.clip(rng.normal(0.5, 0.16, 2), 0, 1) * size
        radius = np.exp(rng.uniform(np.log(0.06), np.log(0.3))) * size
        if kind < 0.35:
            _outline(canvas, rng, centre, radius)
        elif kind < 0.55:
            _figure(canvas, rng, centre, radius)
        elif kind < 0.70:
            half = radius * np.exp(rng.normal(0, 0.3, 2))
            low, high = (centre - half).astype(int), (centre + half).astype(int)
            cv2.rectangle(canvas, tuple(map(int, low)), tuple(map(int, high)), 1, -1)
        elif kind < 0.90:
            for _ in range(rng.integers(1, 5)):
                _stroke(canvas, rng)
        else:
            for _ in range(rng.integers(2, 6)):
                _outline(canvas, rng, rng.uniform(0, 1, 2) * size, radius / 2)
        if edge:
            canvas = _push_to_side(canvas, rng)
        if LEAST_AREA <= canvas.mean() <= MOST_AREA:
            return canvas


def random_masks(count: int, seed: int, size: int = 256) -> np.ndarray:
    """(count, size, size) uint8 holes, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return np.stack([random_mask(rng, size) for _ in range(count)])


# -- holes of a kind and a share ---------------------------------------------------------------------------------------

WIDTHS = {"thin": (0.01, 0.03), "thick": (0.08, 0.16)}  # of a stroke, as shares of the window's side
SEGMENTS = 4000  # of strokes, after which a share is given up: thin ones fill half of a window with some hundreds
TRIES = 50
BISECTIONS = 24  # of an object's size


def mask_of_kind(kind: str, shares: tuple[float, float], rng: np.random.Generator, size: int) -> np.ndarray:
    """One hole of a kind that takes a share of the window.

    Args:
        kind: "thin" or "thick" wandering strokes, a "box" anywhere, a square in the "centre", or an "object": an outline or a figure.
        shares: (least, most) of the window's area, each between 0 and 1; the share is drawn evenly between them.
        rng: where every choice comes from.
        size: side of the window, in px.

    Returns:
        (size, size) uint8, 1 in the hole.

    Raises:
        LabError: an unknown kind, or no hole of this kind has such a share: the range is out of order or too narrow.
    """
    if kind not in MASK_KINDS:
        raise LabError(f"there is no kind of mask {kind!r}; choose one of {', '.join(MASK_KINDS)}")
    least, most = shares
    if not 0 < least <= most < 1:
        raise LabError(f"a mask's share must run from a number above 0 to one below 1, not from {least:g} to {most:g}")
    for _ in range(TRIES):  # a share at an end of the range may be rounded out of it
        wanted = rng.uniform(least, most)
        if kind in WIDTHS:
            canvas = _strokes(rng, size, WIDTHS[kind], wanted, most)
        elif kind == "object":
            canvas = _object(rng, size, wanted)
        else:
            canvas = _box(rng, size, wanted, centred=kind == "centre")
        if least <= canvas.mean() <= most:
            return canvas
    raise LabError(f"no hole of the kind {kind!r} takes {least:.4g} to {most:.4g} of {size} px; widen the range")


def _strokes(rng: np.random.Generator, size: int, widths: tuple[float, float], wanted: float, most: float) -> np.ndarray:
    """Strokes that wander over the window until they take the share `wanted`; what would go over `most` is drawn shorter."""
    canvas, length = np.zeros((size, size), np.uint8), 0.2
    point, angle, width = rng.uniform(0, 1, 2), 0.0, 0
    for i in range(SEGMENTS):
        if canvas.mean() >= wanted:
            break
        if i % 6 == 0 or not (0 <= point).all() or not (point <= 1).all():
            point, angle = rng.uniform(0, 1, 2), rng.uniform(0, 2 * np.pi)
            width = max(1, round(rng.uniform(*widths) * size))
        angle += rng.normal(0, 0.7)
        end = point + length * rng.uniform(0.25, 1) * np.array([np.cos(angle), np.sin(angle)])
        longer = canvas.copy()
        cv2.line(longer, tuple(map(int, point * size)), tuple(map(int, end * size)), 1, width)
        if longer.mean() <= most:
            canvas, point = longer, end
        else:
            length, width, point = length / 2, max(1, width // 2), rng.uniform(0, 1, 2)
    return canvas


def _box(rng: np.random.Generator, size: int, wanted: float, centred: bool) -> np.ndarray:
    """A square in the middle, or a box anywhere inside, sides as 1 to at most 2."""
    stretch = 1.0 if centred else np.exp(rng.uniform(-1, 1) * min(np.log(2) / 2, -np.log(wanted) / 2))
    height = min(round(np.sqrt(wanted) * stretch * size), size)
    width = min(round(wanted * size * size / max(height, 1)), size)
    top, left = (int(rng.integers(size - side + 1)) for side in (height, width))
    if centred:
        top, left = (size - height) // 2, (size - width) // 2
    canvas = np.zeros((size, size), np.uint8)
    canvas[top : top + height, left : left + width] = 1
    return canvas


def _object(rng: np.random.Generator, size: int, wanted: float) -> np.ndarray:
    """An outline or a figure near the middle, whose size is found by halving until it takes the share."""
    draw: Callable = _outline if rng.random() < 0.6 else _figure
    centre = rng.uniform(0.35, 0.65, 2) * size

    def drawn(radius: float) -> np.ndarray:
        canvas = np.zeros((size, size), np.uint8)
        draw(canvas, copy.deepcopy(rng), centre, radius)  # the same choices at every size
        return canvas

    low, high = 0.0, 2.0 * size
    for _ in range(BISECTIONS):
        radius = (low + high) / 2
        low, high = (radius, high) if drawn(radius).mean() < wanted else (low, radius)
    return drawn(high)
