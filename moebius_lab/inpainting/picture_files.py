"""Picture files in and out. Everything that is given as a picture or a mask goes through `read_picture` or `read_mask`.

How a file is read, here and on the page (`web/interface/picture_files.js`), pixel for pixel:

- **Metadata never costs the picture.** It is read apart from the pixels; what is broken is ignored.
- **Orientation** is what EXIF says in a JPEG, PNG or WebP: the first entry 0x0112 of the first directory that holds one SHORT
  from 1 to 8. Blocks of one file are joined, repeated "Exif" headers skipped. XMP is ignored, as browsers ignore it. TIFF and
  AVIF have an orientation of their own, which their decoders apply.
- **Colours** become sRGB, relative colorimetric. Of several statements in a PNG the first counts: cICP, iCCP, sRGB, gAMA with
  cHRM. gAMA alone changes nothing where it is within 0.02 of 1/2.2. A grey picture may have a
  profile for RGB, and comes back in RGB; any other profile for other channels than the picture's is ignored.
  High dynamic range (PQ, HLG) is refused.
- **Depth**: of 16 bits the upper 8 are used. Floats are 0..1 or 0..255, whole numbers without a range of their own 0..255 or
  0..65535, by their largest value.
- **Transparency** is kept, and so are the colours under it. Animations give the picture that stands for them, or the first.
- **A mask** is the brightness of such a picture, not above its alpha; where its largest value is 1, 1 is white.

What comes back has the picture's own profile, transparency and EXIF block (with its orientation set to 1), as far as the format
can hold them. PNG, TIFF, BMP, PPM, TGA, JPEG 2000 and, unless a quality is asked for, WebP keep every pixel's value.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ..config import JPEG_QUALITY
from ..errors import explain_os_error
from ..files import TEXT, misfit, record, write_whole
from .colours import ProfileError, as_image, from_srgb, lab_to_srgb, profile_of_gamma, profile_of_png, to_srgb
from .imaging import ImageError, check_size

Source = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray
"""What is taken as a picture or a mask: a path, a file's content, a PIL image, or an array."""

