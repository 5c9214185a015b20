"""Photographs with known licences, fetched as Debian packages, cut into tiles for training.

The packages are downloaded and unpacked, never installed. Three kinds of container are read: plain files, Qt resource
files (`.rcc`, of GCompris) and Quake archives (`.pk3`, which are zip files). Every picture keeps its licence and author
as its package states them, and `sources.json` beside this file is the record of what was trained on and what was
held out. The split is by source file: no crop of a held-out picture is ever trained on.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

TILE = 320  # px, side of a stored tile: leaves room for a random 256 px crop
TILE_QUALITY = 90  # WebP quality of a stored tile
SHORT_SIDES = (330, 480, 700, 1000, 1500, 2400)  # px, the scales at which a photograph is cut
SYNTHETIC_TILES = 160
SOURCES_FILE = Path(__file__).with_name("sources.json")

PACKAGES = (
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "gcompris-qt-data",
    "ufoai-textures",
)
GCOMPRIS_ACTIVITIES = ("erase", "explore_world_animals", "explore_farm_animals", "explore_monuments", "explore_world_music", "clickgame")
PLASMA_PHOTOGRAPHS = ("BytheWater", "ColdRipple", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite", "OneStandsOut", "summer_1am")
UFOAI_FOLDERS = ("tex_nature", "tex_terrain", "tex_dirt", "tex_streets", "tex_material", "tex_buildings")
DRAWN = ("umang_by_Abhishek_Mudgal", "analogpattern_by_Peter_Nerlich", "Fossa_by_Jasper_Roks", "Painting-Colors", "Infinite-Sea")

HELD_OUT = (
    "seeding_by_Clements_Engelhardt.jpg",
    "aitzgorri_by_Aitzol_Berasategi.jpg",
    "sunset_by_Aitzol_Berasategi.jpg",
    "erase/resource/bee.webp",
    "explore_world_animals/resource/animals/bison.webp",
    "explore_farm_animals/resource/animals/sheep.webp",
    "explore_farm_animals/resource/animals/pig.webp",
    "explore_farm_animals/resource/animals/chicken.webp",
    "explore_world_animals/resource/animals/narwhal.webp",
    "explore_world_animals/resource/animals/hedgehog.webp",
    "explore_monuments/resource/egypt/redPyramid.webp",
    "explore_monuments/resource/wonders/colosseum.webp",
    "explore_monuments/resource/wonders/petra.webp",
    "explore_monuments/resource/wonders/greatWallofChina.webp",
    "explore_monuments/resource/france/montStMichel.webp",
    "explore_monuments/resource/usa/fortSumter.webp",
)
"""Ends of the paths of the pictures that are never trained on; the demo photographs are among them."""


@dataclass
class Source:
    """One picture file and what is known of it."""

    package: str
    file: str  # path inside the package, or inside the archive that the package holds
    licence: str
    author: str
    use: str  # "train" or "held-out"
    kind: str  # "photograph" or "texture"
    tiles: int = 0  # how many tiles were cut from it


# -- fetching and reading containers -----------------------------------------------------------------------------------


def fetch_packages(folder: Path) -> None:
    """Download and unpack every package of `PACKAGES` below `folder`, one folder each; skips what is there.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg failed (not a Debian system, or its lists were never updated).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        target = folder / package
        if target.exists():
            continue
        subprocess.run(["apt-get", "-q", "download", package], cwd=folder, check=True)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", archive.name, target.name], cwd=folder, check=True)
        archive.unlink()


