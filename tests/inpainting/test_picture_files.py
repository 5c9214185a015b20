"""Pictures read from files, PIL images and arrays: what comes out, that the page reads the same, and what is written."""

import base64
import io
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import cases
import numpy as np
import pytest
from cases import (
    ADOBE_RGB,
    DISPLAY_P3,
    GREY,
    GREY_LINEAR,
    HEIGHT,
    HOLE,
    RGB,
    RGBA,
    SIX,
    WIDTH,
    entry,
    exif,
    iccp,
    jpeg,
    png,
    saved,
)
from PIL import Image, ImageCms
from scipy import ndimage

from moebius_lab.inpainting.imaging import ImageError
from moebius_lab.inpainting.picture_files import FORMATS, plan_output, read_image, read_mask, read_picture, write_file
from moebius_lab.notebook.inpaint_panel import Inpaint
from moebius_lab.notebook.mask_painter import MaskPainter, as_mask
from moebius_lab.notebook.workbench import prepare
from moebius_lab.page.bundle import WEB
from moebius_lab.page.serve import Server

READ = """async ([name, base64, isMask]) => {
  const { readMask, readPicture } = await import('./picture_files.js');
  const file = new File([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], name);
  try {
    const { width, height, data } = await (isMask ? readMask : readPicture)(file, 100);
    let text = '';
    for (const value of data) text += String.fromCharCode(value);
    return { width, height, data: btoa(text) };
  } catch (error) {
    if (error.constructor.name !== 'FileError') throw error;
    return { said: error.message };
  }
}"""

IN_BOTH = cases.ORIENTATION | cases.BROKEN_METADATA | cases.COLOURS | cases.PIXELS


@pytest.fixture(scope="module")
def page(chromium):
    """The page's own module, and nothing else of it."""
    context = chromium.new_context()
    with Server(WEB) as server:
        page = context.new_page()
        page.goto(server.url + "interface/picture_files.js")
        yield page
    context.close()


def read_by_page(page, content: bytes, is_mask: bool = False) -> np.ndarray | str:
    """Pixels, or what the page says about the file."""
    answer = page.evaluate(READ, ["picture", base64.b64encode(content).decode(), is_mask])
    if "said" in answer:
        return answer["said"]
    channels = () if is_mask else (4,)
    return np.frombuffer(base64.b64decode(answer["data"]), np.uint8).reshape(answer["height"], answer["width"], *channels)


def as_rgba(picture) -> np.ndarray:
    opaque = np.full(picture.rgb.shape[:2], 255, np.uint8)
    return np.dstack([picture.rgb, opaque if picture.alpha is None else picture.alpha])


# -- the library and the page ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_BOTH)
def test_page_and_library_read_the_same(page, name):
    by_library, by_page = read_picture(IN_BOTH[name]), read_by_page(page, IN_BOTH[name])
    assert isinstance(by_page, np.ndarray), by_page
    expected = as_rgba(by_library)
    assert by_page.shape == expected.shape
    was_converted = by_library.profile or by_library.remarks
    assert np.abs(by_page.astype(int) - expected).max() <= (1 if was_converted else 0)


@pytest.mark.parametrize("name", cases.DAMAGED)
def test_page_and_library_refuse_the_same(page, name):
    with pytest.raises(ImageError) as error:
        read_picture(cases.DAMAGED[name])
    said = read_by_page(page, cases.DAMAGED[name])
    assert isinstance(said, str)
    kinds = ("empty file", "not a picture", "damaged or cut short", "high dynamic range", "has 16 bits")
    [kind] = [kind for kind in kinds if kind in str(error.value)]
    assert kind in said and "\n" not in str(error.value)


@pytest.mark.parametrize("name", cases.MASKS)
def test_page_and_library_read_the_same_mask(page, name):
    by_library, by_page = read_mask(cases.MASKS[name]), read_by_page(page, cases.MASKS[name], is_mask=True)
    limit = 1 if "profile" in name else 0
    assert by_page.shape == by_library.shape and np.abs(by_page.astype(int) - by_library).max() <= limit


# -- what the rules say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.TURNED)
def test_every_orientation_is_made_upright(name):
    n = int(name.split()[1])
    unturned = read_image(jpeg() if "JPEG" in name else png(RGB))
    upright = [None, unturned, unturned[:, ::-1], unturned[::-1, ::-1], unturned[::-1]]
    upright += [np.swapaxes(image, 0, 1) for image in (unturned, unturned[::-1], unturned[::-1, ::-1], unturned[:, ::-1])]
    assert np.array_equal(read_image(cases.TURNED[name]), upright[n])


