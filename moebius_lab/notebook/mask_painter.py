"""A mask painted on a picture: the mask with its history as plain arrays, and the ipycanvas widget on top of it.

The mask lives in the kernel, at the picture's full size. The canvas only shows it, scaled to the widget's width, and is
drawn again for every view that opens. Positions are in pixels of the picture, x to the right and y down; (0, 0) is the
centre of the upper left pixel.

One rule for every tool, here and in the page's `mask.js`: a shape holds the pixels whose centres lie in it, its edge included.
Brush and eraser draw a line with round ends, and a lasso holds what its outline winds around. `paint_line`, `paint_rectangle` and
`paint_polygon` compute as `Mask` does there, in the same order, so that both fill the same pixels.
"""

from __future__ import annotations

import asyncio
import functools
import html
import io
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets
import numpy as np
import traitlets
from ipycanvas import MultiCanvas, hold_canvas
from PIL import Image

from .. import LabError
from ..config import BRUSH_SHARE, MOST_GROWTH, TOLERANCE
from ..inpainting import selection
from ..inpainting.extending import Extension, extend, extend_mask, round_half_up
from ..inpainting.imaging import ImageError, is_hole
from ..inpainting.picture_files import Picture, Source, check_place, read_mask, read_picture, write_file
from .widgets import style_of

TOOLS = {
    "brush": "paint-brush", "eraser": "eraser", "rectangle": "square-o", "lasso": "scissors", "wire": "magnet", "wand": "magic",
    "move": "arrows",
}  # fmt: skip
"""Name of each tool -> its icon."""
SHOWN_AS = {"wire": "Edge lasso", "wand": "Magic wand"}
"""What a tool is called on its button, as on the page, where that is not its name."""
REFINEMENTS = {"grow": "expand", "shrink": "compress", "feather": "cloud", "fill_holes": "circle", "keep_largest": "star"}
"""Name of each function of `selection` that changes a mask -> its icon."""
BY_PX = ("grow", "shrink", "feather")  # those that take a number of px
WIRE_REACH = 30  # px of the canvas between two points of a drawn wire, which follows edges from one to the next
TINT = (220, 60, 60)  # RGB of the mask on screen
MAX_BRUSH = 1000  # px of the picture
MAX_ZOOM = 16.0  # times the scale at which the whole picture fits
HISTORY_BYTES = 256 * 2**20  # the oldest gestures are forgotten beyond this
TICK = 0.016  # s between two redraws: what the pointer does in between is drawn at once
ENDS = ("release", "leave", "lift")  # the events that may end a gesture

Point = tuple[float, float]
Box = tuple[slice, slice]  # rows, columns of an array


# -- the mask as data --------------------------------------------------------------------------------------------------


def first_brush(height: int, width: int) -> int:
    """Diameter (px) that the brush has at first on a picture of this size."""
    return max(1, math.floor(min(height, width) * BRUSH_SHARE))


def paint_line(mask: np.ndarray, points: Sequence[Point], size: float, value: int) -> Box:
    """Set every pixel of `mask` (uint8 (H, W), changed in place) whose centre is within size/2 px of the line through `points`.

    Returns:
        The part of the mask that may have changed.
    """
    radius = size / 2
    starts = points[:1] if len(points) == 1 else points[:-1]
    for start, end in zip(starts, points[1:] or points):
        (ax, ay), (bx, by) = start, end
        pieces = max(1, math.ceil(math.hypot(bx - ax, by - ay) / max(size, 64)))  # long lines have large, empty boxes
        along = [(ax + i / pieces * (bx - ax), ay + i / pieces * (by - ay)) for i in range(pieces + 1)]
        for piece in zip(along, along[1:]):
            box = _box_of(piece, radius + 1, mask.shape)
            mask[box][_near_line(start, end, radius, box)] = value
    return _box_of(points, radius + 1, mask.shape)


def _near_line(start: Point, end: Point, radius: float, box: Box) -> np.ndarray:
    """For every pixel of a box whether its centre is within `radius` px of a line: in a circle at an end, or in the strip between."""
    x, y = np.arange(box[1].start, box[1].stop, dtype=np.float64)[None, :], np.arange(box[0].start, box[0].stop)[:, None]
    (ax, ay), (bx, by), r2 = start, end, radius * radius
    dx, dy = bx - ax, by - ay
    at_an_end = ((x - ax) * (x - ax) + (y - ay) * (y - ay) <= r2) | ((x - bx) * (x - bx) + (y - by) * (y - by) <= r2)
    length2, along, aside = dx * dx + dy * dy, (x - ax) * dx + (y - ay) * dy, (x - ax) * dy - (y - ay) * dx
    return at_an_end | ((length2 > 0) & (along >= 0) & (along <= length2) & (aside * aside <= r2 * length2))