LARGEST_FILE = 2**31  # bytes: a picture of the largest size in any format takes less
EXIF_HEADER = b"Exif\0\0"
KEYWORD = "moebius_lab"
"""Of the PNG's text (iTXt) that says what a picture was made with, as JSON."""
MADE = record(
    format={"const": 1},
    settings={"type": "object"},
    model=record(network=TEXT, weights=TEXT, precision=TEXT, backend=TEXT),
    code=TEXT,
)
"""Its form, here and on the page: `settings` are those of `loop.Settings` by name, `code` is the version of what computed."""
DARK = "it has 16 bits but no value above 255, where 65535 is white: all of it is black; save it with 8 bits"
EXIF_LIMIT = 65_000  # bytes that a JPEG takes

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what makes the picture upright."""


@dataclass(frozen=True)
class Picture:
    """A picture as it was given, upright, and as the model sees it."""

    rgb: np.ndarray  # uint8 (H, W, 3), sRGB: what the model sees
    stored: np.ndarray  # uint8 (H, W, 3), or (H, W) if it is greyscale; the colours are those of `profile`
    alpha: np.ndarray | None = None  # uint8 (H, W); None where everything is opaque
    profile: bytes = b""  # ICC; empty for sRGB
    exif: bytes = b""  # a TIFF structure with orientation 1; empty if there is none
    remarks: tuple[str, ...] = ()  # what was ignored or will not come back, for the reader's eyes
    made: dict | None = None  # what it was made with, of the form `MADE`, if it says so or is to say so

    def in_its_profile(self, rgb: np.ndarray) -> np.ndarray:
        """sRGB uint8 (h, w, 3) -> the same in the colours of `stored`, grey repeated three times."""
        return _three(from_srgb(rgb, self.profile, grey=self.stored.ndim == 2))

    @property
    def stored_rgb(self) -> np.ndarray:
        """`stored` as uint8 (H, W, 3), grey repeated three times."""
        return _three(self.stored)

    def filled(self, rgb: np.ndarray, stored_rgb: np.ndarray) -> Picture:
        """This picture with other pixels: uint8 (H, W, 3) in sRGB, and in its own colours as in `stored_rgb`."""
        if self.stored.ndim == 3:
            return replace(self, rgb=rgb, stored=stored_rgb)
        stored = np.ascontiguousarray(stored_rgb[:, :, 0])
        return replace(self, rgb=to_srgb(stored, self.profile), stored=stored)

    def image(self) -> Image.Image:
        """As a PIL image: mode L, RGB, LA or RGBA, with profile and EXIF in `info`, so that `save` writes them."""
        image = Image.fromarray(self.stored)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        if self.profile:
            image.info["icc_profile"] = self.profile
        if self.exif:
            image.info["exif"] = EXIF_HEADER + self.exif
        return image


def _three(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


# -- reading -----------------------------------------------------------------------------------------------------------


def read_picture(source: Source, what: str = "the picture") -> Picture:
    """Read a picture by the rules above.

    Args:
        source: a path, a file's content, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in RGB order.
        what: to call it by in messages, where it is no path.

    Raises:
        ImageError: none of these, no such file, not a picture, damaged, or above `MAX_MEGAPIXELS`.
    """
    if isinstance(source, (str, Path)):
        return _decode(_content(source), f"{source}:")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), f"{what}:")
    if isinstance(source, Image.Image):
        check_size(*source.size, what)
        info = dict(source.info)
        return _from_image(source, info, f"{what}:")
    if isinstance(source, np.ndarray):
        return _from_array(source, what)
    raise ImageError(f"{what} must be a path, a PIL image or an array (height, width, 3), not {type(source).__name__}")


def read_image(source: Source, what: str = "the picture") -> np.ndarray:
    """Read a picture as uint8 (H, W, 3), sRGB; transparency is dropped, the colours under it stay. See `read_picture`."""
    return read_picture(source, what).rgb


def read_mask(source: Source, what: str = "the mask") -> np.ndarray:
    """Read a mask as uint8 (H, W): white or True is the hole, transparency hides its white. See `read_picture`."""
    picture = read_picture(source, what)
    is_grey = picture.stored.ndim == 2 and not picture.profile
    mask = picture.stored if is_grey else np.asarray(Image.fromarray(picture.rgb).convert("L"))
    if picture.alpha is not None:
        mask = np.minimum(mask, picture.alpha)
    return mask * np.uint8(255) if mask.max(initial=0) == 1 else mask


def _content(path: str | Path) -> bytes:
    try:
        path = Path(path)
        os.stat(path)
        if path.is_dir():
            raise ImageError(f"{path}: this is a folder; give the file of a picture")
        if not path.is_file():
            raise ImageError(f"{path}: this is not a file; give the path of a picture")
        if path.stat().st_size > LARGEST_FILE:
            raise ImageError(f"{path}: too large; use a picture file of at most {LARGEST_FILE / 2**30:.0f} GB")
        return path.read_bytes()
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path}: there is no such file; give the path of a picture") from None
    except OSError as error:
        raise ImageError(explain_os_error(error)) from None
    except ValueError as error:  # a path with a null character
        raise ImageError(f"{str(path)!r} is not a path ({error}); give the path of a picture") from None


def _decode(content: bytes, name: str) -> Picture:
    if not content:
        raise ImageError(f"{name} this is an empty file; give another one")
    magic = content[:4]
    try:
        content, info = _without_metadata(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes within our limit, and about metadata that we do not use
            with Image.open(io.BytesIO(content)) as image:
                check_size(*image.size, name.rstrip(":"))
                image.info.pop("xmp", None)  # a TIFF turns itself, by XMP where it has no tag
                return _from_image(image, image.info | info, name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if magic.startswith(MAGIC):
            raise _damaged(name, ValueError("its header ends too early")) from error
        raise ImageError(f"{name} this is not a picture that Pillow can read; use PNG, JPEG or WebP") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} too large ({error}); use a smaller picture") from None
    except MemoryError:
        raise ImageError(f"{name} there is not enough memory to read it; use a smaller picture") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsing meets
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} the file is damaged or cut short ({error}); save it again")


def _from_image(image: Image.Image, info: dict, name: str) -> Picture:
    """A PIL image, perhaps not yet decoded, with what is known about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            pixels, alpha = _channels(image, name)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name} there is not enough memory to read it; use a smaller picture") from None
    except Exception as error:
        raise _damaged(name, error) from None
    deep = info.get("deep") or 16 in np.atleast_1d(getattr(image, "tag_v2", {}).get(258, 8))
    if deep and not pixels.any():
        raise ImageError(f"{name} {DARK}")
    exif = info.get("exif") or b""
    exif = b"" if image.format == "TIFF" or not isinstance(exif, bytes) else exif
    orientation, exif = _upright(exif)
    turn = TURNS.get(orientation)
    if turn is not None:
        pixels = _turned(pixels, turn)
        alpha = None if alpha is None else _turned(alpha, turn)
    picture = _picture(pixels, alpha, _profile_of(info, pixels.ndim == 2, name), exif)
    return replace(picture, made=_made(info.get("png", {}).get(b"iTXt", b"")))


