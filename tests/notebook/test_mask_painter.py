"""The painter without a front end: every gesture in Python, and the page's events as the front end would send them."""

import asyncio

import numpy as np
import pytest
from PIL import Image

from moebius_lab import LabError
from moebius_lab.inpainting import selection
from moebius_lab.inpainting.extending import Extension
from moebius_lab.notebook.mask_painter import HISTORY_BYTES, EditedMask, MaskPainter, paint_line, paint_polygon

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def picture():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([2 * x, 3 * y, x + y], axis=2).astype(np.uint8)


@pytest.fixture
def painter(picture):
    return MaskPainter(picture)


def near_line(a, b, radius):
    """bool (H, W): within `radius` px of the segment from a to b, computed the long way."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    a, b = np.array(a, float), np.array(b, float)
    t = np.clip(((x - a[0]) * (b - a)[0] + (y - a[1]) * (b - a)[1]) / max(((b - a) ** 2).sum(), 1e-9), 0, 1)
    return np.hypot(x - a[0] - t * (b - a)[0], y - a[1] - t * (b - a)[1]) <= radius


def front_end_says(painter, *events, then=lambda: None):
    """Deliver events of the page, as (name, x, y) or (name, fingers), to the canvas that receives them.

    `then` is called right after the last one, before a tick is over.
    """

    async def deliver():
        for name, *where in events:
            content = {"event": name}
            if name.startswith("touch"):
                content["touches"] = [{"x": x, "y": y} for x, y in where[0]]
            elif where:
                content |= {"x": where[0], "y": where[1]}
            painter._canvas._canvases[-1]._handle_frontend_event(None, content, [])
        then()
        async with asyncio.timeout(60):
            while painter._drawing_planned:
                await asyncio.sleep(0.002)

    asyncio.run(deliver())


@pytest.mark.parametrize("shape, size", [((1, 1), 1), ((60, 80), 4), ((80, 60), 4), ((3000, 2000), 140)])
def test_the_brush_begins_with_a_share_of_the_picture_that_the_slider_can_show(shape, size):
    assert MaskPainter(np.zeros((*shape, 3), np.uint8)).size == size


# -- gestures in Python ------------------------------------------------------------------------------------------------


def test_a_stroke_covers_what_is_within_half_its_width_and_nothing_else(painter):
    painter.stroke([(10, 20), (60.5, 33.25), (61, 50)], size=9)
    expected = near_line((10, 20), (60.5, 33.25), 4.5) | near_line((60.5, 33.25), (61, 50), 4.5)
    assert painter.mask.dtype == np.uint8 and painter.mask.shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(painter.mask, expected * 255)


def test_one_point_is_a_dot_and_strokes_may_leave_the_picture(painter):
    painter.stroke([(5, 5)], size=1)
    assert painter.mask[5, 5] == 255 and np.count_nonzero(painter.mask) == 1
    painter.stroke([(-500, 30), (900, 30)], size=3)
    assert (painter.mask[29:32] == 255).all()
    before = painter.mask
    painter.stroke([(-50, -50), (-60, -70)], size=5)
    assert painter.mask is before


def test_erasing_takes_away_what_was_painted(painter):
    painter.rectangle((10, 10), (50, 40))
    painter.erase([(10, 25), (50, 25)], size=6)
    assert painter.mask[25, 30] == 0 and painter.mask[12, 30] == 255


def test_rectangles_take_corners_in_any_order_and_include_them(painter):
    painter.rectangle((30, 40), (20, 10))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[10:41, 20:31] = 255
    np.testing.assert_array_equal(painter.mask, expected)


def test_a_lasso_fills_the_closed_line(painter):
    painter.lasso([(10, 10), (50, 10), (50, 50)])
    assert painter.mask[12, 45] == 255 and painter.mask[10, 10] == 255 and painter.mask[45, 15] == 0
    assert np.count_nonzero(painter.mask) == 41 * 42 // 2  # with its outline
    painter.clear()
    painter.lasso([(40, 2), (58, 58), (8, 22), (72, 22), (22, 58)])
    assert painter.mask[30, 40] == 255, "the middle of a star drawn in one go is inside"


def test_undo_redo_clear_and_invert_walk_through_the_history(painter):
    states = [painter.mask]
    for gesture in (
        lambda: painter.stroke([(5, 5), (70, 50)], size=4),
        lambda: painter.lasso([(1, 1), (30, 2), (10, 40)]),
        painter.invert,
        painter.clear,
    ):
        gesture()
        states.append(painter.mask)
    np.testing.assert_array_equal(states[3], 255 - states[2])
    assert not states[4].any()
    for state in reversed(states[:-1]):
        painter.undo()
        np.testing.assert_array_equal(painter.mask, state)
    for state in states[1:]:
        painter.redo()
        np.testing.assert_array_equal(painter.mask, state)
    painter.undo()
    painter.stroke([(3, 3)], size=2)
    with pytest.raises(LabError, match="nothing to redo"):
        painter.redo()


def test_a_gesture_that_changes_nothing_is_no_step_of_the_history(painter):
    painter.clear()
    with pytest.raises(LabError, match="paint first"):
        painter.undo()


def test_the_history_forgets_its_oldest_steps_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr("moebius_lab.notebook.mask_painter.HISTORY_BYTES", 4 * HEIGHT * WIDTH)
    painter = MaskPainter(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    for _ in range(5):
        painter.invert()
    for _ in range(2):
        painter.undo()
    with pytest.raises(LabError, match="nothing to undo"):
        painter.undo()
    assert HISTORY_BYTES >= 5 * 2 * 12_000_000  # some steps over all of a 12-megapixel picture


def test_the_mask_is_observed_once_a_gesture_and_old_masks_stay_as_they_were(painter):
    seen = []
    painter.observe(lambda change: seen.append((change["old"].sum(), change["new"].sum())), "mask")
    painter.stroke([(10, 10), (20, 20), (30, 10)], size=5)
    first, painted = painter.mask, painter.mask.sum()
    painter.erase([(10, 10)], size=5)
    painter.undo()
    assert len(seen) == 3 and seen[0] == (0, painted) and seen[1][0] == painted == seen[2][1] == first.sum()
    with pytest.raises(ValueError, match="read-only"):
        painter.mask[0, 0] = 1


def test_masks_are_loaded_and_saved_in_every_form(painter, tmp_path):
    painter.stroke([(10, 10), (40, 40)], size=7)
    painted = painter.mask
    path = painter.save(tmp_path / "mask.png")
    for form in (path, str(path), Image.open(path), painted, painted > 0):
        painter.clear()
        painter.load(form)
        np.testing.assert_array_equal(painter.mask, painted)
    soft = (np.arange(HEIGHT * WIDTH) % 256).reshape(HEIGHT, WIDTH).astype(np.uint8)
    np.testing.assert_array_equal(MaskPainter(painter.image, soft).mask, soft)


def test_pictures_are_taken_in_every_form(picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    rgba = np.dstack([picture, np.full((HEIGHT, WIDTH), 9, np.uint8)])
    for form in (path, str(path), Image.open(path), picture, rgba):
        np.testing.assert_array_equal(MaskPainter(form).image, picture)
    assert MaskPainter(picture[:, :, 0]).image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "bad, advice",
    [
        (lambda p: p.stroke([]), "at least 1 point"),
        (lambda p: p.stroke([1, 2, 3]), "pairs of numbers"),
        (lambda p: p.stroke([("a", "b")]), "pairs of numbers"),
        (lambda p: p.stroke([(1, float("nan"))]), "pairs of numbers"),
        (lambda p: p.stroke([(1, 2)], size=0), "1 to 1000 px"),
        (lambda p: p.erase(None), "at least 1 point"),
        (lambda p: p.lasso([(1, 1), (2, 2)]), "at least 3 points"),
        (lambda p: p.rectangle((1, 1), (2, 2, 2)), "at least 2 points"),
        (lambda p: p.load(np.zeros((5, 5), np.uint8)), "make them the same size"),
        (lambda p: p.load(np.full((HEIGHT, WIDTH), -3.0)), "scale them to 0..1"),
        (lambda p: p.load("nowhere.png"), "no such file"),
        (lambda p: p.save("nowhere/mask.png"), "no such folder; make it first"),
        (lambda p: p.save("mask.jpg"), r"ends in \.png"),
        (lambda p: p.undo(), "paint first"),
        (lambda p: MaskPainter("nowhere.png"), "no such file"),
        (lambda p: MaskPainter(np.zeros((4, 4, 3), complex)), "give uint8, uint16, float or bool"),
        (lambda p: MaskPainter(np.zeros((0, 4, 3), np.uint8)), "is not a picture"),
        (lambda p: MaskPainter(7), "a path, a PIL image"),
    ],
)
def test_what_cannot_be_used_is_refused_with_advice_and_changes_nothing(painter, bad, advice):
    before = painter.mask
    with pytest.raises(LabError, match=advice):
        bad(painter)
    assert painter.mask is before


# -- what the page sends -----------------------------------------------------------------------------------------------


def test_the_mouse_paints_what_the_same_stroke_paints_in_python(painter, picture):
    path = [(100, 100), (150, 170), (300, 200), (301, 205)]
    front_end_says(
        painter,
        ("mouse_move", 90, 90),
        ("mouse_down", *path[0]),
        *[("mouse_move", *point) for point in path[1:]],
        ("mouse_up", *path[-1]),
        ("mouse_move", 500, 400),
    )
    other = MaskPainter(picture)
    scale = painter._canvas.width / WIDTH
    other.stroke([(x / scale - 0.5, y / scale - 0.5) for x, y in path], size=painter.size)
    assert painter.mask.any()
    np.testing.assert_array_equal(painter.mask, other.mask)
    painter.undo()
    assert not painter.mask.any()


def test_what_follows_a_gesture_in_the_kernel_s_queue_finds_it_in_the_mask(painter, tmp_path):
    """Where a kernel is busy meanwhile, a stroke and the click after it are handled in one go."""

    def press_save_and_take_the_eraser():
        painter.save(tmp_path / "mask.png")
        painter.tool = "eraser"

    stroke = [("mouse_down", 100, 100), ("mouse_move", 300, 200), ("mouse_up", 300, 200)]
    front_end_says(painter, *stroke, then=press_save_and_take_the_eraser)
    assert painter.mask.any()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), painter.mask)


def test_each_tool_is_chosen_by_its_trait_and_leaving_the_canvas_ends_a_gesture(painter):
    painter.tool = "rectangle"
    front_end_says(painter, ("mouse_down", 90, 90), ("mouse_move", 180, 270), ("mouse_up", 180, 270))
    assert np.count_nonzero(painter.mask) == 10 * 20
    painter.tool, painter.size = "eraser", 20
    front_end_says(painter, ("mouse_down", 135, 180), ("mouse_out", 135, 180), ("mouse_move", 400, 400))
    assert 0 < np.count_nonzero(painter.mask) < 200
    painter.clear()
    painter.tool = "lasso"
    corners = [(90, 90), (360, 90), (360, 360), (90, 360)]
    front_end_says(painter, ("mouse_down", 90, 90), *[("mouse_move", x, y) for x, y in corners], ("mouse_up", 90, 360))
    assert 25 * 25 < np.count_nonzero(painter.mask) < 35 * 35


def test_the_wand_and_the_wire_paint_what_selection_selects(painter, picture):
    painter.wand((30, 20), 12)
    expected = selection.wand(picture, (30, 20), 12)
    assert np.array_equal(painter.mask == 255, expected) and expected.any()
    painter.undo()
    painter.tool, painter.tolerance = "wand", 12
    front_end_says(painter, ("mouse_down", *painter._view.to_canvas((30, 20))), ("mouse_up", 0, 0))
    assert np.array_equal(painter.mask == 255, expected)
    painter.clear()
    corners = [(5, 5), (70, 10), (40, 50)]
    painter.wire(corners)
    way = corners[:1]
    for start, end in zip(corners, [*corners[1:], corners[0]]):
        way += selection.wire(picture, start, end)[1:]
    outlined = np.zeros_like(painter.mask)
    paint_polygon(outlined, way, 255)
    assert np.array_equal(painter.mask, outlined)
    painter.clear()
    painter.tool = "wire"
    spots = [painter._view.to_canvas(corner) for corner in corners]
    front_end_says(
        painter, ("mouse_down", *spots[0]), *(("mouse_move", *spot) for spot in spots[1:]), ("mouse_up", *spots[2])
    )
    assert np.array_equal(painter.mask, outlined)


def test_selections_are_refined_and_taken_from_elsewhere(painter):
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[20:30, 30:50] = True
    square[25, 40] = square[0, 0] = False
    painter.add(square)
    for how, numbers in (("fill_holes", ()), ("grow", (3,)), ("keep_largest", ()), ("shrink", (2,))):
        square = getattr(selection, how)(square, *numbers)
        painter.refine(how, *numbers)
        assert np.array_equal(painter.mask == 255, square)
    painter.refine("feather", 4)
    assert np.array_equal(painter.mask, selection.feather(square, 4))
    painter.undo()
    assert np.array_equal(painter.mask == 255, square)
    for bad in (lambda: painter.refine("melt"), lambda: painter.add(square.T), lambda: painter.wand((WIDTH, 0))):
        with pytest.raises(LabError):
            bad()


def test_an_extended_painter_has_the_new_area_painted(painter, picture):
    painter.rectangle((10, 10), (20, 20))
    wider = painter.extended(Extension(left=30, bottom=5))
    assert wider.image.shape == (HEIGHT + 5, WIDTH + 30, 3) and np.array_equal(wider.image[:HEIGHT, 30:], picture)
    assert (wider.mask[:, :30] == 255).all() and np.array_equal(wider.mask[:HEIGHT, 30:], painter.mask)
    assert wider.extended(Extension(left=1, top=2)).extension == Extension(31, 2, 0, 5)


def test_a_finger_paints_and_two_fingers_zoom_without_painting(painter):
    front_end_says(painter, ("touch_start", [(200, 200)]), ("touch_move", [(260, 220)]), ("touch_end", []))
    assert painter.mask.any()
    before = painter.mask
    front_end_says(
        painter,
        ("touch_start", [(300, 300)]),
        ("touch_move", [(310, 300)]),
        ("touch_start", [(300, 300), (400, 300)]),
        ("touch_move", [(250, 300), (450, 300)]),
        ("touch_end", [(250, 300)]),
        ("touch_end", []),
    )
    assert painter.mask is before and painter.zoom == pytest.approx(2)
    front_end_says(painter, ("touch_start", [(350, 300)]), ("touch_end", []))
    assert painter.mask[int(300 / 9), int(350 / 9)]  # what lay between the fingers still does


def test_the_wheel_zooms_where_the_pointer_is_and_moving_drags_the_picture(painter):
    front_end_says(painter, ("mouse_move", 90, 90), *[("mouse_wheel", 0, -100)] * 10)
    assert painter.zoom > 4 and painter._view.to_picture((90, 90)) == pytest.approx((9.5, 9.5))
    painter.tool = "move"
    front_end_says(painter, ("mouse_down", 400, 300), ("mouse_move", 400 - 5 * painter._view.scale, 300), ("mouse_up", 1, 1))
    assert painter._view.to_picture((90, 90)) == pytest.approx((14.5, 9.5))
    assert not painter.mask.any()
    painter.zoom = 1.0
    assert (painter._view.left, painter._view.top) == (0, 0)


def test_errors_of_a_button_are_shown_in_the_widget(painter, tmp_path):
    painter._shown(lambda: painter.save(tmp_path / "no" / "folder.png"))()
    assert "no such folder" in painter._message.value and 'role="alert"' in painter._message.value
    painter._shown(lambda: 1 / 0)()
    assert "ZeroDivisionError" in painter._message.value
    painter.stroke([(5, 5)])
    assert 'role="status"' in painter._message.value


def test_a_still_goes_with_the_widget_for_readers_without_one(painter):
    painter.rectangle((0, 0), (39, 59))
    data = painter._repr_mimebundle_()
    assert data["image/jpeg"].startswith(b"\xff\xd8") and "application/vnd.jupyter.widget-view+json" in data
    still = np.asarray(painter.picture()).astype(int)
    assert still.shape == (HEIGHT, WIDTH, 3)
    assert (still[:, :40, 0] - still[:, :40, 1]).mean() > (
        painter.image[:, :40, 0] - painter.image[:, :40, 1].astype(int)
    ).mean()
    np.testing.assert_array_equal(still[:, 40:], painter.image[:, 40:])


# -- large pictures ----------------------------------------------------------------------------------------------------


def test_painting_a_large_mask_in_pieces_is_the_same_as_at_once():
    """The page's events are merged as they queue; how they were merged must not be seen in the mask."""
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.uniform(0, 1000, (40, 2))]
    at_once, in_pieces = EditedMask(np.zeros((1000, 1000), np.uint8)), EditedMask(np.zeros((1000, 1000), np.uint8))
    at_once.paint(paint_line, points, 30, 255)
    for a, b in zip(points, points[1:]):
        in_pieces.paint(paint_line, [a, b], 30, 255)
    np.testing.assert_array_equal(at_once.shown, in_pieces.shown)
