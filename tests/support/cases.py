"""Picture files as people have them, made here: every kind of orientation, colours, depth, transparency and damage, by name."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(16)
HEIGHT, WIDTH = 24, 36
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3))  # 16 bits
RGBA = np.dstack([RGB, RGB[::-1, :, 1]])
HOLE = np.zeros((HEIGHT, WIDTH), np.uint8)
HOLE[6:14, 10:24] = 255

# -- PNG, by its chunks ------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    pixels: np.ndarray, *before: bytes, kind: int | None = None, bits: int = 8, after: bytes = chunk(b"IEND", b"")
) -> bytes:
    """A PNG of (H, W) or (H, W, 2 to 4); `before` the pixels come other chunks; `kind` 3 is a palette."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if kind is None else kind
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", data) + after


def spoiled(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(points) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *[round(value * 100_000) for point in points for value in point]))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


SRGB_CHUNK = chunk(b"sRGB", b"\0")

# -- other formats -----------------------------------------------------------------------------------------------------


def saved(form: str, pixels: np.ndarray | Image.Image, **options) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, form, **options)
    return file.getvalue()


def jpeg(pixels: np.ndarray = RGB, *segments: bytes, **options) -> bytes:
    whole = saved("JPEG", pixels, quality=95, **options)
    return whole[:2] + b"".join(segments) + whole[2:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def webp(pixels: np.ndarray = RGB, **options) -> bytes:
    return saved("WEBP", pixels, lossless=True, exact=True, **options)


# -- EXIF --------------------------------------------------------------------------------------------------------------

HEADER = b"Exif\0\0"


def entry(value: int | bytes, tag: int = 0x0112, kind: int = 3, count: int = 1) -> tuple:
    return tag, kind, count, value


def exif(*entries: tuple, order: str = ">") -> bytes:
    """A TIFF structure with one directory; a value of bytes is taken as it is."""
    block = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "IH", 8, len(entries))
    for tag, kind, count, value in entries:
        value = value if isinstance(value, bytes) else struct.pack(order + "HH", value, 0)
        block += struct.pack(order + "HHI", tag, kind, count) + value
    return block + bytes(4)


def app1(block: bytes) -> bytes:
    return segment(0xE1, HEADER + block)


SIX = exif(entry(6))
RATIONAL = exif(entry(6), (0x011A, 5, 1, b"\xff\xff\xff\xff"), order="<")  # its value lies past the end
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

# -- colour profiles ---------------------------------------------------------------------------------------------------