def _turned(pixels: np.ndarray, turn: Image.Transpose) -> np.ndarray:
    return np.asarray(as_image(pixels).transpose(turn))


def _profile_of(info: dict, grey: bool, name: str) -> bytes:
    """The ICC profile that a picture states, in whatever way; empty for sRGB."""
    if "png" in info:
        try:
            return profile_of_png(info["png"], grey)
        except ImageError as error:
            raise ImageError(f"{name} {error}") from None
    if info.get("icc_profile"):
        return info["icc_profile"]
    return b"" if "srgb" in info else profile_of_gamma(info.get("gamma", 0.0), info.get("chromaticity"), grey)


def _picture(pixels: np.ndarray, alpha: np.ndarray | None, profile: bytes, exif: bytes) -> Picture:
    """A picture of decoded pixels: uint8 (H, W), (H, W, 3), or CMYK (H, W, 4)."""
    remarks = []
    if pixels.ndim == 2 and profile[16:20] == b"RGB ":
        pixels = _three(pixels)
    is_cmyk = pixels.ndim == 3 and pixels.shape[2] == 4
    space = b"CMYK" if is_cmyk else b"GRAY" if pixels.ndim == 2 else b"RGB "
    if profile and profile[16:20] != space:
        remarks.append("its colour profile is damaged or for other channels: its colours are read as sRGB")
        profile = b""
    try:
        rgb = to_srgb(pixels, profile)
    except ProfileError:
        remarks.append("its colour profile is damaged: its colours are read as sRGB")
        rgb, profile = to_srgb(pixels, b""), b""
    if is_cmyk:
        remarks.append("its colours are CMYK: the result is in sRGB")
        return Picture(rgb, rgb, alpha, b"", exif, tuple(remarks))
    try:
        from_srgb(rgb[:1, :1], profile, grey=pixels.ndim == 2)
    except ProfileError:
        remarks.append("its colour profile can only be read: the result is in sRGB")
        return Picture(rgb, rgb, alpha, b"", exif, tuple(remarks))
    stored = rgb if pixels.ndim == 3 and not profile else pixels
    return Picture(rgb, stored, alpha, profile, exif, tuple(remarks))


