"""The page's tools that are loaded when they are first used, in Chromium and in Firefox: selecting, extending, results, saving, batches.

test_large.py has what Chromium's own driver alone can do.
"""

import base64
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import segmenter
from hands import A_HANG_IS_ONE_FAILURE, PAGE, Hands, opened
from PIL import Image

from moebius_lab.inpainting import selection
from moebius_lab.inpainting.colours import PRIMARIES, TRANSFERS, make_profile
from moebius_lab.inpainting.extending import extension_to
from moebius_lab.inpainting.imaging import is_hole
from moebius_lab.inpainting.photographs import demo_photographs
from moebius_lab.inpainting.picture_files import read_picture
from moebius_lab.inpainting.segmenter import Segmenter
from moebius_lab.notebook.mask_painter import paint_polygon
from moebius_lab.page.serve import Server

pytestmark = [
    pytest.mark.slow,
    A_HANG_IS_ONE_FAILURE,
    pytest.mark.parametrize("first_tab", ["chromium", "firefox"], indirect=True),
]


@pytest.fixture
def page(first_tab, tiny_bundle):
    """The page on an address of its own, where nothing is stored yet; at the end nothing may have gone uncaught in it."""
    with Server(tiny_bundle) as server:
        yield opened(first_tab, server.url)
    assert not first_tab.errors


@pytest.fixture
def picture(page, tmp_path) -> Callable[..., np.ndarray]:
    """`picture(width, height)` opens the demo's mountain in this size, and gives its pixels."""

    def open_it(width: int = 320, height: int = 240) -> np.ndarray:
        photo = photograph(width, height)
        photo.save(tmp_path / "photo.png")
        page.open_picture(tmp_path / "photo.png", width, height)
        return np.asarray(photo)

    return open_it


def photograph(width: int, height: int) -> Image.Image:
    photo, _ = demo_photographs()["mountain"]
    return Image.open(photo).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def choose(page: Hands, tool: str) -> None:
    page.check(f"[name=tool][value={tool}]")


def selected(page: Hands, count: int) -> None:
    page.says("#status", f"{count:,} pixels are selected", 60)


def fill(page: Hands, seed: int = 0, first: bool = True) -> None:
    page.write("#preset", "fastest")
    page.write("#seed", seed)
    page.click("#run")
    if first:
        page.until("document.querySelector('#prompt').open")
        page.click("#prompt-yes")
    done(page)


def done(page: Hands) -> None:
    page.until("!document.querySelector('#run').disabled && !document.querySelector('#keep').disabled")


def count(page: Hands, elements: str) -> int:
    return page.read(f"document.querySelectorAll({json.dumps(elements)}).length")


# -- selecting ---------------------------------------------------------------------------------------------------------


def test_a_wand_and_its_refinements_select_as_in_python(page, picture):
    image = picture()
    page.unfold("select")
    page.press("w")
    page.write("#tolerance", 30)
    page.click_at(160, 200)
    expected = selection.wand(image, (160, 200), 30)
    selected(page, expected.sum())
    assert np.array_equal(page.mask() == 255, expected)
    page.check("#contiguous", False)
    page.click_at(20, 20)
    expected |= selection.wand(image, (20, 20), 30, contiguous=False)
    selected(page, expected.sum())
    assert np.array_equal(page.mask() == 255, expected)
    page.write("#refine-px", 3)
    for name, change in (
        ("grow", lambda mask: selection.grow(mask, 3)), ("fill-holes", selection.fill_holes),
        ("largest", selection.keep_largest), ("shrink", lambda mask: selection.shrink(mask, 3)),
    ):  # fmt: skip
        page.click(f"#refine-{name}")
        expected = change(expected)
        selected(page, expected.sum())
        assert np.array_equal(is_hole(page.mask()), expected), name
    page.click("#refine-feather")
    page.says("#status", "Feather")
    assert np.array_equal(page.mask(), selection.feather(expected, 3))
    page.press("Control", "z")
    assert np.array_equal(page.mask() == 255, expected)