def test_orientation_is_what_exif_says_once_and_nothing_else():
    kept = {name for name in cases.ORIENTATION if read_image(cases.ORIENTATION[name]).shape[:2] == (HEIGHT, WIDTH)}
    turned_by_180_or_not = {f"orientation {n} in {form}" for n in range(1, 5) for form in ("JPEG", "PNG", "WebP")}
    ignored = {name for name in cases.ORIENTATION if name.startswith(("an orientation", "orientation by XMP", "two values"))}
    assert kept == turned_by_180_or_not | ignored | {"EXIF as a text of ImageMagick's", "two entries, the first nonsense"}


@pytest.mark.parametrize("name", cases.BROKEN_METADATA)
def test_broken_metadata_never_costs_the_picture(name):
    picture = read_picture(cases.BROKEN_METADATA[name])
    is_turned = name in ("EXIF with a value past its end", "EXIF with 65535 entries")
    pixels = np.rot90(picture.rgb) if is_turned else picture.rgb
    sound = (RGB, RGB // 64 * 64, read_image(jpeg()))
    assert any(np.array_equal(pixels, expected) for expected in sound) and picture.alpha is None and not picture.profile


def test_a_profile_converts_colours_as_littlecms_does():
    expected = ImageCms.profileToProfile(
        Image.fromarray(RGB), ImageCms.ImageCmsProfile(io.BytesIO(DISPLAY_P3)), ImageCms.createProfile("sRGB"), 1
    )
    picture = read_picture(png(RGB, iccp(DISPLAY_P3)))
    assert (
        np.abs(picture.rgb.astype(int) - np.asarray(expected)).max() <= 1
        and np.abs(picture.rgb.astype(int) - RGB).max() > 50
    )
    assert np.array_equal(picture.stored, RGB) and picture.profile == DISPLAY_P3


def test_a_linear_picture_becomes_lighter():
    linear = np.arange(256) / 255
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 3, axis=0)
    for picture in (png(ramp, cases.gama(1.0)), png(np.dstack([ramp] * 3), cases.gama(1.0)), png(ramp, iccp(GREY_LINEAR))):
        assert np.abs(read_image(picture)[0, :, 0] - expected).max() <= 1