def _channels(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of a decoded image as uint8 (H, W), (H, W, 3) or CMYK (H, W, 4), and its alpha."""
    mode, key = image.mode, image.info.get("transparency")
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)
        alpha = None if key is None else np.where(values == key, 0, 255).astype(np.uint8)
        return _to_8_bits(values, name), alpha
    if mode in ("LA", "La"):
        grey, alpha = image.convert("LA").split()
        return np.asarray(grey), np.asarray(alpha)
    if mode == "LAB":
        return lab_to_srgb(image), None
    if mode == "CMYK":
        return np.asarray(image), None
    if (
        mode == "RGB" and isinstance(key, tuple) and max(key) > 255
    ):  # of 16 bits, as are the channels that Pillow has cut to 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if mode in ("1", "L", "RGB"):
        alpha = None if key is None else np.asarray(image.convert("RGBA").getchannel("A"))
        return np.asarray(image.convert("L") if mode == "1" else image), alpha
    if mode in ("RGBA", "RGBa", "PA") or key is not None:
        rgba = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[:, :, :3]), np.ascontiguousarray(rgba[:, :, 3])
    return np.asarray(image.convert("RGB")), None


def _from_array(array: np.ndarray, what: str) -> Picture:
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        advice = "give (height, width) or (height, width, 3)"
        raise ImageError(f"{what}: an array of shape {array.shape} is not a picture; {advice}")
    check_size(array.shape[1], array.shape[0], what)
    pixels = _to_8_bits(array, f"{what}:")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    alpha = np.ascontiguousarray(pixels[:, :, 3]) if pixels.ndim == 3 and pixels.shape[2] == 4 else None
    return _picture(np.ascontiguousarray(pixels[..., :3] if pixels.ndim == 3 else pixels), alpha, b"", b"")


def _to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers of any kind -> uint8 of the same shape.

    uint8 stays, False and True are 0 and 255, of uint16 the upper 8 bits are used. Other whole numbers are 0..255 or 0..65535,
    floats 0..1, 0..255 or 0..65535, by their largest value.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise ImageError(f"{name} numbers of type {values.dtype} are not a picture; give uint8, uint16, float or bool")
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name} it contains numbers that are not finite; replace them")
    extent = f"{name} its values go from {low:.4g} to {high:.4g}"
    if values.dtype.kind == "f":
        top = next((top for top in (1.0, 255.0, 65535.0) if high <= 1.1 * top), 0.0)
        if low < -0.1 * top or top == 0 or (top == 255 and high < 16):
            raise ImageError(f"{extent}; scale them to 0..1 or 0..255")
        scaled = np.clip(values, 0, top) * values.dtype.type(255 / top)
        return np.round(scaled).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(f"{extent}; scale them to 0..255")
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":
        if 0 < high < 256:
            raise ImageError(f"{name} {DARK}")
        return (values >> 8).astype(np.uint8)
    return (values if high <= 255 else values >> 8).astype(np.uint8)


# -- metadata ----------------------------------------------------------------------------------------------------------


def _without_metadata(content: bytes) -> tuple[bytes, dict]:
    """A file without what is no pixels, for a decoder that stumbles over less; and what we use of that, under Pillow's names."""
    if content.startswith(PNG):
        return _png(content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        blocks = [body for kind, body in _riff_chunks(content) if kind == b"EXIF"]
        return content, {"exif": blocks[0] if blocks else b""}
    return content, {}


PNG = b"\x89PNG\r\n\x1a\n"
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
MADE_START = KEYWORD.encode() + b"\0\0\0\0\0"  # not compressed, no language, keyword not translated
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _png(content: bytes) -> tuple[bytes, dict]:
    kept, found, at = [PNG], {}, len(PNG)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at : at + length + 12]
        is_sound = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind == b"IDAT" and not is_sound:
            raise ValueError("a block of its pixels is incomplete")
        if kind in PIXEL_CHUNKS and is_sound:
            kept.append(chunk)
        elif is_sound and (kind != b"iTXt" or chunk[8:].startswith(MADE_START)):
            found.setdefault(kind, chunk[8:-4])
        at += length + 12
    return b"".join(kept), {"exif": found.get(b"eXIf", b""), "png": found, "deep": content[24:25] == b"\x10"}


def _made(body: bytes) -> dict | None:
    """What a PNG's text says that it was made with; None where it says nothing of this form."""
    try:
        made = json.loads(body.removeprefix(MADE_START))
    except (ValueError, RecursionError):
        return None
    return None if misfit(made, MADE) else made


def _jpeg(content: bytes) -> tuple[bytes, dict]:
    """Segments before the picture's data: kept are those that a decoder needs, JFIF, Adobe's and the colour profile."""
    kept, exif, at = [content[:2]], b"", 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9:
            break
        segment = content[at : at + 2 + length]
        body = segment[4:]
        needed = not (0xE0 <= marker <= 0xEF or marker == 0xFE)
        needed |= marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        needed |= marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") or marker == 0xEE and body.startswith(b"Adobe")
        if needed:
            kept.append(segment)
        elif marker == 0xE1 and body.startswith(EXIF_HEADER):
            exif += body[len(EXIF_HEADER) :]
        at += 2 + length
    return b"".join([*kept, content[at:]]), {"exif": exif}


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        yield kind, content[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _upright(exif: bytes) -> tuple[int, bytes]:
    """Orientation of an EXIF block, 1 where it says none that counts; and the block, without headers, with orientation 1."""
    while exif.startswith(EXIF_HEADER):
        exif = exif[len(EXIF_HEADER) :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1, b""
    orientation, block = 1, bytearray(exif)
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count, value, _ = struct.unpack_from(order + "HHIHH", exif, at)
            if tag != 0x0112:
                continue
            if (kind, count) == (3, 1) and 1 <= value <= 8 and orientation == 1:
                orientation = value
            struct.pack_into(order + "HHIHH", block, at, tag, 3, 1, 1, 0)
    except struct.error:  # cut short: what was read counts
        pass
    return orientation, bytes(block) if _is_sound(bytes(block)) else b""


def _is_sound(exif: bytes) -> bool:
    """Whether an EXIF block can be written again by every format's writer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parsed = Image.Exif()
            parsed.load(EXIF_HEADER + exif)
            return len(parsed) > 0 and len(parsed.tobytes()) > 0
    except Exception:  # Pillow raises whatever its parsing meets
        return False


# -- writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A format that results are written in."""

    name: str  # Pillow's
    alpha: bool = False
    profile: bool = False
    exif: bool = False
    grey: bool = True  # whether one channel is stored as one, so that a profile for grey fits
    largest: int = 65_500  # px, of the longer side
    exact: dict | None = None  # Pillow's options that keep every value; None if there are none
    lossy: dict | None = None  # Pillow's options when a quality is given; None if there is no such thing

    def holds_profile(self, picture: Picture) -> bool:
        """Whether a picture's colour profile can be written; True if it has none."""
        return not picture.profile or self.profile and (self.grey or picture.stored.ndim == 3)


_JPEG = Format("JPEG", profile=True, exif=True, lossy={"subsampling": "4:4:4"})
_TIFF = Format("TIFF", alpha=True, profile=True, exif=True, exact={"compression": "tiff_adobe_deflate"})
FORMATS = {
    ".png": Format("PNG", alpha=True, profile=True, exif=True, exact={}),
    ".webp": Format(
        "WEBP",
        alpha=True,
        profile=True,
        exif=True,
        grey=False,
        largest=16_383,
        exact={"lossless": True, "exact": True},
        lossy={"method": 5},
    ),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".avif": Format("AVIF", alpha=True, profile=True, exif=True, grey=False, lossy={"subsampling": "4:4:4"}),
    ".jp2": Format("JPEG2000", alpha=True, exact={}),
    ".tga": Format("TGA", alpha=True, exact={}),
    ".bmp": Format("BMP", exact={}),
    ".ppm": Format("PPM", exact={}),
}
"""Ending of a file's name -> its format."""
PIXEL_TAGS = {
    *range(0x00FE, 0x010D), 0x0111, *range(0x0115, 0x0120), *range(0x0120, 0x0126), *range(0x013D, 0x0162),
    *range(0x0200, 0x0215), 0x8773,
}  # fmt: skip
"""Tags of TIFF that say how and where the pixels of a file are stored."""


@dataclass(frozen=True)
class Output:
    """A file that a picture can be written to, as far as that can be known before there is a picture. See `plan_output`."""

    path: Path
    format: Format
    quality: int | None  # 1..100; None keeps every value where the format can
    remarks: tuple[str, ...] = field(default=())  # what the format cannot hold

    def write(self, picture: Picture) -> None:
        """Write a picture, whole or not at all.

        Raises:
            ImageError: it cannot be written.
        """
        form = self.format
        if not form.holds_profile(picture):
            picture = replace(picture, stored=picture.rgb, profile=b"")
        options = {"icc_profile": picture.profile} if picture.profile else {}
        if form.exif and picture.exif and not (form is _JPEG and len(picture.exif) > EXIF_LIMIT):
            options["exif"] = _for_tiff(picture.exif) if form is _TIFF else EXIF_HEADER + picture.exif
        if form.exact is not None and self.quality is None:
            options |= form.exact
        else:
            options |= form.lossy | {"quality": self.quality or JPEG_QUALITY}
        if form.name == "PNG" and picture.made is not None:
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_itxt(KEYWORD, json.dumps(picture.made))
        encoded = io.BytesIO()
        try:
            picture.image().save(encoded, form.name, **options)
        except Exception as error:  # Pillow's plugins raise whatever they meet
            raise ImageError(f"{self.path}: cannot be written as {form.name} ({error}); use .png") from None
        write_file(self.path, encoded.getbuffer())


def _for_tiff(exif: bytes) -> Image.Exif:
    """An EXIF block for a TIFF, whose own directory it goes into: without what describes the other file's pixels."""
    block = Image.Exif()
    block.load(EXIF_HEADER + exif)
    for tag in set(block) & PIXEL_TAGS:
        del block[tag]
    return block


def plan_output(path: str | Path, picture: Picture, quality: int | None = None) -> Output:
    """Check, before the work, that a picture like this can be written to `path`.

    Args:
        path: its ending names the format.
        picture: of the same size, with the same transparency, profile and EXIF block.
        quality: 1..100 for JPEG, AVIF and WebP; None is `JPEG_QUALITY`, and lossless in WebP.

    Raises:
        ImageError: the ending names no format, or one that cannot hold the picture; the folder is missing, full or not to be
            written to; or the name cannot be used.
    """
    path = Path(path)
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise ImageError(f"{path}: this ending is not a picture format that can be written; use one of {', '.join(FORMATS)}")
    if quality is not None and form.lossy is None:
        raise ImageError(f"{path}: {form.name} keeps every value and has no quality setting; leave it out")
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"the quality must be 1 to 100, not {quality}")
    height, width = picture.rgb.shape[:2]
    if max(height, width) > form.largest:
        raise ImageError(f"{path}: {form.name} allows at most {form.largest} px a side, not {width} x {height}; use .png")
    if picture.alpha is not None and not form.alpha:
        raise ImageError(f"{path}: {form.name} cannot hold the picture's transparency; use .png or .webp")
    check_place(path, picture.rgb.size + (0 if picture.alpha is None else picture.alpha.size))
    remarks = []
    if not form.holds_profile(picture):
        remarks.append(f"{path}: {form.name} cannot hold this colour profile: the result is in sRGB")
    if picture.exif and (not form.exif or form is _JPEG and len(picture.exif) > EXIF_LIMIT):
        remarks.append(f"{path}: {form.name} cannot hold this EXIF block: it is left out")
    return Output(path, form, quality, tuple(remarks))


def check_place(path: Path, size: int) -> None:
    """Raise ImageError unless a file of `size` bytes can be written to `path`; what is there stays."""
    try:
        if path.is_dir():
            raise ImageError(f"{path}: this is a folder; add a file name")
        if not path.parent.is_dir():
            raise ImageError(f"{path.parent}: there is no such folder; make it first")
        if is_there(path) and not os.access(path, os.W_OK):
            raise ImageError(f"{path}: this file is write-protected; choose another name")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        free = shutil.disk_usage(path.parent).free
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise _not_writable(path, error) from None
    if free < size:
        needed = f"up to {size / 1e6:.0f} MB are needed but only {free / 1e6:.0f} MB are free"
        raise ImageError(f"{path}: {needed}; free some space")


def is_there(path: Path) -> bool:
    """Whether there is such a file; OSError or ValueError where its name cannot be one."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file, or leave what is there as it is.

    Raises:
        ImageError: it cannot be written.
    """
    try:
        write_whole(path, content)
    except (OSError, ValueError) as error:
        raise _not_writable(path, error) from None


def _not_writable(path: Path, error: Exception) -> ImageError:
    why = (
        explain_os_error(OSError(error.errno, error.strerror))
        if isinstance(error, OSError)
        else f"{error}; choose another name"
    )
    return ImageError(f"{path}: cannot be written: {why}")