def test_while_something_is_selected_or_extended_nothing_else_changes(page, picture):
    picture()
    page.unfold("select")
    page.press("w")
    page.click_at(160, 200)
    page.says("#status", "Magic wand: ", 60)
    mask = page.mask()
    page.read("['refine-grow', 'undo', 'clear', 'invert'].forEach((id) => document.getElementById(id).click())")
    page.says("#status", "Grow: ", 60)
    assert (page.mask() >= mask).all() and page.mask().any()
    for expected in (mask, np.zeros_like(mask)):
        page.click("#undo")
        assert np.array_equal(page.mask(), expected)
    page.unfold("extend")
    page.write("#extend-left", 20)
    page.read("['extend-apply', 'redo'].forEach((id) => document.getElementById(id).click())")
    page.says("#facts", "340 × 240 px", 60)
    page.click("#undo")
    assert not page.mask().any()
    page.write("#extend-left", 20)
    page.read(
        """{
          const given = Uint8ClampedArray;
          globalThis.Uint8ClampedArray = function () { throw new RangeError('no memory'); };
          document.getElementById('extend-apply').click();
          globalThis.Uint8ClampedArray = given;
        }"""
    )
    page.says("#notices", "The picture was not extended: no memory. Choose fewer pixels.", 60)
    page.click("#invert")
    assert page.mask().all()


def test_an_edge_lasso_follows_edges_by_mouse_and_by_keys(page, picture):
    image = picture()
    page.unfold("select")
    choose(page, "wire")
    corners = [(60, 80), (200, 90), (180, 180)]
    for number, corner in enumerate(corners, 1):
        page.click_at(*corner)
        page.says("#status", f"Point {number} at {corner[0]}, {corner[1]}", 60)
    page.point_at(100, 150)
    page.until("document.querySelector('.band').getAttribute('d')", 60)
    page.click_at(*corners[0])
    page.says("#status", "Line closed.", 60)
    way = [corners[0]]
    for start, end in zip(corners, [*corners[1:], corners[0]]):
        way += selection.wire(image, start, end)[1:]
    expected = np.zeros(image.shape[:2], np.uint8)
    paint_polygon(expected, way, 255)
    assert np.array_equal(page.mask(), expected) and expected.any()

    page.press("Delete")
    page.read("document.querySelector('#mask').focus()")
    for number, step in enumerate(("", "ArrowRight", "ArrowDown"), 1):
        for _ in range(4 if step else 0):
            page.press("Shift", step)
        page.press("Enter")
        page.says("#status", f"Point {number} at", 60)
    page.press("Enter")
    page.says("#status", "Line closed.", 60)
    before = page.mask()
    assert before.any()
    page.click_at(20, 20)
    page.says("#status", "Point 1 at 20, 20", 60)
    page.read("document.querySelector('#mask').focus()")
    page.press("Escape")
    page.says("#status", "Drawing given up.", 60)
    assert np.array_equal(page.mask(), before)


