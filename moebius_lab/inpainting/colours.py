"""Colours of pictures: from the profile that a picture states to sRGB and back, and profiles for what is stated without one.

Conversions are relative colorimetric and computed colour by colour: tables made beforehand, LittleCMS's default, are off by up to
18 levels, this by 1 from what browsers do.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

from .imaging import ImageError

ProfileError = ImageCms.PyCMSError
"""Raised for a profile that is damaged, or made for other channels or the other direction."""


# -- conversions -------------------------------------------------------------------------------------------------------


def to_srgb(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert to sRGB.

    Args:
        pixels: uint8 (H, W), (H, W, 3), or CMYK (H, W, 4).
        profile: ICC, for as many channels; empty for sRGB and CMYK without a profile.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ProfileError
    """
    image = as_image(pixels)
    return np.asarray(_convert(image, _opened(profile), _srgb(), "RGB") if profile else image.convert("RGB"))


def from_srgb(rgb: np.ndarray, profile: bytes, grey: bool) -> np.ndarray:
    """uint8 (H, W, 3) in sRGB -> uint8 (H, W, 3), or (H, W) if `grey`, in a profile (ICC; empty for sRGB).

    Raises:
        ProfileError
    """
    image, mode = Image.fromarray(rgb), "L" if grey else "RGB"
    return np.asarray(_convert(image, _srgb(), _opened(profile), mode) if profile else image.convert(mode))


def lab_to_srgb(image: Image.Image) -> np.ndarray:
    """A PIL image of mode LAB -> uint8 (H, W, 3) in sRGB."""
    return np.asarray(_convert(image, ImageCms.createProfile("LAB"), _srgb(), "RGB"))


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W), (H, W, 3) or CMYK (H, W, 4) as a PIL image."""
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes())
    return Image.fromarray(pixels)


def _convert(image: Image.Image, source, target, mode: str) -> Image.Image:
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.profileToProfile(image, source, target, intent, mode, flags=ImageCms.Flags.NOOPTIMIZE)


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except OSError as error:
        raise ProfileError(str(error)) from None


def _srgb():
    return ImageCms.createProfile("sRGB")


# -- what a picture states ---------------------------------------------------------------------------------------------


def profile_of_png(chunks: dict[bytes, bytes], grey: bool) -> bytes:
    """The ICC profile that the chunks of a PNG state, by name; empty for sRGB. cICP counts before iCCP, sRGB, gAMA and cHRM.

    Raises:
        ImageError: the colours are of high dynamic range.
    """
    coding = chunks.get(b"cICP", b"")
    if len(coding) == 4 and coding[2:] == b"\0\1":
        if coding[1] in (16, 18):
            raise ImageError("its colours are of high dynamic range (PQ or HLG); save it with standard range")
        if coding[0] in PRIMARIES and coding[1] in TRANSFERS:
            is_srgb = (coding[0], coding[1]) == (1, 13)
            return b"" if is_srgb else make_profile(PRIMARIES[coding[0]], TRANSFERS[coding[1]], grey)
    if profile := _inflated(chunks.get(b"iCCP", b"")):
        return profile
    if b"sRGB" in chunks:
        return b""
    gamma, points = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    numbers = [value / 100_000 for value in struct.unpack(">8I", points)] if len(points) == 32 else None
    return profile_of_gamma(int.from_bytes(gamma, "big") / 100_000 if len(gamma) == 4 else 0.0, numbers, grey)


def _inflated(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk; empty if it is damaged."""
    try:
        return zlib.decompressobj().decompress(chunk.partition(b"\0")[2][1:], 2**26)
    except zlib.error:
        return b""


def profile_of_gamma(gamma: float, chromaticities: list[float] | tuple[float, ...] | None, grey: bool) -> bytes:
    """The ICC profile that PNG's gAMA and cHRM mean; empty for sRGB.

    Args:
        gamma: value = light ^ gamma; 0 if it is not stated.
        chromaticities: x and y of white, red, green and blue; None if they are not stated.
        grey: whether the picture is greyscale.
    """
    if not 0.01 <= gamma <= 100:
        return b""
    if chromaticities is None:
        return b"" if abs(gamma - 1 / 2.2) < 0.02 else make_profile(PRIMARIES[1], _curve(1 / gamma), grey)
    points = tuple(tuple(chromaticities[i : i + 2]) for i in range(0, 8, 2))
    try:
        return make_profile(points, _curve(1 / gamma), grey)
    except (ZeroDivisionError, np.linalg.LinAlgError):  # points that span no colours
        return b""


# -- profiles made here ------------------------------------------------------------------------------------------------


def _number(value: float) -> bytes:
    """ICC's s15Fixed16Number."""
    return struct.pack(">i", round(value * 65536))


def _curve(exponent: float) -> bytes:
    """ICC curve: light = value ^ exponent."""
    return b"para\0\0\0\0\0\0\0\0" + _number(exponent)


SRGB_CURVE = b"para\0\0\0\0\0\3\0\0" + b"".join(map(_number, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
TRANSFERS = dict.fromkeys((1, 6, 14, 15), _curve(2.4)) | {4: _curve(2.2), 5: _curve(2.8), 8: _curve(1.0), 13: SRGB_CURVE}
"""ITU-T H.273, table 3: code -> ICC curve. Video's are those of a display (BT.1886), as browsers take them."""

D65 = (0.3127, 0.3290)
PRIMARIES = {
    1: (D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    4: ((0.310, 0.316), (0.670, 0.330), (0.210, 0.710), (0.140, 0.080)),
    5: (D65, (0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    6: (D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: (D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""ITU-T H.273, table 2: code -> x and y of white, red, green and blue."""

BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50_XYZ = np.array([0.9642, 1.0, 0.8249])


def make_profile(points: tuple[tuple[float, float], ...], curve: bytes, grey: bool) -> bytes:
    """An ICC profile, version 4.

    Args:
        points: x and y of white, red, green and blue; colours are adapted from that white to ICC's D50 by Bradford's matrix.
        curve: of every channel, an ICC tag.
        grey: for one channel, which has the colour of the white.

    Raises:
        ZeroDivisionError, LinAlgError: points that span no colours.
    """
    white, *primaries = [np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in points]
    to_xyz = np.stack(primaries, axis=1)
    to_xyz = to_xyz * np.linalg.solve(to_xyz, white)
    adapt = np.linalg.solve(BRADFORD, np.diag(BRADFORD @ D50_XYZ / (BRADFORD @ white)) @ BRADFORD)
    text = "as stated in the picture".encode("utf-16-be")
    words = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": _xyz(D50_XYZ)}
    tags[b"chad"] = b"sf32\0\0\0\0" + b"".join(_number(value) for value in adapt.flat)
    if grey:
        tags[b"kTRC"] = curve
    else:
        for channel, column in zip((b"r", b"g", b"b"), (adapt @ to_xyz).T):
            tags |= {channel + b"XYZ": _xyz(column), channel + b"TRC": curve}
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s28x", 128 + len(table) + len(body), 0x04300000, b"mntr",
                         b"GRAY" if grey else b"RGB ", b"XYZ ", b"acsp")  # fmt: skip
    header += b"".join(map(_number, D50_XYZ)) + b"\0" * 48
    return header + table + body


def _xyz(values: np.ndarray) -> bytes:
    """ICC's XYZ tag."""
    return b"XYZ \0\0\0\0" + b"".join(map(_number, values))