@pytest.mark.parametrize(
    "values, expected",
    [
        (RGB, RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        ((RGB / 255).astype(np.float16), RGB),
        (RGB.astype(np.float32), RGB),
        (RGB / 255 * 1.05, np.round(np.clip(RGB / 255 * 1.05, 0, 1) * 255)),
        (RGB.astype(np.float64) * 257, RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (cases.DEEP.astype(np.uint16), cases.DEEP >> 8),
        (RGB.astype(np.int64), RGB),
        (cases.DEEP, cases.DEEP >> 8),
        (GREY > 99, np.where(GREY > 99, 255, 0)),
        (GREY[:, :, None], GREY),
        (RGBA, RGB),
        (RGB[:, ::-1].copy()[:, ::-1], RGB),
    ],
)
def test_arrays_are_scaled_by_their_range(values, expected):
    read = read_image(values)
    assert read.dtype == np.uint8 and np.array_equal(read, expected if expected.ndim == 3 else np.dstack([expected] * 3))
    assert np.array_equal(MaskPainter(values).image, read)


@pytest.mark.parametrize(
    "values, words",
    [
        (RGB - 300.0, "scale them to 0..1"),
        (RGB / 255 * 4, "scale them to 0..1"),
        (RGB * 1e6, "scale them to 0..1"),
        (np.where(RGB > 9, RGB, np.nan), "not finite"),
        (RGB.astype(int) - 1, "scale them to 0..255"),
        (RGB.astype(int) * 1000, "scale them to 0..255"),
        (RGB.astype(np.uint16), "65535 is white"),
        (RGB.astype(complex), "give uint8"),
        (RGB.astype(str), "give uint8"),
        (np.transpose(RGB, (2, 0, 1)), "is not a picture"),
        (RGB[None], "is not a picture"),
        (RGB[:0], "is not a picture"),
        (np.broadcast_to(np.uint8(1), (20_000, 20_000)), "megapixels"),
        (None, "a path, a PIL image or an array"),
        ([[1, 2], [3, 4]], "a path, a PIL image or an array"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused_in_one_line(values, words):
    with pytest.raises(ImageError, match=words) as error:
        read_picture(values)
    assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match=words):
        MaskPainter(values)


def test_float_and_deep_files_are_scaled_by_their_range(tmp_path):
    unit = GREY.astype(np.float32) / 255
    for values in (unit, unit * 255, GREY.astype(np.uint16) * 257, GREY.astype(np.int32)):
        Image.fromarray(values).save(tmp_path / "x.tif")
        assert np.array_equal(read_image(tmp_path / "x.tif")[:, :, 0], GREY), values.dtype
    Image.fromarray(HOLE.astype(np.float32) / 255).save(tmp_path / "mask.tif")
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), HOLE)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_every_colour_mode_is_read_as_pillow_converts_it(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    image.save(tmp_path / "x.tif")
    assert np.array_equal(read_image(tmp_path / "x.tif"), np.asarray(image.convert("RGB")))


def test_lab_is_read_as_srgb(tmp_path):
    lab = ImageCms.profileToProfile(
        Image.fromarray(RGB), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab.save(tmp_path / "x.tif")
    assert np.abs(read_image(tmp_path / "x.tif").astype(int) - RGB).mean() < 1.5  # Lab in 8 bits


@pytest.mark.parametrize("value", [False, True])
def test_what_is_a_mask_of_0_and_1(value):
    labels = HOLE > 0
    for mask in (labels, labels.astype(np.uint8), labels.astype(int), labels.astype(float), HOLE, HOLE[:, :, None]):
        assert np.array_equal(read_mask(mask), HOLE), mask.dtype
    assert not read_mask(np.zeros((4, 4), np.uint8)).any()


@pytest.mark.parametrize("name", IN_BOTH | cases.MASKS)
def test_paths_contents_and_pil_images_go_through_the_same_door(tmp_path, name):
    content = (IN_BOTH | cases.MASKS)[name]
    path = tmp_path / "picture"
    path.write_bytes(content)
    expected = read_picture(path)
    forms = [content, bytearray(content), memoryview(content)]
    if name not in cases.BROKEN_METADATA and not name.startswith(
        ("cICP", "XMP against", "EXIF after")
    ):  # Pillow reads those by rules of its own
        image = Image.open(path)
        loaded = Image.open(path)
        loaded.load()
        forms += [image, loaded, loaded.copy()]
    for form in forms:
        given = read_picture(form)
        assert np.array_equal(as_rgba(given), as_rgba(expected)), type(form)
        assert np.array_equal(as_mask(form, expected.rgb.shape[:2]), read_mask(path))
    if name in cases.MASKS or name.startswith("orientation 6"):
        for form in forms:
            painter = MaskPainter(form, form)
            assert np.array_equal(painter.image, expected.rgb) and np.array_equal(painter.mask, read_mask(path))


def test_notebooks_take_pictures_as_widgets_do(tmp_path):
    image, mask = png(RGB, cases.chunk(b"eXIf", SIX)), png(HOLE, cases.chunk(b"eXIf", SIX))
    (tmp_path / "image.png").write_bytes(image)
    (tmp_path / "mask.png").write_bytes(mask)
    for picture, hole in (
        (str(tmp_path / "image.png"), str(tmp_path / "mask.png")),
        (tmp_path / "image.png", np.rot90(HOLE, -1) > 0),
        (Image.open(io.BytesIO(image)), Image.open(io.BytesIO(mask))),
        (np.rot90(RGB, -1) / 255, np.rot90(HOLE, -1)),
    ):
        bench = prepare("small", "deterministic", picture, hole, str(tmp_path / "run"))
        assert np.array_equal(bench.image, np.rot90(RGB, -1)) and np.array_equal(bench.mask, np.rot90(HOLE, -1))
    with pytest.raises(ImageError, match="make them the same size"):
        prepare("small", "deterministic", RGB, HOLE[:5], str(tmp_path / "run"))


def test_files_that_cannot_be_read_are_named_with_what_to_do(tmp_path):
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    for path, words in (
        (tmp_path / "none.png", "no such file"),
        (tmp_path / "text.png", "use PNG"),
        (tmp_path, "folder"),
        (tmp_path / "text.png" / "x.png", "no such file"),
        (tmp_path / ("a" * 300 + ".png"), "too long"),
        ("a\0b.png", "not a path"),
    ):
        with pytest.raises(ImageError, match=words) as error:
            read_image(path)
        assert "\n" not in str(error.value) and (str(tmp_path) in str(error.value) or "a" in str(error.value))


@pytest.mark.filterwarnings("error")
def test_large_pictures_are_read_without_a_warning_and_huge_ones_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (9800, 10_000)).save(tmp_path / "large.png")
    assert read_picture(tmp_path / "large.png").stored.shape == (10_000, 9800)
    for side in (10_001, 20_000):
        Image.new("1", (side, side)).save(tmp_path / "huge.png")
        with pytest.raises(ImageError, match="too large"):
            read_picture(tmp_path / "huge.png")


# -- what comes back ---------------------------------------------------------------------------------------------------


def filled(picture, value=(130, 130, 130)):
    """A picture whose hole has one colour of sRGB, as `inpaint_picture` makes it."""
    rgb, stored = picture.rgb.copy(), picture.stored_rgb.copy()
    colour = np.full((1, 1, 3), value, np.uint8)
    rgb[HOLE > 0], stored[HOLE > 0] = colour[0, 0], picture.in_its_profile(colour)[0, 0]
    return picture.filled(rgb, stored)


ENDINGS = {ending for ending, form in FORMATS.items() if form.exact is not None}
SOURCES = {
    "RGB": png(RGB),
    "grey": png(GREY),
    "transparent": png(RGBA),
    "grey and transparent": png(RGBA[:, :, 2:]),
    "in Display P3": png(RGB, iccp(DISPLAY_P3)),
    "in Adobe RGB, transparent": png(RGBA, iccp(ADOBE_RGB)),
    "grey, linear": png(GREY, iccp(GREY_LINEAR)),
    "with gamma": png(RGB, cases.gama(1.0)),
    "turned, with EXIF": png(RGB, cases.chunk(b"eXIf", exif(entry(3), entry(b"\0\0\0\x01", tag=0x0100, kind=4)))),
}


@pytest.mark.parametrize("ending", sorted(ENDINGS))
@pytest.mark.parametrize("source", SOURCES)
def test_exact_formats_bring_every_pixel_back(tmp_path, ending, source):
    picture = read_picture(SOURCES[source])
    path = tmp_path / f"out{ending}"
    if picture.alpha is not None and not FORMATS[ending].alpha:
        with pytest.raises(ImageError, match="cannot hold the picture's transparency"):
            plan_output(path, picture)
        return
    output = plan_output(path, picture)
    output.write(filled(picture))
    back = read_picture(path)
    outside = HOLE == 0
    if not FORMATS[ending].holds_profile(picture):
        assert "sRGB" in output.remarks[0] and not back.profile
        assert np.array_equal(back.rgb[outside], picture.rgb[outside])
    else:
        assert back.profile == picture.profile
        assert np.array_equal(back.stored_rgb[outside], picture.stored_rgb[outside])
    assert (back.alpha is None) == (picture.alpha is None) and np.array_equal(
        as_rgba(back)[..., 3], as_rgba(picture)[..., 3]
    )
    assert np.abs(back.rgb[HOLE > 0].astype(int) - 130).max() <= 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("ending", [ending for ending, form in FORMATS.items() if form.exif])
def test_exif_comes_back_with_its_orientation_applied_once(tmp_path, ending):
    block = exif(entry(6), (0x0132, 2, 4, b"now\0"), order="<")
    picture = read_picture(png(RGB, cases.chunk(b"eXIf", block)))
    path = tmp_path / f"out{ending}"
    plan_output(path, picture).write(picture)
    written = Image.open(path).getexif()
    assert written.get(0x0112, 1) == 1 and written[0x0132] == "now"
    assert np.abs(read_image(path).astype(int) - np.rot90(RGB, -1)).mean() < 6


def test_exif_that_is_broken_or_too_long_is_left_out(tmp_path):
    picture = read_picture(cases.BROKEN_METADATA["EXIF with a value past its end"])
    plan_output(tmp_path / "out.jpg", picture).write(picture)
    assert "exif" not in Image.open(tmp_path / "out.jpg").info
    long = exif(entry(1), (0x9286, 7, 70_000, b"\0\0\0\x22")) + bytes(70_000)
    picture = read_picture(png(RGB, cases.chunk(b"eXIf", long)))
    output = plan_output(tmp_path / "out.jpg", picture)
    output.write(picture)
    assert "left out" in output.remarks[0] and "exif" not in Image.open(tmp_path / "out.jpg").info
    plan_output(tmp_path / "out.png", picture).write(picture)
    assert len(Image.open(tmp_path / "out.png").info["exif"]) > 70_000


def test_jpeg_is_of_high_quality_unless_asked_otherwise(tmp_path):
    smooth = np.asarray(Image.fromarray(RGB).resize((144, 96), Image.Resampling.BICUBIC))
    picture = read_picture(smooth)
    sizes = {}
    for quality in (None, 50, 100):
        plan_output(tmp_path / "out.jpg", picture, quality).write(picture)
        sizes[quality] = (tmp_path / "out.jpg").stat().st_size
        image = Image.open(tmp_path / "out.jpg")
        assert {(h, v) for _, h, v, _ in image.layer} == {(1, 1)}  # 4:4:4
        if quality is None:
            assert image.quantization[0] == Image.open(io.BytesIO(saved("JPEG", smooth, quality=95))).quantization[0]
    assert sizes[50] < sizes[None] < sizes[100]
    once = read_image(tmp_path / "out.jpg")
    assert np.abs(once.astype(int) - smooth).max() <= 8


def test_webp_loses_nothing_unless_asked(tmp_path):
    picture = read_picture(RGBA)
    plan_output(tmp_path / "out.webp", picture).write(picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.webp")), RGBA)
    plan_output(tmp_path / "out.webp", picture, 60).write(picture)
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "out.webp"))[..., :3], RGB)


@pytest.mark.parametrize("ending", [".psd", ".xbm", ".hdf", ".ico", ".icns", ".gif", ".pdf", ".eps", ".xyz", "", ".txt"])
def test_formats_that_cannot_hold_a_picture_are_refused_before_work(tmp_path, ending):
    with pytest.raises(ImageError, match=r"use one of \.png, \.webp"):
        plan_output(tmp_path / f"out{ending}", read_picture(RGB))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch):
    picture, wide = read_picture(RGB), read_picture(np.zeros((1, 16_384), np.uint8))
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path, given, quality, words in (
        (tmp_path / "none" / "out.png", picture, None, "no such folder"),
        (tmp_path / "file" / "out.png", picture, None, "no such folder"),
        (tmp_path / "folder.png", picture, None, "this is a folder"),
        (tmp_path / ("ä" * 130 + ".png"), picture, None, "too long"),
        ("a\0.png", picture, None, "null"),
        (tmp_path / "out.webp", wide, None, "at most 16383 px"),
        (tmp_path / "out.png", picture, 90, "has no quality"),
        (tmp_path / "out.jpg", picture, 0, "1 to 100"),
        (tmp_path / "out.jpg", picture, 101, "1 to 100"),
        (tmp_path / "out.jpeg", read_picture(RGBA), None, "cannot hold the picture's transparency"),
    ):
        with pytest.raises(ImageError, match=words) as error:
            plan_output(path, given, quality)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(ImageError, match="free some space"):
        plan_output(tmp_path / "out.png", picture)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_folder_that_is_read_only_is_refused_before_work(tmp_path):
    if os.geteuid() == 0:
        places = [Path("/proc/out.png"), Path("/sys/out.png")]  # root may write to any folder that is one
    else:
        tmp_path.chmod(0o500)
        places = [tmp_path / "out.png"]
    for place in places:
        with pytest.raises(ImageError, match="cannot be written"):
            plan_output(place, read_picture(RGB))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    limit = 100
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # the system's own error, as a full disk gives
    try:
        with pytest.raises(ImageError, match=f"{re.escape(str(path))}.*the disk is full"):
            write_file(path, bytes(limit + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_a_written_file_keeps_its_link_and_its_permissions(tmp_path):
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_file(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o640
    write_file(tmp_path / "other.png", b"new")
    (tmp_path / "plain").touch()
    assert (tmp_path / "other.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


# -- through the model -------------------------------------------------------------------------------------------------


def test_the_panel_gives_a_picture_back_in_its_own_profile(tmp_path):
    backend = prepare("small", "deterministic", RGB, HOLE, str(tmp_path)).torch_backend
    hole = np.zeros((140, 300), np.uint8)
    hole[50:80, 20:60] = hole[60:90, 230:260] = 255
    pixels = np.random.default_rng(0).integers(0, 256, (140, 300, 4), dtype=np.uint8)
    painter = MaskPainter(png(pixels, iccp(DISPLAY_P3)), hole)
    panel = Inpaint(painter, {"PyTorch": backend})
    panel.steps.value = 2
    result = panel.run(timeout=120)
    assert result.mode == "RGBA" and result.info["icc_profile"] == DISPLAY_P3
    far = ndimage.distance_transform_edt(hole == 0) > 20
    assert np.array_equal(np.asarray(result)[far], pixels[far]) and np.array_equal(
        np.asarray(result)[..., 3], pixels[..., 3]
    )
    plain = Inpaint(MaskPainter(painter.image, hole), {"PyTorch": backend})
    plain.steps.value = 2
    in_srgb = np.asarray(plain.run(timeout=120)).astype(int)
    core = ndimage.distance_transform_edt(hole > 0) > 12
    made = read_picture(result).rgb.astype(int)
    assert np.abs(made - in_srgb)[core].max() <= 3 and np.abs(np.asarray(result)[..., :3] - in_srgb)[core].max() > 3