def test_a_segmenter_of_the_person_s_own_selects_an_object(page, tmp_path):
    pixels = np.full((90, 120, 3), 90, np.uint8)
    pixels[20:55, 30:80] = (200, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    page.open_picture(tmp_path / "red.png", 120, 90)
    page.unfold("select")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    page.choose_file("#segmenter-file", tmp_path / "bad.onnx")
    page.says("#notices", "bad.onnx” cannot be used")
    segmenter.reddish(tmp_path / "red.onnx")
    page.choose_file("#segmenter-file", tmp_path / "red.onnx")
    page.says("#status", "red.onnx is ready")
    page.click_at(40, 30)
    expected = np.zeros((90, 120), bool)
    expected[20:55, 30:80] = True
    selected(page, expected.sum())
    assert np.array_equal(page.mask() == 255, expected)
    stored = f"(await {PAGE}.model.engine.stored()).map(({{url}}) => url.split('.').pop())"
    assert page.read(stored) == ["wasm"]  # checked, and kept for when there is no network
    page.read(
        f"{PAGE}.model.engine.cache.open().then(async (store) => store.put((await store.keys())[0], new Response('')))"
    )
    for form in segmenter.FORMS:  # in two files; the same pixels as in Python
        page.press("Delete")
        page.says("#facts", "hole none")
        paths = segmenter.pair(tmp_path, form)
        page.choose_file("#segmenter-file", *paths)
        page.says("#status", "encoder.onnx and decoder.onnx are ready")
        page.click_at(40, 30)
        expected = Segmenter(*paths).select(pixels, (40, 30))
        selected(page, expected.sum())
        assert np.array_equal(page.mask() == 255, expected) and expected[30, 40] and not expected[5, 5], form
    page.choose_file("#segmenter-file", paths[1])
    page.says("#notices", "it asks for image_embeddings, image_positional_embeddings")
    reply = page.tab.evaluate(
        f"""async (model) => {{
          const page = {PAGE};
          const script = document.querySelector('script[type=module]').src;
          const {{ openSegmenter }} = await import(new URL('segmenter.js', script));
          const opened = await openSegmenter([new Blob([Uint8Array.from(atob(model), (c) => c.charCodeAt(0))])], page);
          const reply = opened.select(page.editor.picture, 'red', [40, 30]).catch((error) => error.message);
          opened.close();
          return reply;
        }}""",
        base64.b64encode((tmp_path / "red.onnx").read_bytes()).decode(),
    )
    assert reply == "another one was opened", "a page that waited on would stay locked"


# -- extending ---------------------------------------------------------------------------------------------------------


def test_a_picture_is_extended_by_handles_and_to_a_ratio_and_the_old_pixels_stay(page, picture):
    photo = picture(180, 100)
    page.unfold("extend")
    handle = page.read("document.querySelector('.edge.left').getBoundingClientRect()")
    x, y = handle["x"] + 8, handle["y"] + 8
    page.pull((x, y), (x - 40, y))
    assert int(page.value("#extend-left")) > 3
    page.read("document.querySelector('.edge.top').focus()")
    page.press("ArrowUp")
    page.press("Alt", "ArrowUp")
    assert page.value("#extend-top") == "11"
    page.click("#extend-reset")
    page.write("#extend-ratio", "1:1")
    page.says("#extend-size", "180 × 100 px becomes 180 × 180 px")
    page.click("#extend-apply")
    page.says("#facts", "180 × 180 px · hole 44.4 %")
    fill(page)
    result = page.saved()
    left, top, right, bottom = extension_to("1:1", 180, 100).inside(180, 180)
    assert np.array_equal(result[top:bottom, left:right], photo)
    page.click("#edit")
    page.press("Control", "z")
    page.says("#facts", "180 × 100 px · hole none")
    assert np.array_equal(page.saved(), photo)
    page.press("Control", "Shift", "z")
    page.says("#facts", "180 × 180 px")
    assert count(page, "#results input") == 1


def test_an_extension_is_undone_after_a_reload_too(page, picture):
    photo = picture(180, 100)
    page.drag((60, 40), (90, 60))
    before = page.mask()
    page.unfold("extend")
    for sides in ({"left": 20, "bottom": 8}, {"top": 7}):
        for side, px in sides.items():
            page.write(f"#extend-{side}", px)
        page.click("#extend-apply")
        page.says("#status", "The picture is larger")
        page.drag((3, 3), (4, 4))  # what is painted later goes with the extension
    page.says("#facts", "200 × 115 px")
    page.until("document.querySelector('#autosave-text').dataset.state === 'saved'")
    page.again()
    page.says("#status", "Your last picture and mask are back.")
    page.says("#facts", "200 × 115 px")
    mask = page.mask()
    page.press("Control", "z")
    page.says("#facts", "200 × 108 px")
    page.press("Control", "z")
    page.says("#facts", "180 × 100 px")
    assert np.array_equal(page.saved(), photo) and np.array_equal(page.mask(), before)
    for size in ("200 × 108 px", "200 × 115 px"):
        page.press("Control", "Shift", "z")
        page.says("#facts", size)
    assert np.array_equal(page.mask(), mask) and np.array_equal(page.saved()[7:107, 20:], photo)


# -- results -----------------------------------------------------------------------------------------------------------


def test_results_are_compared_go_on_and_bring_their_settings(page, picture, tmp_path):
    photo = picture(180, 120)
    page.unfold("select")
    page.press("w")
    page.click_at(90, 100)
    page.says("#status", "pixels are selected", 60)
    page.click("#refine-grow")
    page.says("#status", "Grow: ", 60)
    fill(page, seed=5)
    page.write("#seed", "9")
    page.write("#variants", "2")
    fill(page, seed=9, first=False)
    page.write("#variants", "1")
    assert count(page, "#results input") == 3
    page.unfold("compare")
    assert count(page, "#made li") == 3
    page.check("#results input[value='0']")
    page.write("#seed", "77")
    page.click("#copy-settings")
    page.says("#status", "The settings of result 1, seed 5 are in use", 60)
    assert page.value("#seed") == "5"
    page.write("#compare-left", "0")
    page.write("#compare-right", "1")
    page.click("#compare-both")
    page.says("#status", "Left: result 1, seed 5. Right: result 2, seed 9.", 60)
    assert page.value("#split") == "0.5"
    page.says("#before", "result 1, seed 5")

    (tmp_path / "kept.png").write_bytes(page.given("#save"))
    made = read_picture(tmp_path / "kept.png").made
    assert made["settings"]["seed"] == 9 and made["model"]["network"] == "tiny" and made["code"]
    mask = page.mask()
    page.click("#again")
    done(page)
    assert count(page, "#results input") == 1
    assert np.array_equal(page.mask(), mask)
    page.write("#seed", "1")
    page.choose_file("#picture-file", tmp_path / "kept.png")
    page.says("#status", "its settings are in use (seed 9)", 60)
    assert page.value("#seed") == "9"

    # the picture before is still there, with its result
    assert count(page, "#made li") == 0 and count(page, "#earlier ol li") == 1
    page.says("#earlier", "photo, 180 × 120 px")
    page.write("#compare-left", "")
    page.click("#compare-both")
    page.says("#status", "Right: result 1 of photo, seed 6.", 60)
    assert page.read("document.querySelector('#keep').disabled && !document.querySelector('#split').disabled")
    page.write("#seed", "1")
    page.click("#copy-settings")
    page.says("#status", "The settings of result 1 of photo, seed 6 are in use", 60)
    assert page.value("#seed") == "6"
    page.click("#edit")
    Image.fromarray(photo[:80]).save(tmp_path / "lower.png")
    page.open_picture(tmp_path / "lower.png", 180, 80)
    page.click("#compare-both")
    page.says("#notices", "“photo” is 180 × 120 pixels, “lower” 180 × 80: only results of one size can be compared.")
    page.click("#earlier button")
    page.says("#facts", "180 × 120 px")
    assert np.array_equal(page.mask(), mask) and count(page, "#results input") == 1


def test_a_picture_is_saved_in_its_own_format_with_the_camera_s_data_turned_once(page, tmp_path):
    taken = Image.Exif()
    taken[0x010F], taken[0x0112] = "A camera", 6
    photo = photograph(180, 120)
    for form, ending in (("JPEG", ".jpg"), ("WEBP", ".webp"), ("PNG", ".png")):
        file = tmp_path / f"turned{ending}"
        photo.save(file, exif=taken, **({} if form == "PNG" else {"quality": 95}))
        page.open_picture(file, 120, 180)
        page.unfold("saving")
        page.write("#save-format", "original")
        page.check("#save-exif")
        name, content = page.file("#save")
        assert name == f"turned{ending}"
        saved = Image.open(io.BytesIO(content))
        assert saved.format == form and saved.size == (120, 180)
        assert dict(saved.getexif()) == {0x010F: "A camera", 0x0112: 1}
        upright = np.asarray(photo.transpose(Image.Transpose.ROTATE_270)).astype(int)
        assert np.abs(np.asarray(saved.convert("RGB")) - upright).mean() < 4
    page.check("#save-exif", False)
    assert not dict(Image.open(io.BytesIO(page.given("#save"))).getexif())
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save(tmp_path / "seen-through.png")
    page.open_picture(tmp_path / "seen-through.png", 180, 120)
    page.write("#save-format", "jpeg")
    page.click("#save")
    page.says("#notices", "a JPEG keeps no transparency; choose PNG or WebP under Saving", 60)
    page.write("#save-format", "webp")
    assert Image.open(io.BytesIO(page.given("#save"))).mode == "RGBA"


def test_a_picture_keeps_its_colour_profile_as_in_python(page, tmp_path):
    profile = make_profile(PRIMARIES[12], TRANSFERS[13], grey=False)  # Display P3
    photo = photograph(180, 120)
    for number, (ending, options) in enumerate(
        {".png": {}, ".webp": {"lossless": True, "exact": True}, ".jpg": {"quality": 95}}.items()
    ):
        file = tmp_path / f"wide{ending}"
        photo.save(file, icc_profile=profile, **options)
        page.open_picture(file, 180, 120)
        page.unfold("saving")
        page.write("#save-format", "original")
        page.check("#save-profile")
        untouched = Image.open(io.BytesIO(page.given("#save")))
        kept = read_picture(file)
        assert untouched.info["icc_profile"] == kept.profile == profile
        pixels = np.asarray(untouched.convert("RGB")).astype(int)
        off, off_in_srgb = np.abs(pixels - kept.stored).mean(), np.abs(pixels - kept.rgb).mean()
        assert off < (3 if number else 1e-9) and off < off_in_srgb, (ending, off, off_in_srgb)
        if number:
            continue
        page.drag((60, 60), (90, 80))
        fill(page)
        own = np.asarray(Image.open(io.BytesIO(page.given("#save"))))
        page.check("#save-profile", False)
        shown = np.asarray(Image.open(io.BytesIO(page.given("#save"))))
        changed = (own != kept.stored).any(axis=-1)
        assert changed.sum() > 500 and np.abs(own[changed].astype(int) - kept.in_its_profile(shown)[changed]).max() <= 1
        page.check("#save-profile")

    # after an extension the old pixels have the file's very values, and the new ones are converted
    photo.save(tmp_path / "wide.png", icc_profile=profile)
    page.open_picture(tmp_path / "wide.png", 180, 120)
    page.unfold("extend")
    page.write("#extend-left", 21)
    page.write("#extend-top", 9)
    page.click("#extend-apply")
    page.says("#facts", "201 × 129 px")
    fill(page, first=False)
    page.click("#keep")
    page.says("#facts", "hole none")
    page.until("document.querySelector('#autosave-text').dataset.state === 'saved'")
    page.again()
    page.says("#facts", "201 × 129 px")
    page.unfold("saving")
    page.write("#save-format", "original")
    page.check("#save-profile", False)
    shown = page.saved()
    page.check("#save-profile")
    own = Image.open(io.BytesIO(page.given("#save")))
    kept = read_picture(tmp_path / "wide.png")
    pixels = np.asarray(own)
    assert own.info["icc_profile"] == profile and np.array_equal(pixels[9:, 21:], kept.stored)
    off = np.abs(pixels.astype(int) - kept.in_its_profile(shown))
    assert off[:9].max() <= 1 and off[9:, :21].max() <= 1


# -- several pictures --------------------------------------------------------------------------------------------------


def test_several_pictures_are_filled_with_one_mask_each(page):
    mask = np.zeros((120, 180), np.uint8)
    mask[40:70, 60:100] = 255
    photo = photograph(180, 120)
    files = {f"{name}.png": png(photo) for name in "abc"}
    files |= {f"{name}-mask.png": png(Image.fromarray(mask)) for name in "ab"}
    files["c_mask.png"] = png(Image.fromarray(mask[:50]))
    page.drop(files)
    page.says(".notice", "6 files were dropped", 60)
    page.click(".notice button")
    page.says("#batch", "3 pictures, 3 of them with a mask.", 60)
    assert not page.poor_controls()
    page.read(
        """{
          const told = document.querySelector('#batch [role=status]');
          globalThis.told = [];
          new MutationObserver(() => globalThis.told.push(told.textContent)).observe(told, { childList: true });
        }"""
    )
    page.click("#batch-go")
    page.until("document.querySelector('#prompt').open")
    page.click("#prompt-yes")
    page.says("#batch", "2 of 3 filled, 1 failed.")
    assert page.read("told") == [
        "Loading the model…",
        "0 of 3 filled.",
        "1 of 3 filled.",
        "2 of 3 filled.",
        "2 of 3 filled, 1 failed.",
    ]
    page.says("#batch-list li:nth-child(3)", "the mask is 180 × 50, the picture 180 × 120 pixels")
    name, content = page.file("#batch-list li:first-child button")
    assert name == "a-filled.png"
    changed = (np.asarray(Image.open(io.BytesIO(content))) != np.asarray(photo)).any(axis=-1)
    assert changed[mask == 255].mean() > 0.9 and not changed[:25].any()
    page.click("#batch-go")
    page.click("#batch-close")  # which stops the work first, and closes nothing
    page.until("!document.querySelector('#batch-go').disabled")
    assert page.read("document.querySelector('#batch-close').textContent") == "Close"
    page.click("#batch-close")
    page.until("!document.querySelector('#batch')")