D65 = (0.3127, 0.3290)
SRGB = (D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = (D65, (0.68, 0.32), (0.265, 0.69), (0.15, 0.06))


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def gamma_curve(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256))


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 2."""
    words = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {
        b"desc": words,
        b"cprt": b"text\0\0\0\0x\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642) + fixed(1) + fixed(0.8249),
    } | tags
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", 128 + len(table) + len(body), 0x02400000, kind, space, pcs, b"acsp")
    return head + fixed(0.9642) + fixed(1) + fixed(0.8249) + bytes(48) + table + body


def rgb_profile(columns, curve: bytes) -> bytes:
    """`columns`: XYZ of red, green and blue, as seen by D50."""
    tags = {c + b"XYZ": b"XYZ \0\0\0\0" + b"".join(map(fixed, column)) for c, column in zip((b"r", b"g", b"b"), columns)}
    return icc(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def table_profile(space: bytes, kind: bytes, to_lab) -> bytes:
    """A profile that is a table of Lab, two points a channel, and works one way only: as scanners and printers have them."""
    channels = {b"RGB ": 3, b"CMYK": 4}[space]
    corners = [[i >> (channels - 1 - c) & 1 for c in range(channels)] for i in range(2**channels)]
    colours = bytes(int(np.clip(round(value), 0, 255)) for corner in corners for value in to_lab(*corner))
    line = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([channels, 3, 2, 0]) + b"".join(map(fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    return icc(space, {b"A2B0": lut + line * channels + colours + line * 3}, kind, b"Lab ")


DISPLAY_P3 = rgb_profile(
    [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)], gamma_curve(2.2)
)
ADOBE_RGB = rgb_profile(
    [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)], gamma_curve(2.2)
)
GREY_LINEAR = icc(b"GRAY", {b"kTRC": gamma_curve(1.0)})
SCANNER = table_profile(
    b"RGB ", b"scnr", lambda r, g, b: (255 * (0.3 * r + 0.6 * g + 0.1 * b), 128 + 60 * (r - g), 128 + 60 * (g - b))
)
PRINTER = table_profile(
    b"CMYK", b"prtr",
    lambda c, m, y, k: (5 + 240 * (1 - 0.3 * c - 0.4 * m - 0.1 * y) * (1 - k), 128 + (60 * m - 40 * c) * (1 - k), 128 + (70 * y - 50 * c) * (1 - k)),
)  # fmt: skip

# -- every case --------------------------------------------------------------------------------------------------------

PALETTE = chunk(b"PLTE", RGB[0, :16].tobytes())
INDICES = GREY % 16
CMYK = Image.fromarray(RGB).convert("CMYK")
WHOLE = png(RGB)

TURNED = {f"orientation {n} in {form}": make(n) for n in range(1, 9) for form, make in {
    "JPEG": lambda n: jpeg(RGB, app1(exif(entry(n), order="<"))),
    "PNG": lambda n: png(RGB, chunk(b"eXIf", exif(entry(n)))),
    "WebP": lambda n: webp(exif=exif(entry(n))),
}.items()}  # fmt: skip
"""EXIF's eight orientations, in each format that has them."""