def read_rcc(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and contents of every file in a Qt binary resource file.

    Layout (Qt's rcc tool): magic `qres`, then big-endian version and offsets of the tree, the data and the names. A
    tree node is 14 bytes (22 from version 2 on): name offset, flags, then child count and first child for a folder, or
    two locale numbers and the data offset for a file. Data is a length and that many bytes; flag 1 says zlib.

    Raises:
        ValueError: not a resource file, or an entry is compressed in a way other than zlib.
    """
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", blob)
    if magic != b"qres":
        raise ValueError("not a Qt resource file")
    node_size = 14 if version == 1 else 22

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", blob, node)
        name = ""
        if index:
            (length,) = struct.unpack_from(">H", blob, names + name_offset)
            start = names + name_offset + 6  # after the length and a hash
            name = blob[start : start + 2 * length].decode("utf-16-be")
        path = f"{folder}/{name}".lstrip("/")
        if flags & 2:
            count, first = struct.unpack_from(">II", blob, node + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
            return
        (offset,) = struct.unpack_from(">I", blob, node + 10)
        (length,) = struct.unpack_from(">I", blob, data + offset)
        content = blob[data + offset + 4 : data + offset + 4 + length]
        if flags & 4:
            raise ValueError(f"{path} is compressed with zstd, which is not read here")
        yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def parse_debian_copyright(text: str) -> list[tuple[list[str], str, str]]:
    """(file patterns, author, licence) of every Files paragraph of a machine-readable debian/copyright."""
    entries = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {}
        key = ""
        for line in paragraph.splitlines():
            if match := re.match(r"([A-Za-z-]+):\s*(.*)", line):
                key = match[1].lower()
                fields[key] = [match[2]] if match[2] else []
            elif key:
                fields[key].append(line.strip())
        if "files" in fields and fields.get("license"):
            patterns = " ".join(fields["files"]).split()
            author = "; ".join(fields.get("copyright", [])[:2])
            entries.append((patterns, author, fields["license"][0]))
    return entries


def look_up(entries: list[tuple[list[str], str, str]], path: str) -> tuple[str, str]:
    """(author, licence) of `path`; as Debian's format says, the last paragraph that matches counts.

    Raises:
        KeyError: no paragraph names the file.
    """
    found = None
    name = path.rpartition("/")[2]
    for patterns, author, licence in entries:
        if any(fnmatch.fnmatch(path, "*" + pattern) or pattern.endswith("/" + name) for pattern in patterns):
            found = author, licence
    if found is None:
        raise KeyError(f"no licence is stated for {path}")
    return found


def parse_gcompris_readme(text: str) -> dict[str, tuple[str, str]]:
    """{file: (author, licence)} of a GCompris README: paragraphs of Copyright, License and a list of files."""
    table = {}
    for paragraph in re.split(r"\n\s*\n", text):
        author = re.search(r"Copyright:\s*(.*)", paragraph)
        licence = re.search(r"License:\s*(.*)", paragraph)
        if author and licence:
            for name in re.findall(r"(?:^|\s)(\S+\.webp)\s*$", paragraph, flags=re.M):
                table[name] = author[1].strip(), licence[1].strip().replace("Domain", "domain")
    return table


# -- one picture after another -----------------------------------------------------------------------------------------


def pictures(folder: Path) -> Iterator[tuple[Source, np.ndarray]]:
    """Every usable picture of the unpacked packages: its record and its pixels, (h, w, 3) uint8 RGB."""
    for package in PACKAGES:
        root = folder / package
        for path, author, licence, kind, blob in _READERS[package](root):
            with Image.open(io.BytesIO(blob)) as image:
                rgb = np.asarray(image.convert("RGB"))
            if min(rgb.shape[:2]) < (TILE if kind == "photograph" else 256):
                continue
            use = "held-out" if path.endswith(HELD_OUT) else "train"
            yield Source(package, path, licence, author, use, kind), rgb


def _copyright_of(root: Path) -> list[tuple[list[str], str, str]]:
    return parse_debian_copyright((next(root.glob("usr/share/doc/*/copyright"))).read_text(encoding="utf-8"))


def _plain_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    entries = _copyright_of(root)
    for file in sorted(root.rglob("*.jpg")):
        name = "/".join(file.parts[-2:])
        if file.is_symlink() or file.name.startswith(DRAWN) or "mate/abstract" in str(file) or "mate/desktop" in str(file):
            continue
        try:
            author, licence = look_up(entries, name)
        except KeyError:
            continue  # a picture without a stated licence is left out
        yield name, author, licence, "photograph", file.read_bytes()


def _plasma_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    for name in PLASMA_PHOTOGRAPHS:
        folder = root / "usr/share/wallpapers" / name
        about = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["KPlugin"]
        author = "; ".join(person["Name"] for person in about.get("Authors", []))
        file = folder / "contents/images/2560x1600.jpg"
        licence = f"{about['License']} (package: GPL-2+)"
        yield f"{name}/contents/images/2560x1600.jpg", author, licence, "photograph", file.read_bytes()


def _gcompris_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    for activity in GCOMPRIS_ACTIVITIES:
        files = dict(read_rcc((root / f"usr/share/gcompris-qt/rcc/{activity}.rcc").read_bytes()))
        for readme in [path for path in files if path.endswith("/README")]:
            base = readme.removesuffix("README")
            for name, (author, licence) in sorted(parse_gcompris_readme(files[readme].decode()).items()):
                if base + name in files:
                    path = (base + name).removeprefix("gcompris/src/activities/")
                    yield path, author, licence, "photograph", files[base + name]


def _ufoai_textures(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    entries = _copyright_of(root)
    for archive in sorted(root.rglob("*.pk3")):
        with zipfile.ZipFile(archive) as files:
            for path in sorted(files.namelist()):
                stem, _, suffix = path.rpartition(".")
                wanted = any(f"/{folder}/" in path for folder in UFOAI_FOLDERS) and suffix in ("jpg", "png")
                if wanted and not stem.endswith(("_nm", "_sm", "_gm", "_rm", "_n", "_norm")):
                    author, licence = look_up(entries, path)
                    if licence.startswith(("CC", "public-domain")):
                        yield path, author, licence, "texture", files.read(path)


_READERS = {
    "lomiri-wallpapers-16.04": _plain_photographs,
    "lomiri-wallpapers-20.04": _plain_photographs,
    "mate-backgrounds": _plain_photographs,
    "plasma-workspace-wallpapers": _plasma_photographs,
    "gcompris-qt-data": _gcompris_photographs,
    "ufoai-textures": _ufoai_textures,
}


# -- tiles -------------------------------------------------------------------------------------------------------------


def cut_tiles(rgb: np.ndarray, rng: np.random.Generator, density: float, most: int) -> list[np.ndarray]:
    """Random tiles of one picture at several scales.

    Args:
        rgb: (h, w, 3) uint8, both sides at least `TILE`, or a texture that is enlarged to it.
        rng: where the positions come from.
        density: tiles a scale, in units of how many tiles would cover the scaled picture once.
        most: no more than this many tiles in all.

    Returns:
        (320, 320, 3) uint8 tiles. Pictures are only ever made smaller, so that no tile is blurred by enlargement;
        textures under 320 px are the exception.
    """
    short = min(rgb.shape[:2])
    if short < TILE:
        scaled = cv2.resize(rgb, None, fx=TILE / short, fy=TILE / short, interpolation=cv2.INTER_CUBIC)
        return [np.ascontiguousarray(scaled[:TILE, :TILE])]
    tiles = []
    for side in [s for s in SHORT_SIDES if s < 0.9 * short] + [short]:
        f = min(1.0, side / short)
        size = max(TILE, round(rgb.shape[1] * f)), max(TILE, round(rgb.shape[0] * f))
        scaled = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        cover = scaled.shape[0] * scaled.shape[1] / TILE**2
        for _ in range(max(1, round(density * cover))):
            y = rng.integers(scaled.shape[0] - TILE + 1)
            x = rng.integers(scaled.shape[1] - TILE + 1)
            tiles.append(scaled[y : y + TILE, x : x + TILE])
    order = rng.permutation(len(tiles))[:most]
    return [np.ascontiguousarray(tiles[i]) for i in order]


def synthetic_tile(rng: np.random.Generator) -> np.ndarray:
    """A (320, 320, 3) uint8 picture of smooth gradients, sometimes with straight edges, stripes or fine noise.

    Clean skies and walls, and lines that go on behind a hole, are rarer in photographs than in what people erase.
    """
    corners = rng.uniform(20, 235, (2, 2, 3)) * 0.5 + rng.uniform(20, 235, 3) * 0.5
    picture = cv2.resize(corners.astype(np.float32), (TILE, TILE), interpolation=cv2.INTER_LINEAR)
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    for _ in range(rng.integers(0, 4)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-120, 120)
        along = (x - TILE / 2) * np.cos(angle) + (y - TILE / 2) * np.sin(angle) - offset
        if rng.random() < 0.5:
            shade = np.clip(along / rng.uniform(0.7, 6) + 0.5, 0, 1)  # an edge, sharp or soft
        else:
            shade = 0.5 + 0.5 * np.tanh(rng.uniform(1, 6) * np.sin(along * 2 * np.pi / rng.uniform(10, 70)))  # stripes
        picture += shade[..., None] * rng.uniform(-60, 60, 3)
    grain = cv2.GaussianBlur(rng.standard_normal((TILE, TILE, 1)).astype(np.float32), (0, 0), rng.uniform(0.4, 2.0))
    picture += grain[..., None] / grain.std() * rng.choice([0, 0, 1.5, 4, 10])
    return np.clip(picture, 0, 255).astype(np.uint8)


def _webp(tile: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "WEBP", quality=TILE_QUALITY, method=4)
    return buffer.getvalue()


def make_tiles(packages: Path, target: Path, seed: int = 0) -> list[Source]:
    """Cut the training pictures into `target`, a zip of WebP tiles, and save the held-out ones beside it.

    Args:
        packages: the folder that `fetch_packages` filled.
        target: the zip to write; held-out originals go to `held_out/` beside it, as PNG of at most 1,024 px.
        seed: of every random choice.

    Returns:
        One record a picture, in reading order, which `write_sources` keeps.
    """
    rng = np.random.default_rng(seed)
    sources = []
    held_out = target.parent / "held_out"
    held_out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for source, rgb in pictures(packages):
            sources.append(source)
            if source.use == "held-out":
                f = min(1.0, 1024 / max(rgb.shape[:2]))
                smaller = cv2.resize(rgb, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
                Image.fromarray(smaller).save(held_out / (Path(source.file).stem + ".png"))
                continue
            big = min(rgb.shape[:2]) > 1100
            most = {"photograph": 48 if big else 20, "texture": 2}[source.kind]
            tiles = cut_tiles(rgb, rng, 1.5, most)
            for i, tile in enumerate(tiles):
                archive.writestr(f"{len(sources):04d}_{i:02d}.webp", _webp(tile))
            source.tiles = len(tiles)
        for i in range(SYNTHETIC_TILES):
            archive.writestr(f"synthetic_{i:03d}.webp", _webp(synthetic_tile(rng)))
    return sources


def write_sources(sources: list[Source], path: Path = SOURCES_FILE) -> None:
    """Keep the record as JSON, one line a picture."""
    lines = ",\n".join(json.dumps(asdict(source), ensure_ascii=False) for source in sources)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_tiles(path: Path) -> np.ndarray:
    """All tiles of a zip that `make_tiles` wrote, (n, 320, 320, 3) uint8, in name order."""
    with zipfile.ZipFile(path) as archive:
        encoded = [np.frombuffer(archive.read(name), np.uint8) for name in sorted(archive.namelist())]
    tiles = np.empty((len(encoded), TILE, TILE, 3), np.uint8)

    def decode(i: int) -> None:
        tiles[i] = cv2.cvtColor(cv2.imdecode(encoded[i], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    with ThreadPoolExecutor() as threads:
        list(threads.map(decode, range(len(encoded))))
    return tiles