def paint_rectangle(mask: np.ndarray, corners: Sequence[Point], value: int) -> Box:
    """Set every pixel whose centre lies in the rectangle between two opposite corners, edges included, in place."""
    box = _box_of(corners, 0, mask.shape)
    mask[box] = value
    return box


def paint_polygon(mask: np.ndarray, points: Sequence[Point], value: int) -> Box:
    """Set every pixel whose centre lies on the closed line through `points`, or where it winds around it (nonzero), in place."""
    box = _box_of(points, 0, mask.shape)
    starts = np.asarray(points, dtype=np.float64)
    edges = np.concatenate([starts, np.roll(starts, -1, axis=0)], axis=1)  # (n, 4): x0, y0, x1, y1
    top, bottom = np.minimum(edges[:, 1], edges[:, 3]), np.maximum(edges[:, 1], edges[:, 3])
    for y in range(box[0].start, box[0].stop):
        for low, high in _polygon_spans(edges[(top <= y) & (y <= bottom)].tolist(), y):
            mask[y, _inside(low, high, mask.shape[1])] = value
    return box


def _polygon_spans(edges: list[list[float]], y: float) -> list[tuple[float, float]]:
    """Where the line at height `y` lies in a polygon, as closed intervals that may overlap; `edges` are those that reach `y`."""
    spans, crossings = [], []
    for x0, y0, x1, y1 in edges:
        if y0 == y1:
            spans.append((min(x0, x1), max(x0, x1)))
            continue
        x = x0 + ((y - y0) * (x1 - x0)) / (y1 - y0)
        spans.append((x, x))
        if (y0 <= y) != (y1 <= y):
            crossings.append((x, 1 if y1 > y0 else -1))
    winding = 0
    crossings.sort()
    for (low, turn), (high, _) in zip(crossings, crossings[1:]):
        winding += turn
        if winding:
            spans.append((low, high))
    return spans


def _inside(low: float, high: float, length: int) -> slice:
    """The pixels of 0..length-1 with low <= centre <= high."""
    start = min(max(math.ceil(low), 0), length)
    return slice(start, max(start, min(math.floor(high) + 1, length)))


def _box_of(points: Sequence[Point], margin: float, shape: tuple[int, int]) -> Box:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return (
        _inside(min(ys) - margin, max(ys) + margin, shape[0]),
        _inside(min(xs) - margin, max(xs) + margin, shape[1]),
    )


def _union(a: Box | None, b: Box) -> Box:
    if a is None:
        return b
    return (
        slice(min(a[0].start, b[0].start), max(a[0].stop, b[0].stop)),
        slice(min(a[1].start, b[1].start), max(a[1].stop, b[1].stop)),
    )


@dataclass(frozen=True)
class Change:
    """What one gesture did to the mask, inside a box."""

    box: Box
    before: np.ndarray  # uint8
    after: np.ndarray  # uint8, of the same shape

    @property
    def bytes(self) -> int:
        return self.before.nbytes + self.after.nbytes