ORIENTATION = TURNED | {
    "AVIF turned by itself": saved("AVIF", RGB, quality=90, exif=SIX),
    "EXIF after the pixels of a PNG": png(RGB, after=chunk(b"eXIf", SIX) + chunk(b"IEND", b"")),
    "EXIF header twice": jpeg(RGB, app1(HEADER + SIX)),
    "EXIF header in a PNG": png(RGB, chunk(b"eXIf", HEADER + SIX)),
    "EXIF header in a WebP": webp(exif=HEADER + HEADER + SIX),
    "two blocks, the first counts": jpeg(RGB, app1(SIX), app1(exif(entry(3)))),
    "two blocks, the first empty": jpeg(RGB, app1(b""), app1(SIX)),
    "two entries, the first counts": jpeg(RGB, app1(exif(entry(6), entry(3)))),
    "two entries, the first nonsense": jpeg(RGB, app1(exif(entry(9), entry(3)))),
    "two values in one entry": jpeg(RGB, app1(exif(entry(struct.pack(">HH", 6, 3), count=2)))),
    "fill bytes between segments": jpeg(RGB, b"\xff\xff", app1(SIX)),
    "an orientation of 0": jpeg(RGB, app1(exif(entry(0)))),
    "an orientation of 9": jpeg(RGB, app1(exif(entry(9)))),
    "an orientation of 65535": webp(exif=exif(entry(65535))),
    "an orientation as text": png(RGB, chunk(b"eXIf", exif(entry(b"6\0\0\0", kind=2, count=2)))),
    "an orientation in 32 bits": jpeg(RGB, app1(exif(entry(struct.pack(">I", 6), kind=4)))),
    "orientation by XMP alone": jpeg(RGB, segment(0xE1, XMP)),
    "orientation by XMP alone in a WebP": webp(xmp=XMP.partition(b"\0")[2]),
    "XMP against EXIF": jpeg(RGB, segment(0xE1, XMP), app1(exif(entry(8)))),
    "EXIF as a text of ImageMagick's": png(RGB, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      26\n" + SIX.hex().encode()))),
}  # fmt: skip

BROKEN_METADATA = {
    "EXIF with a value past its end": jpeg(RGB, app1(RATIONAL)),
    "EXIF that is no TIFF": png(RGB, chunk(b"eXIf", b"nonsense")),
    "EXIF of one byte": jpeg(RGB, app1(b"M")),
    "EXIF cut in its only entry": jpeg(RGB, app1(SIX[:17])),
    "EXIF whose directory is elsewhere": jpeg(RGB, app1(b"MM\0*\xff\xff\xff\xf0")),
    "EXIF with 65535 entries": jpeg(RGB, app1(SIX[:8] + b"\xff\xff" + SIX[10:])),
    "EXIF with a wrong checksum": png(RGB, spoiled(chunk(b"eXIf", SIX))),
    "a text with a wrong checksum": png(RGB, spoiled(chunk(b"tEXt", b"a\0b"))),
    "a compressed text that is none": png(RGB, chunk(b"zTXt", b"a\0\0nonsense"), chunk(b"iTXt", b"a\0\1\0\0\0nonsense")),
    "a time and a size of no length": png(RGB, chunk(b"pHYs", b""), chunk(b"tIME", b"")),
    "a transparent colour with a wrong checksum": png(
        RGB // 64 * 64, spoiled(chunk(b"tRNS", struct.pack(">3H", 64, 64, 0)))
    ),
    "a profile that is none": png(RGB, iccp(b"nonsense")),
    "a profile that does not unpack": png(RGB, chunk(b"iCCP", b"x\0\0abc")),
    "a profile cut short": png(RGB, iccp(DISPLAY_P3[:300])),
    "a profile with a wrong checksum": png(RGB, spoiled(iccp(DISPLAY_P3))),
    "a gamma of 0": png(RGB, gama(0), chrm(P3)),
    "a gamma of 0.0001": png(RGB, gama(0.0001)),
    "a gamma of two bytes": png(RGB, chunk(b"gAMA", b"\0\0")),
    "chromaticities of 0": png(RGB, gama(1.0), chrm([(0, 0)] * 4)),
    "chromaticities on one point": png(RGB, gama(1.0), chrm([D65] + [(0.3, 0.3)] * 3)),
    "cICP with a matrix": png(RGB, chunk(b"cICP", b"\x0c\x0d\1\1")),
    "cICP of one byte": png(RGB, chunk(b"cICP", b"\x0c")),
    "a JFIF segment cut short": jpeg(RGB, segment(0xE0, b"JFIF\0")),
    "Photoshop's block, nonsense": jpeg(RGB, segment(0xED, b"Photoshop 3.0\0008BIM\x03\xed\0\0\0\0\0\x7fxx")),
    "a comment of no letters": jpeg(RGB, segment(0xFE, b"\xff\xfe\0")),
    "a multi-picture index, nonsense": jpeg(RGB, segment(0xE2, b"MPF\0nonsense")),
    "WebP with EXIF of nonsense": webp(exif=b"nonsense"),
    "an animation's header, nonsense": png(RGB, chunk(b"acTL", b"\0"), chunk(b"fcTL", b"")),
}

COLOURS = {
    "PNG in Display P3": png(RGB, iccp(DISPLAY_P3)),
    "PNG in Adobe RGB, transparent": png(RGBA, iccp(ADOBE_RGB)),
    "JPEG in Display P3": jpeg(icc_profile=DISPLAY_P3),
    "WebP in Display P3, transparent": webp(RGBA, icc_profile=DISPLAY_P3),
    "AVIF in Display P3": saved("AVIF", RGB, quality=90, icc_profile=DISPLAY_P3),
    "palette in Display P3": png(INDICES, iccp(DISPLAY_P3), PALETTE, kind=3),
    "16 bits in Display P3": png(DEEP, iccp(DISPLAY_P3), bits=16),
    "turned, in Display P3": jpeg(RGB, app1(SIX), icc_profile=DISPLAY_P3),
    "a scanner's table": png(RGB, iccp(SCANNER)),
    "CMYK": saved("JPEG", CMYK, quality=95),
    "CMYK in a printer's profile": saved("JPEG", CMYK, quality=95, icc_profile=PRINTER),
    "CMYK, turned": saved("JPEG", CMYK, quality=95, exif=HEADER + SIX),
    "CMYK with a profile for RGB": saved("JPEG", CMYK, quality=95, icc_profile=DISPLAY_P3),
    "RGB with a profile for CMYK": jpeg(icc_profile=PRINTER),
    "grey in a linear profile": png(GREY, iccp(GREY_LINEAR)),
    "grey JPEG in a linear profile": jpeg(GREY, icc_profile=GREY_LINEAR),
    "grey and transparent in a linear profile": png(RGBA[:, :, 2:], iccp(GREY_LINEAR)),
    "grey with a profile for RGB": png(GREY, iccp(DISPLAY_P3)),
    "grey JPEG with a profile for RGB": jpeg(GREY, icc_profile=ADOBE_RGB),
    "RGB with a profile for grey": png(RGB, iccp(GREY_LINEAR)),
    "WebP with a profile for grey": webp(icc_profile=GREY_LINEAR),
    "gamma 1 with chromaticities": png(RGB, gama(1.0), chrm(SRGB)),
    "gamma 1 alone": png(RGB, gama(1.0)),
    "gamma 1/2.2 alone": png(RGB, gama(0.45455)),
    "gamma 1/2.2 with chromaticities": png(RGB, gama(0.45455), chrm(SRGB)),
    "gamma 1/1.8 alone": png(RGB, gama(0.55556)),
    "gamma with Display P3": png(RGB, gama(0.45455), chrm(P3)),
    "chromaticities alone": png(RGB, chrm(P3)),
    "gamma of a palette": png(INDICES, gama(1.0), PALETTE, kind=3),
    "gamma of grey": png(GREY, gama(1.0), chrm(SRGB)),
    "gamma of grey in 16 bits": png(DEEP[:, :, 0], gama(1.0), bits=16),
    "sRGB before gamma": png(RGB, SRGB_CHUNK, gama(1.0), chrm(P3)),
    "profile before sRGB and gamma": png(RGB, SRGB_CHUNK, gama(1.0), iccp(DISPLAY_P3)),
    "cICP before the profile": png(RGB, chunk(b"cICP", b"\1\x0d\0\1"), iccp(DISPLAY_P3)),
    **{
        f"cICP, primaries {code}": png(RGB, chunk(b"cICP", bytes([code, 13, 0, 1])))
        for code in (1, 2, 4, 5, 6, 7, 9, 11, 12)
    },
    **{
        f"cICP, transfer {code}": png(RGB, chunk(b"cICP", bytes([1, code, 0, 1]))) for code in (1, 2, 4, 5, 6, 8, 14, 15, 17)
    },
    "cICP of unknown codes": png(RGB, chunk(b"cICP", b"\x63\x63\0\1"), iccp(DISPLAY_P3)),
    "cICP of grey": png(GREY, chunk(b"cICP", b"\1\x08\0\1")),
    "cICP in video's range": png(RGB, chunk(b"cICP", b"\x0c\x0d\0\0")),
}

PIXELS = {
    "grey": png(GREY),
    "RGB": png(RGB),
    "RGBA": png(RGBA),
    "grey and alpha": png(RGBA[:, :, 2:]),
    "one bit": saved("PNG", Image.fromarray(GREY).convert("1")),
    "palette": png(INDICES, PALETTE, kind=3),
    "palette, transparent": png(INDICES, PALETTE, chunk(b"tRNS", bytes([0, 100, 200])), kind=3),
    "a transparent colour": png(RGB // 64 * 64, chunk(b"tRNS", struct.pack(">3H", 64, 64, 0))),
    "a transparent grey": png(GREY // 64 * 64, chunk(b"tRNS", struct.pack(">H", 64))),
    "16 bits": png(DEEP, bits=16),
    "16 bits and alpha": png(np.dstack([DEEP, DEEP[::-1, :, 0]]), bits=16),
    "a transparent colour in 16 bits": png(DEEP // 16384 * 16384 + 300, chunk(b"tRNS", struct.pack(">3H", 16684, 16684, 300)), bits=16),
    "a transparent grey in 16 bits": png(DEEP[:, :, 0] // 16384 * 16384 + 300, chunk(b"tRNS", struct.pack(">H", 16684)), bits=16),
    "grey in 16 bits": png(DEEP[:, :, 0], bits=16),
    "grey and alpha in 16 bits": png(DEEP[:, :, :2], bits=16),
    "JPEG": jpeg(),
    "JPEG, progressive, 4:2:0": saved("JPEG", RGB, quality=80, progressive=True),
    "JPEG, grey": jpeg(GREY),
    "WebP": webp(),
    "WebP, lossy and transparent": saved("WEBP", RGBA, quality=70),
    "AVIF": saved("AVIF", RGB, quality=80),
    "GIF": saved("GIF", RGB),
    "BMP": saved("BMP", RGB),
    "an animation": saved("PNG", Image.fromarray(RGB), save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    "an animation, the picture is not of it": saved("PNG", Image.fromarray(RGB), save_all=True, default_image=True, append_images=[Image.fromarray(255 - RGB)] * 2),
    "a WebP animation": saved("WEBP", Image.fromarray(RGB), save_all=True, append_images=[Image.fromarray(255 - RGB)], lossless=True),
    "one pixel": png(RGB[:1, :1]),
    "no end": png(RGB, after=b""),
    "an end cut short": WHOLE[:-4],
    "an end after other things": png(RGB, after=chunk(b"tEXt", b"a\0b")),
    "something after the end": WHOLE + b"nonsense",
    "a JPEG with something after it": jpeg() + b"nonsense",
}  # fmt: skip

DAMAGED = {
    "empty": b"",
    "a text": b"not a picture, but a text that is long enough to hold a header",
    "pixels with a wrong checksum": WHOLE[:33] + spoiled(WHOLE[33:-12]) + WHOLE[-12:],
    "pixels cut short": WHOLE[:1500],
    "pixels cut short, with an end": WHOLE[:33] + chunk(b"IDAT", WHOLE[41:1500]) + chunk(b"IEND", b""),
    "pixels cut between two chunks": WHOLE[:33] + chunk(b"IDAT", WHOLE[41:1500]),
    "a header alone": WHOLE[:33],
    "a JPEG cut short": jpeg()[:-300],
    "a WebP cut short": webp()[:-300],
    "HDR by PQ": png(RGB, chunk(b"cICP", b"\x09\x10\0\1")),
    "HDR by HLG": png(RGB, chunk(b"cICP", b"\x09\x12\0\1")),
    "16 bits with values under 256": png(GREY.astype(int), bits=16),
    "RGB in 16 bits with values under 256": png(RGB.astype(int), bits=16),
}

MASKS = {
    "mask": png(HOLE),
    "mask of 0 and 1": png(HOLE // 255),
    "mask of 0 and 1, RGB": png(np.dstack([HOLE // 255] * 3)),
    "mask of 0 and 1 in a palette": png(HOLE // 255, chunk(b"PLTE", bytes(3) + b"\xff\xff\xff"), kind=3),
    "mask in 16 bits": png(HOLE.astype(int) * 257, bits=16),
    "mask, white on transparent": png(np.dstack([np.full_like(HOLE, 255)] * 3 + [HOLE])),
    "mask, black on transparent": png(np.dstack([HOLE * 0] * 3 + [HOLE])),
    "mask, red": png(np.dstack([HOLE, HOLE * 0, HOLE * 0])),
    "mask, soft": png(RGB),
    "mask, turned": png(HOLE, chunk(b"eXIf", SIX)),
    "mask in a linear profile": png(GREY, iccp(GREY_LINEAR)),
    "mask, JPEG": jpeg(HOLE),
    "mask of 1 and transparent 255": png(np.dstack([HOLE, HOLE // 255])),
    "mask of nothing": png(HOLE * 0),
}