class EditedMask:
    """A mask with its history. `pixels` is read-only and is replaced, never changed, when a gesture is committed."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = _frozen(pixels.copy())
        self.draft: np.ndarray | None = None  # the gesture under way: a copy that may be painted on
        self.touched: Box | None = None
        self.done: list[Change] = []
        self.undone: list[Change] = []

    @property
    def shown(self) -> np.ndarray:
        """The mask with the gesture under way."""
        return self.pixels if self.draft is None else self.draft

    def paint(self, how, *arguments) -> Box:
        """Call how(draft, *arguments), one of the functions above; returns the box that may have changed."""
        if self.draft is None:
            self.draft = self.pixels.copy()
        box = how(self.draft, *arguments)
        self.touched = _union(self.touched, box)
        return box

    def commit(self) -> None:
        """End the gesture under way: it becomes one step of the history, unless it changed nothing."""
        draft, box = self.draft, self.touched
        self.discard()
        if draft is None or box is None or np.array_equal(self.pixels[box], draft[box]):
            return
        self.done.append(Change(box, self.pixels[box].copy(), draft[box].copy()))
        self.undone.clear()
        while len(self.done) > 1 and sum(change.bytes for change in self.done) > HISTORY_BYTES:
            self.done.pop(0)
        self.pixels = _frozen(draft)

    def discard(self) -> None:
        """Forget the gesture under way."""
        self.draft = self.touched = None

    def undo(self) -> Box:
        """Take the last gesture back; returns the box that changed."""
        change = self.done.pop()
        self.undone.append(change)
        return self._put(change.box, change.before)

    def redo(self) -> Box:
        """Do the gesture again that was taken back last."""
        change = self.undone.pop()
        self.done.append(change)
        return self._put(change.box, change.after)

    def _put(self, box: Box, values: np.ndarray) -> Box:
        pixels = self.pixels.copy()
        pixels[box] = values
        self.pixels = _frozen(pixels)
        return box


def _frozen(pixels: np.ndarray) -> np.ndarray:
    pixels.setflags(write=False)
    return pixels


# -- what comes in -----------------------------------------------------------------------------------------------------


def as_mask(mask: Source, shape: tuple[int, int]) -> np.ndarray:
    """A mask from whatever `read_mask` takes, as uint8 (H, W); white or True is the hole.

    Raises:
        ImageError: it cannot be read, or its size is not `shape` (H, W).
    """
    mask = read_mask(mask)
    if mask.shape != shape:
        raise ImageError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} px but the picture is {shape[1]} x {shape[0]} px; "
            "make them the same size"
        )
    return mask


def as_points(points: Iterable[Point], at_least: int) -> list[Point]:
    """Points as pairs of finite floats; LabError where they are not, or fewer than `at_least`."""
    try:
        pairs = np.asarray(list(points), dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.empty((0,))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) < at_least or not np.isfinite(pairs).all():
        word = "point" if at_least == 1 else "points"
        raise LabError(f"give at least {at_least} {word} as pairs of numbers, for example [(10, 20), (30, 40)]")
    return [(float(x), float(y)) for x, y in pairs]


# -- the picture on the canvas -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """Which part of the picture the canvas shows."""

    left: float  # px of the picture, at the canvas' left edge
    top: float
    scale: float  # canvas px per picture px
    width: int  # px of the canvas
    height: int

    def to_picture(self, point: Point) -> Point:
        return self.left + point[0] / self.scale - 0.5, self.top + point[1] / self.scale - 0.5

    def to_canvas(self, point: Point) -> Point:
        return (point[0] + 0.5 - self.left) * self.scale, (point[1] + 0.5 - self.top) * self.scale

    def on_canvas(self, box: Box) -> Box:
        """The part of the canvas that a box of the picture touches."""
        rows, columns = box
        top, bottom = ((y - self.top) * self.scale for y in (rows.start, rows.stop))
        left, right = ((x - self.left) * self.scale for x in (columns.start, columns.stop))
        return (
            slice(max(math.floor(top), 0), min(math.ceil(bottom), self.height)),
            slice(max(math.floor(left), 0), min(math.ceil(right), self.width)),
        )

    def scaled(self, array: np.ndarray, part: Box | None = None, shrunk: int = 1) -> np.ndarray:
        """An array of the picture's size (uint8 (H, W) or (H, W, 3)) as the canvas, or a part of it, shows it.

        A canvas pixel is the mean of the picture's pixels that it covers. `shrunk`: the array is so many times smaller
        than the picture along each side.
        """
        rows, columns = part or (slice(0, self.height), slice(0, self.width))
        source = (
            max((self.left + columns.start / self.scale) / shrunk, 0),
            max((self.top + rows.start / self.scale) / shrunk, 0),
            min((self.left + columns.stop / self.scale) / shrunk, array.shape[1]),
            min((self.top + rows.stop / self.scale) / shrunk, array.shape[0]),
        )
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BOX, box=source))


# -- the widget --------------------------------------------------------------------------------------------------------


class MaskPainter(ipywidgets.VBox):
    """Paint a mask on a picture, with mouse, finger or Python.

    `mask` is a trait: read it, or watch it with `painter.observe(handler, "mask")`. It is a read-only array, uint8
    (H, W), replaced when a gesture ends; `load` puts another one in. Without a front end, under papermill, everything
    but the drawing works the same.

    Args:
        image: a path, a PIL image or an array, see `read_picture`, or a picture that was read; it is kept as `source`, and in
            sRGB as `image`.
        mask: a path, a PIL image or an array to begin with, see `read_mask`; None for an empty one.
        width, height: px, the canvas is as large as the picture's shape allows within these.

    Raises:
        ImageError: a picture or a mask that cannot be used.
    """

    mask = traitlets.Instance(np.ndarray, read_only=True)
    tool = traitlets.Enum(tuple(TOOLS), "brush")
    size = traitlets.Int(1)  # px of the picture, the diameter of brush and eraser
    opacity = traitlets.Float(0.55)  # 0..1, of the mask on screen
    zoom = traitlets.Float(1.0)  # 1 shows the whole picture
    tolerance = traitlets.Int(TOLERANCE)  # 0..255, of the wand: by how much each channel may differ
    contiguous = traitlets.Bool(True)  # whether the wand takes only what touches the point
    by_px = traitlets.Int(5)  # px by which a selection grows, shrinks or is feathered

    def __init__(self, image: Source | Picture, mask: Source | None = None, width: int = 720, height: int = 540) -> None:
        self.source = image if isinstance(image, Picture) else read_picture(image)
        self.extension: Extension | None = None  # of the picture's canvas, not yet filled; see `extended`
        self.size_on_screen = width, height
        self.image = self.source.rgb
        rows, columns = self.image.shape[:2]
        empty = np.zeros((rows, columns), np.uint8)
        self._edited = EditedMask(empty if mask is None else as_mask(mask, (rows, columns)))
        self._lock = threading.RLock()
        self._events: list[tuple[str, list[Point]]] = []
        self._drawing_planned = False
        self._viewed = False  # no page has opened a view yet: nothing is drawn
        self._path: list[Point] = []  # of the gesture under way
        self._pressed = ""  # the tool that is down
        self._brush = 0  # px, its diameter
        self._fingers: list[Point] = []  # of a pinch, on the canvas
        self._pointer: Point | None = None  # on the canvas
        self._dirty: Box | None = None  # of the picture: changed since the mask was drawn last

        fit = min(width / columns, height / rows)
        canvas_size = {"width": max(1, round(columns * fit)), "height": max(1, round(rows * fit))}
        self._fit = fit
        self._view = View(0, 0, fit, **canvas_size)
        self._moved = True  # the picture was not drawn yet as `_view` has it
        self._drawn_outline: tuple | None = None
        layout = ipywidgets.Layout(max_width="100%", height="auto", align_self="flex-start")
        self._canvas = MultiCanvas(3, **canvas_size, layout=layout)
        super().__init__()
        self.set_trait("mask", self._edited.pixels)
        self.size = first_brush(rows, columns)
        self.children = [self._toolbar(), self._canvas, self._files(), self._message, style_of(self)]
        self._listen()
        self._describe()

    # -- gestures, in Python ---------------------------------------------------------------------------------------

    def stroke(self, points: Iterable[Point], size: float | None = None) -> None:
        """Paint a line through `points` (px), `size` px wide (default: the brush's); one point makes a dot."""
        self._gesture("brush", as_points(points, 1), size)

    def erase(self, points: Iterable[Point], size: float | None = None) -> None:
        """Like `stroke`, but take away."""
        self._gesture("eraser", as_points(points, 1), size)

    def rectangle(self, corner: Point, opposite: Point) -> None:
        """Paint the rectangle between two corners (px, both included)."""
        self._gesture("rectangle", as_points((corner, opposite), 2), None)

    def lasso(self, points: Iterable[Point]) -> None:
        """Paint the closed line through `points` (px) and all that it winds around."""
        self._gesture("lasso", as_points(points, 3), None)

    def wire(self, points: Iterable[Point]) -> None:
        """Paint what a closed line winds around that follows the picture's edges from each of `points` (px) to the next."""
        self._gesture("wire", as_points(points, 2), None)

    def wand(self, point: Point, tolerance: int | None = None, contiguous: bool | None = None) -> None:
        """Paint what has the colour of a pixel; `tolerance` and `contiguous` (default: the traits) as in `selection.wand`."""
        by = self.tolerance if tolerance is None else tolerance
        self.add(selection.wand(self.image, _pixel(point), by, self.contiguous if contiguous is None else contiguous))

    def add(self, chosen: np.ndarray) -> None:
        """Paint a selection, bool (H, W), such as a `segmenter.Segmenter` makes.

        Raises:
            ImageError: it is of another size than the picture.
        """
        if chosen.shape != self.mask.shape:
            raise ImageError(f"the selection is {chosen.shape} and the picture {self.mask.shape}, in rows and columns")
        self._whole(lambda draft: np.copyto(draft, 255, where=chosen))

    def refine(self, how: str, px: int | None = None) -> None:
        """Change what is painted by one of `REFINEMENTS`: "grow", "shrink" and "feather" by `px` (default: the trait)."""
        if how not in REFINEMENTS:
            raise LabError(f"a selection cannot be changed by {how!r}; choose one of {', '.join(REFINEMENTS)}")
        numbers = (self.by_px if px is None else px,) if how in BY_PX else ()
        changed = getattr(selection, how)(is_hole(self.mask), *numbers)
        values = changed if changed.dtype == np.uint8 else changed.astype(np.uint8) * 255
        self._whole(lambda draft: np.copyto(draft, values))

    def extended(self, extension: Extension) -> MaskPainter:
        """A painter of the same picture on a larger canvas, all of whose new area is painted; `Inpaint` joins it to the picture."""
        shape = (
            extension.top + self.mask.shape[0] + extension.bottom,
            extension.left + self.mask.shape[1] + extension.right,
        )
        mask = extend_mask(self.mask, extension, shape)
        painter = MaskPainter(extend(self.source, extension), mask, *self.size_on_screen)
        before = vars(self.extension) if self.extension else {}
        painter.extension = Extension(**{side: px + before.get(side, 0) for side, px in vars(extension).items()})
        return painter

    def clear(self) -> None:
        """Empty the mask; `undo` brings it back."""
        self._whole(lambda draft: draft.fill(0))

    def invert(self) -> None:
        """Make the hole what was kept, and the other way round."""
        self._whole(lambda draft: np.subtract(255, draft, out=draft))

    def load(self, mask: Source) -> None:
        """Replace the mask: a path, a PIL image or an array of the picture's size, see `read_mask`."""
        new = as_mask(mask, self.image.shape[:2])
        self._whole(lambda draft: np.copyto(draft, new))

    def save(self, path: str | Path) -> Path:
        """Write the mask as a PNG of the picture's size; returns the path.

        Raises:
            LabError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise LabError(f"{path}: a mask is saved as PNG, which keeps every value; give a name that ends in .png")
        check_place(path, self.mask.size)
        encoded = io.BytesIO()
        Image.fromarray(self.mask).save(encoded, "PNG")
        write_file(path, encoded.getbuffer())
        return path

    def undo(self) -> None:
        """Take the last gesture back; LabError if there is none."""
        self._step(self._edited.done, self._edited.undo, "there is nothing to undo: paint first")

    def redo(self) -> None:
        """Do again what `undo` took back; LabError if there is nothing."""
        self._step(self._edited.undone, self._edited.redo, "there is nothing to redo: it follows an undo")

    def picture(self, width: int = 720) -> Image.Image:
        """The picture with its mask tinted, at most `width` px wide: what the canvas shows, as a still."""
        scale = min(1.0, width / self.image.shape[1])
        size = (max(1, round(self.image.shape[1] * scale)), max(1, round(self.image.shape[0] * scale)))
        seen = Image.fromarray(self.image).resize(size, Image.Resampling.BOX)
        hole = Image.fromarray(self.mask).resize(size, Image.Resampling.BOX).point(lambda value: value * self.opacity)
        return Image.composite(Image.new("RGB", size, TINT), seen, hole)

    def _repr_mimebundle_(self, **kwargs):
        data = super()._repr_mimebundle_(**kwargs)
        return data | {"image/jpeg": jpeg(self.picture())}  # a still, where no widget can live: reports, saved notebooks

    def _gesture(self, tool: str, points: list[Point], size: float | None) -> None:
        if size is not None and not 0 < size <= MAX_BRUSH:
            raise LabError(f"the brush is 1 to {MAX_BRUSH} px wide, not {size}")
        with self._lock:
            self._handle_events()
            self._press(points[0], tool, size)
            self._drag(points[1:])
            self._release()
            self._draw()

    def _whole(self, change) -> None:
        def everywhere(draft: np.ndarray) -> Box:
            change(draft)
            return slice(0, draft.shape[0]), slice(0, draft.shape[1])

        with self._lock:
            self._handle_events()
            self._release()
            self._touch(self._edited.paint(everywhere))
            self._commit()
            self._draw()

    def _step(self, history: list[Change], step, nothing: str) -> None:
        with self._lock:
            self._handle_events()
            self._release()
            if not history:
                raise LabError(nothing)
            self._touch(step())
            self._publish()
            self._draw()

    # -- gestures, as they happen ----------------------------------------------------------------------------------

    def _press(self, point: Point, tool: str, size: float | None = None) -> None:
        self._release()
        self._pressed, self._path, self._brush = tool, [point], self.size if size is None else size
        if tool in ("brush", "eraser"):
            self._touch(self._edited.paint(paint_line, [point], self._brush, 255 if tool == "brush" else 0))

    def _drag(self, points: list[Point]) -> None:
        if not self._pressed or not points:
            return
        if self._pressed in ("brush", "eraser"):
            line = [self._path[-1], *points]
            self._touch(self._edited.paint(paint_line, line, self._brush, 255 if self._pressed == "brush" else 0))
            self._path = points[-1:]
        elif self._pressed == "rectangle":
            self._path = [self._path[0], points[-1]]
        else:
            self._path += points

    def _release(self) -> None:
        tool, path, self._pressed, self._path = self._pressed, self._path, "", []
        if tool == "rectangle" and len(path) == 2:
            self._touch(self._edited.paint(paint_rectangle, path, 255))
        if tool == "lasso" and len(path) > 2:
            self._touch(self._edited.paint(paint_polygon, path, 255))
        if tool == "wire" and len(path) > 1:
            self._touch(self._edited.paint(paint_polygon, self._along_edges(path), 255))
        if tool == "wand" and path:
            chosen = selection.wand(self.image, _pixel(path[-1]), self.tolerance, self.contiguous)
            self._touch(self._edited.paint(_paint_selection, chosen))
        if tool:
            self._commit()

    def _along_edges(self, path: list[Point]) -> list[Point]:
        """The closed way through points of the picture that follows its edges; points outside it count for the nearest inside."""
        rows, columns = self.mask.shape
        points = [(min(max(x, 0), columns - 1), min(max(y, 0), rows - 1)) for x, y in map(_pixel, path)]
        way = points[:1]
        for start, end in zip(points, [*points[1:], points[0]]):
            way += selection.wire(self.image, start, end)[1:]
        return way

    def _touch(self, box: Box) -> None:
        self._dirty = _union(self._dirty, box)

    def _commit(self) -> None:
        self._edited.commit()
        self._publish()

    def _publish(self) -> None:
        if self._edited.pixels is not self.mask:
            self.set_trait("mask", self._edited.pixels)
        self._describe()

    # -- events of the page ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        canvas = self._canvas
        canvas.on_client_ready(self._draw_everything)
        for kind, register in {
            "press": canvas.on_mouse_down, "drag": canvas.on_mouse_move, "release": canvas.on_mouse_up,
            "leave": canvas.on_mouse_out, "wheel": canvas.on_mouse_wheel,
        }.items():  # fmt: skip
            register(functools.partial(self._on_mouse, kind))
        for kind, register in {
            "fingers": canvas.on_touch_start, "slide": canvas.on_touch_move, "lift": canvas.on_touch_end,
        }.items():  # fmt: skip
            register(functools.partial(self._on_event, kind))
        canvas.on_touch_cancel(functools.partial(self._on_event, "lift"))
        canvas.on_key_down(self._on_key)

    def _on_mouse(self, kind: str, x: float, y: float) -> None:
        self._on_event(kind, [(x, y)])

    def _on_event(self, kind: str, points: list[Point]) -> None:
        """Note an event; all that arrive within a tick are drawn together.

        A gesture's end is in the mask at once: a click or a cell that waits behind it in the kernel's queue reads that mask.
        """
        with self._lock:
            self._events.append((kind, points))
            if kind in ENDS:
                self._shown(self._handle_events)()
            if self._drawing_planned:
                return
            self._drawing_planned = True
        try:
            asyncio.get_running_loop().call_later(TICK, self._shown(self._catch_up))
        except RuntimeError:  # no loop runs in this thread
            self._shown(self._catch_up)()

    def _on_key(self, key: str, shift: bool, control: bool, meta: bool) -> None:
        if key.lower() == "z" and (control or meta):
            history = self._edited.undone if shift else self._edited.done
            if history:
                self._shown(self.redo if shift else self.undo)()
        if key in ("[", "]"):
            self.size = int(np.clip(round(self.size * (1.25 if key == "]" else 0.8)), 1, MAX_BRUSH))

    def _catch_up(self) -> None:
        with self._lock:
            self._drawing_planned = False
            self._handle_events()
            self._draw()

    def _handle_events(self) -> None:
        events, self._events = self._events, []
        for kind, points in events:
            getattr(self, f"_on_{kind}")(points)

    def _on_press(self, points: list[Point]) -> None:
        self._pointer = points[0]
        self._press(self._view.to_picture(points[0]), self.tool)

    def _on_drag(self, points: list[Point]) -> None:
        if self._pressed == "move" and self._pointer is not None:
            self._look(self._view.scale, self._pointer, points[0])
        else:
            near = self._pressed == "wire" and math.dist(self._view.to_canvas(self._path[-1]), points[0]) < WIRE_REACH
            self._drag([] if near else [self._view.to_picture(points[0])])
        self._pointer = points[0]

    def _on_release(self, points: list[Point]) -> None:
        self._release()

    def _on_leave(self, points: list[Point]) -> None:
        self._release()
        self._pointer = None

    def _on_wheel(self, points: list[Point]) -> None:
        centre = self._pointer or (self._view.width / 2, self._view.height / 2)
        factor = math.exp(-np.clip(points[0][1], -120, 120) / 600)
        self._look(self._view.scale * factor, centre, centre)

    def _on_fingers(self, points: list[Point]) -> None:
        if len(points) == 1:
            self._on_press(points)
        elif self._pressed:  # a second finger: this becomes a pinch, what the first one drew is dropped
            self._pressed, self._path = "", []
            if self._edited.touched is not None:
                self._touch(self._edited.touched)
            self._edited.discard()
        self._fingers = points

    def _on_slide(self, points: list[Point]) -> None:
        if len(points) == 1 and len(self._fingers) == 1:
            self._on_drag(points)
        elif len(points) == len(self._fingers) == 2:
            (old, old_span), (new, new_span) = _middle_and_span(self._fingers), _middle_and_span(points)
            self._look(self._view.scale * new_span / old_span, old, new)
            self._fingers = points

    def _on_lift(self, points: list[Point]) -> None:
        self._release()
        self._fingers, self._pointer = points, None

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _look(self, scale: float, from_point: Point, to_point: Point) -> None:
        """Show the picture at `scale`, with what was at `from_point` of the canvas now at `to_point`."""
        view = self._view
        scale = float(np.clip(scale, self._fit, self._fit * MAX_ZOOM))
        rows, columns = self.image.shape[:2]
        left = view.left + from_point[0] / view.scale - to_point[0] / scale
        top = view.top + from_point[1] / view.scale - to_point[1] / scale
        left = float(np.clip(left, 0, max(0, columns - view.width / scale)))
        top = float(np.clip(top, 0, max(0, rows - view.height / scale)))
        self._view = View(left, top, scale, view.width, view.height)
        if self._view != view:
            self._moved = True
            self.zoom = scale / self._fit

    def _draw_everything(self) -> None:
        with self._lock:
            self._viewed = True
            self._moved = True
            self._draw()

    def _draw(self) -> None:
        """Bring the canvas up to date, in one message: the picture if the view moved, and what changed of the mask."""
        if not self._viewed:
            self._dirty = None
            return
        view, shown = self._view, self._edited.shown
        whole = (slice(0, view.height), slice(0, view.width))
        part = whole if self._moved else None if self._dirty is None else view.on_canvas(self._dirty)
        picture = self._seen() if self._moved else None
        tinted = None if part is None or _is_empty(part) else self._tinted(view.scaled(shown, part))
        self._moved, self._dirty = False, None
        bottom, middle, top = (self._canvas[i] for i in range(3))
        outline = self._outline()
        with hold_canvas():  # the page copies every layer that is named here, so an unchanged one is left out
            if picture is not None:
                bottom.put_image_data(picture, 0, 0)
            if picture is not None or outline != self._drawn_outline:
                self._draw_outline(top, outline)
            if tinted is not None:
                middle.clear_rect(part[1].start, part[0].start, tinted.shape[1], tinted.shape[0])
                middle.put_image_data(tinted, part[1].start, part[0].start)

    def _tinted(self, mask: np.ndarray) -> np.ndarray:
        """uint8 (h, w) -> RGBA (h, w, 4) of the tint. Four channels travel as PNG; three would be blurred by JPEG."""
        rgba = np.empty((*mask.shape, 4), np.uint8)
        rgba[:, :, :3] = TINT
        rgba[:, :, 3] = mask * np.float32(self.opacity)
        return rgba

    def _seen(self) -> np.ndarray:
        """The part of the picture that the canvas shows, from the smallest stored size that is sharp enough."""
        level = min(max(0, int(math.log2(1 / self._view.scale))) if self._view.scale < 1 else 0, len(self._levels) - 1)
        return self._view.scaled(self._levels[level], shrunk=2**level)

    @functools.cached_property
    def _levels(self) -> list[np.ndarray]:
        """The picture, its half, its quarter and so on, as far as the canvas needs them."""
        levels = [self.image]
        while self._fit * 2 ** len(levels) <= 1:
            levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(2)))
        return levels

    def _outline(self) -> tuple | None:
        """What shows where the tool is: the brush before it is pressed, or the rectangle or lasso under way."""
        if self._pressed in ("rectangle", "lasso", "wire"):
            return self._pressed, *(self._view.to_canvas(point) for point in self._path)
        if self.tool in ("brush", "eraser") and self._pointer is not None and not self._pressed:
            return "circle", self._pointer, self.size * self._view.scale / 2
        return None

    def _draw_outline(self, canvas, outline: tuple | None) -> None:
        self._drawn_outline = outline
        canvas.clear()
        if outline is None:
            return
        what, *path = outline
        for colour, width in (("white", 3), ("black", 1)):  # shows on light and on dark
            canvas.stroke_style, canvas.line_width = colour, width
            if what == "circle":
                canvas.stroke_circle(*path[0], path[1])
            elif what == "rectangle" and len(path) == 2:
                (ax, ay), (bx, by) = path
                canvas.stroke_rect(min(ax, bx), min(ay, by), abs(bx - ax), abs(by - ay))
            elif what in ("lasso", "wire") and len(path) > 1:
                canvas.stroke_lines(path)

    # -- controls --------------------------------------------------------------------------------------------------

    def _toolbar(self) -> ipywidgets.Widget:
        tools = ipywidgets.ToggleButtons(
            options=[(f"{SHOWN_AS.get(name, name.capitalize())}\u00a0", name) for name in TOOLS], icons=list(TOOLS.values()),
            style={"button_width": "7.4rem"}, layout={"width": "auto"},
        )  # fmt: skip
        size = ipywidgets.IntSlider(min=1, max=MAX_BRUSH, description="Brush, px", **_slider("17rem"))
        opacity = ipywidgets.FloatSlider(min=0.1, max=1, step=0.05, description="Mask shown", **_slider("17rem"))
        zoom = ipywidgets.FloatSlider(min=1, max=MAX_ZOOM, step=0.1, description="Zoom", **_slider("17rem"))
        for control, trait in ((tools, "tool"), (size, "size"), (opacity, "opacity"), (zoom, "zoom")):
            traitlets.link((self, trait), (control, "value"))
        self.observe(lambda change: self._redraw(), "opacity")
        self.observe(lambda change: self._zoom_to(change["new"]), "zoom")
        self._undo_button = self._button("Undo", "undo", self.undo)
        self._redo_button = self._button("Redo", "repeat", self.redo)
        buttons = [
            self._undo_button, self._redo_button,
            self._button("Clear", "trash", self.clear), self._button("Invert", "adjust", self.invert),
        ]  # fmt: skip
        return ipywidgets.VBox([row(tools, row(*buttons), size, opacity, zoom), self._selecting()])

    def _selecting(self) -> ipywidgets.Widget:
        """Controls of the wand, and what changes a selection."""
        tolerance = ipywidgets.IntSlider(min=0, max=255, description="Tolerance", **_slider("17rem"))
        contiguous = ipywidgets.Checkbox(description="Only what touches the point", indent=False, layout={"width": "14rem"})
        by_px = ipywidgets.BoundedIntText(min=0, max=MOST_GROWTH, description="By, px", **_slider("10rem"))
        for control, trait in ((tolerance, "tolerance"), (contiguous, "contiguous"), (by_px, "by_px")):
            traitlets.link((self, trait), (control, "value"))
        buttons = [
            self._button(name.replace("_", " ").capitalize(), icon, functools.partial(self.refine, name))
            for name, icon in REFINEMENTS.items()
        ]
        return row(tolerance, contiguous, by_px, *buttons)

    def _files(self) -> ipywidgets.Widget:
        upload = ipywidgets.FileUpload(accept="image/*", description="Load mask", layout={"width": "10rem"})
        name = ipywidgets.Text("mask.png", layout={"width": "11rem"}, placeholder="where the notebook runs")
        upload.observe(self._shown(lambda change: self._load_upload(upload)), "value")
        self._message = ipywidgets.HTML()
        return row(upload, self._button("Save mask to", "save", lambda: self._save_to(name.value)), name)

    def _button(self, name: str, icon: str, act) -> ipywidgets.Button:
        button = ipywidgets.Button(description=name, icon=icon, layout={"width": "auto"})
        button.on_click(self._shown(lambda _: act()))
        return button

    def _shown(self, act):
        """`act`, with its errors shown under the picture instead of in a log that nobody opens."""

        @functools.wraps(act)
        def guarded(*arguments):
            try:
                act(*arguments)
            except LabError as error:
                self._say(str(error), alarm=True)
            except Exception as error:  # a callback's error would vanish in the kernel's log
                self._say(f"{type(error).__name__}: {error}", alarm=True)

        return guarded

    def _load_upload(self, upload: ipywidgets.FileUpload) -> None:
        if upload.value:
            file = upload.value[0]
            upload.value = ()
            self.load(read_mask(file["content"], file["name"]))

    def _save_to(self, name: str) -> None:
        path = self.save(name.strip() or "mask.png")
        self._say(f"saved to {path.resolve()}")

    def _describe(self) -> None:
        height, width = self.mask.shape
        self._say(f"{width} x {height} px, {np.count_nonzero(self.mask) / self.mask.size:.1%} of it painted")
        self._undo_button.disabled = not self._edited.done
        self._redo_button.disabled = not self._edited.undone

    def _say(self, text: str, alarm: bool = False) -> None:
        self._message.value = message(text, alarm)

    def _zoom_to(self, zoom: float) -> None:
        with self._lock:
            middle = (self._view.width / 2, self._view.height / 2)
            if not math.isclose(zoom * self._fit, self._view.scale, rel_tol=1e-6):
                self._look(zoom * self._fit, middle, middle)
                self._draw()

    def _redraw(self) -> None:
        with self._lock:
            self._dirty = slice(0, self.mask.shape[0]), slice(0, self.mask.shape[1])
            self._draw()


def _pixel(point: Point) -> tuple[int, int]:
    """The pixel at a point, whose centre has whole numbers."""
    return round_half_up(point[0]), round_half_up(point[1])


def _paint_selection(mask: np.ndarray, chosen: np.ndarray) -> Box:
    mask[chosen] = 255
    return slice(0, mask.shape[0]), slice(0, mask.shape[1])


def jpeg(image: Image.Image) -> bytes:
    """A picture as the bytes of a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def message(text: str, alarm: bool = False) -> str:
    """A line of text as HTML in JupyterLab's colours, announced by screen readers, at once if it is an alarm."""
    colour = "var(--jp-error-color1, #b00020)" if alarm else "var(--jp-ui-font-color2, #555)"
    return f'<span role="{"alert" if alarm else "status"}" style="color: {colour}">{html.escape(text)}</span>'


def row(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    return ipywidgets.HBox(widgets, layout={"flex_flow": "row wrap", "align_items": "center"})


def _slider(width: str) -> dict:
    return {"layout": {"width": width}, "style": {"description_width": "5.5rem"}}


def _is_empty(part: Box) -> bool:
    return part[0].stop <= part[0].start or part[1].stop <= part[1].start


def _middle_and_span(fingers: list[Point]) -> tuple[Point, float]:
    """The point between two fingers and their distance, at least 1 px."""
    (ax, ay), (bx, by) = fingers
    return ((ax + bx) / 2, (ay + by) / 2), max(1.0, math.hypot(bx - ax, by - ay))
